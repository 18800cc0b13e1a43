"""When a layer takes the fused kernel: what is plain, what has a kernel, what is faster."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from fused_layers import operators
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrize

import involution
from involution import Involution2d, _fused

# ---- the choice ----


def test_a_cpu_takes_the_unfused_path() -> None:
    x = torch.randn(2, 32, 5, 5)
    for fused in (None, False):
        assert operators(Involution2d(32, fused=fused), x) == ["involution"]
    reason = (
        r"cannot take the fused kernel\. The fused kernel runs on CUDA devices, but the input is on cpu\."
    )
    with pytest.raises(RuntimeError, match=reason):
        Involution2d(32, fused=True)(x)
    answer = Involution2d(32).fused_available(x)
    assert not answer and answer.reason in str(answer)


def test_what_is_traced_for_every_input_is_not_fused(everything_fused) -> None:
    """Here torch.jit.trace; torch.fx's symbolic trace hands out no tensor at all."""
    layer, x = Involution2d(32, 3).eval(), torch.randn(2, 32, 5, 5)
    recorded = torch.fx.Proxy(torch.fx.Graph().placeholder("x"))
    assert not layer._takes_fused(recorded, recorded)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch.jit is deprecated, and of the checks of sizes
        traced = torch.jit.trace(layer, (x,))
    assert "fused_involution" not in str(traced.inlined_graph)
    torch.testing.assert_close(traced(x), layer(x))
    layer.fused = True
    with pytest.raises(RuntimeError, match="records is for every input"):
        layer._takes_fused(recorded, recorded)


def test_wrong_arguments_are_explained() -> None:
    with pytest.raises(TypeError, match="fused must be None, True or False, not 'yes'"):
        Involution2d(32, fused="yes")


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


class Conv(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def spoiled(how: str) -> Involution2d:
    """A layer whose kernels are not, or may not be, the product of span's weight with the features."""
    layer = Involution2d(32, 3, kernel_normalizer="softmax" if how == "normalizer" else None)
    if how == "parametrisation":
        parametrize.register_parametrization(layer.span, "weight", Doubled())
    elif how == "class":
        layer.span = Conv(8, 18, 1)
    elif how == "forward hook":
        layer.span.register_forward_hook(lambda module, args, output: 2 * output)
    elif how == "forward pre-hook":
        layer.span.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    elif how == "backward hook":
        layer.span.register_full_backward_hook(lambda module, grad_input, grad_output: None)
    elif how == "kernel":
        layer.span = nn.Conv2d(8, 18, 3, padding=1)
    return layer


@pytest.mark.parametrize(
    "how",
    ["normalizer", "parametrisation", "class", "forward hook", "forward pre-hook", "backward hook", "kernel"],
)
def test_what_is_not_a_plain_product_is_not_fused(how, everything_fused, cuda_pretended) -> None:
    """Nor are its kernels made by a matrix product: whatever was put there takes part."""
    layer = spoiled(how)
    x = torch.randn(2, 32, 5, 5).contiguous(memory_format=torch.channels_last)
    assert operators(layer, x) == ["involution"]
    reason = layer.fused_available(x).reason
    assert ("kernel_normalizer" if how == "normalizer" else "plain 1x1 convolution") in reason
    layer.fused = True
    with pytest.raises(RuntimeError, match="cannot take the fused kernel"):
        layer(x)


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorMode]:
    """CUDA tensors without memory, on a device with kernels."""
    monkeypatch.setattr(_fused, "_why_not_on", lambda device: None)
    if not torch.backends.cuda.is_built():
        pytest.skip("a torch without CUDA does not pretend to have a tensor on a GPU")
    with FakeTensorMode() as mode:
        yield mode


def choice(**changes: Any) -> str | None:
    """The reason against the fused kernel for RedNet's first involution, or for what is changed of it."""
    sizes = {"batch": 2, "channels": 64, "reduced": 16, "groups": 4, "size": (56, 57), "out": None}
    options = {"kernel": (7, 7), "stride": (1, 1), "padding": (3, 3), "dilation": (1, 1)}
    storage = {
        "dtype": torch.bfloat16,
        "device": "cuda",
        "layout": torch.channels_last,
        "features_layout": None,
    }
    given = {**sizes, **options, **storage, **changes}
    out = given["out"] or tuple(-(-i // s) for i, s in zip(given["size"], given["stride"], strict=True))
    factory = {"dtype": given["dtype"], "device": given["device"]}
    x = torch.empty(given["batch"], given["channels"], *given["size"], **factory)
    z = torch.empty(given["batch"], given["reduced"], *out, **factory)
    x = x.contiguous(memory_format=given["layout"])
    z = z.contiguous(memory_format=given["features_layout"] or given["layout"])
    points = given["kernel"][0] * given["kernel"][1]
    weight = torch.empty(given["groups"] * points, given["reduced"], **factory)
    window = (given["kernel"], given["stride"], given["padding"], given["dilation"])
    answer = involution.fused_available(x, z, weight, *window)
    assert bool(answer) == (answer.reason is None)
    return answer.reason


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dtype": torch.float16},
        {"size": (1, 1)},
        {"stride": (2, 2)},
        {"stride": (2, 2), "size": (55, 1)},
        {"kernel": (3, 3), "padding": (1, 1), "channels": 32, "groups": 2, "reduced": 8},
        {"kernel": (5, 5), "padding": (2, 2)},
        {"channels": 512, "groups": 32, "reduced": 128, "size": (7, 7)},
        {"batch": 0},
    ],
    ids=str,
)
def test_what_has_a_kernel(changes, fake_gpu) -> None:
    assert choice(**changes) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"device": "cpu"}, "on CUDA devices, but the input is on cpu"),
        ({"dtype": torch.float32}, "for float16 and bfloat16, not torch.float32"),
        ({"kernel": (7, 3), "padding": (3, 1)}, r"kernel sizes 3x3, 5x5, 7x7, not \(7, 3\)"),
        ({"kernel": (9, 9), "padding": (4, 4)}, r"not \(9, 9\)"),
        ({"stride": (1, 2)}, r"strides of 1 and 2, the same along both axes, not \(1, 2\)"),
        ({"stride": (3, 3)}, r"not \(3, 3\)"),
        ({"dilation": (2, 2), "padding": (6, 6)}, r"no dilation, but it is \(2, 2\)"),
        ({"padding": (2, 3)}, r"padding that keeps the size, K // 2, not \(2, 3\)"),
        ({"groups": 8}, "groups of 16 channels, but 64 channels have 8 groups"),
        ({"reduced": 12}, "a multiple of 8 features, 128 at most, not 12"),
        ({"reduced": 136}, "not 136"),
        ({"out": (56, 56)}, r"size ceil\(In / stride\), but the features are \(56, 56\)"),
        ({"layout": torch.contiguous_format}, "dense channels_last storage, but the input"),
        ({"features_layout": torch.contiguous_format}, "dense channels_last storage, but the features"),
    ],
    ids=str,
)
def test_what_has_no_kernel(changes, reason, fake_gpu) -> None:
    text = choice(**changes)
    assert text is not None
    assert re.search(reason, text), text
    assert text.endswith(".")


def test_one_integer_serves_both_axes(fake_gpu) -> None:
    factory = {"dtype": torch.bfloat16, "device": "cuda"}
    x, z = (torch.empty(2, c, 9, 9, **factory).to(memory_format=torch.channels_last) for c in (64, 16))
    weight = torch.empty(4 * 49, 16, **factory)
    assert involution.fused_available(x, z, weight, 7, padding="same")
    assert "K // 2" in involution.fused_available(x, z, weight, 7).reason
    with pytest.raises(ValueError, match="stride must be at least 1"):
        involution.fused_available(x, z, weight, 7, 0)


def test_sequences_and_slices_have_no_kernel(fake_gpu) -> None:
    factory = {"dtype": torch.bfloat16, "device": "cuda"}
    sequence = torch.empty(2, 64, 9, **factory), torch.empty(2, 16, 9, **factory)
    weight = torch.empty(4 * 7, 16, **factory)
    assert "kernel sizes" in involution.fused_available(*sequence, weight, (7,), (1,), (3,), (1,)).reason
    wide = torch.empty(2, 128, 9, 9, **factory).contiguous(memory_format=torch.channels_last)
    maps = wide[:, :64], torch.empty(2, 16, 9, 9, **factory).contiguous(memory_format=torch.channels_last)
    window = ((7, 7), (1, 1), (3, 3), (1, 1))
    weight = torch.empty(4 * 49, 16, **factory)
    assert "but the input is stored" in involution.fused_available(*maps, weight, *window).reason


def test_autocast_decides_the_dtype(fake_gpu) -> None:
    assert "not torch.float32" in choice(dtype=torch.float32)
    before = torch.get_autocast_dtype("cuda")
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.set_autocast_enabled("cuda", True)  # torch.autocast refuses without a GPU
    try:
        assert choice(dtype=torch.float32) is None
        assert "not torch.float64" in choice(dtype=torch.float64)
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.set_autocast_dtype("cuda", before)


def test_a_device_without_kernels_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    built = {"cuda": None, "no_cuda_reason": "Nobody built them."}
    monkeypatch.setattr(_fused, "build_info", lambda: built)
    _fused._why_no_kernels_on.cache_clear()
    assert _fused._why_not_on(0) == "Nobody built them."
    built["cuda"] = "13.0"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    _fused._why_no_kernels_on.cache_clear()
    assert "torch sees no CUDA device" in _fused._why_not_on(0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, reason in (((7, 5), "capability 8.0 or later, but device 1 has 7.5."), ((8, 0), None)):
        _fused._why_no_kernels_on.cache_clear()
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        text = _fused._why_not_on(1)
        assert text is None if reason is None else text.endswith(reason)
    _fused._why_no_kernels_on.cache_clear()
