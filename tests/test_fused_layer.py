"""Layers and networks that take the fused involution: chosen by hand here, and composed, as no CPU has the kernel.

What is tested is the path that a GPU takes, but for the kernel itself: the choice, the arguments, the epilogue, and a
backward pass that makes the kernels again.
"""

from __future__ import annotations

import copy
import itertools
import re
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

import involution
from involution import Involution1d, Involution2d, Involution3d, _fused
from involution.layers import kernel_branch
from involution.layers.epilogue import Epilogue
from involution.models import RedNet, fuse


class Calls(TorchDispatchMode):
    """The operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function._schema.name)
        return function(*args, **(kwargs or {}))


@pytest.fixture
def available(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were a fused kernel for everything."""
    monkeypatch.setattr(_fused, "DEVICE_TYPE", "cpu")
    monkeypatch.setattr(_fused, "why_unavailable", lambda *arguments: None)


@pytest.fixture
def on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """What layers do on CUDA without a fused kernel."""
    monkeypatch.setattr(kernel_branch, "_on_cuda", lambda tensor: True)


def twins(make: Any) -> tuple[nn.Module, nn.Module]:
    """A layer that takes the fused path, and the same one that does not."""
    torch.manual_seed(0)
    fused = make(True)
    with torch.no_grad():
        for tensor in fused.state_dict().values():
            if tensor.dim() == 1:
                tensor.uniform_(0.5, 2)
    plain = make(False)
    plain.load_state_dict(fused.state_dict())
    return fused, plain


def outcome(layer: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The output, all gradients, and the buffers that a step leaves."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    output = layer(x)
    output.square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in layer.named_parameters()}
    return {"output": output, "input": x.grad, **gradients, **dict(layer.named_buffers())}


def operators(function: Any, *arguments: Any) -> list[str]:
    """The library's operators that a call runs."""
    with Calls() as calls:
        function(*arguments)
    return [name.split("::")[1] for name in calls.names if name.startswith("involution::")]


# ---- both ways are the same ----

COMBINATIONS = list(
    itertools.product(
        (1, 2),  # stride
        ((1, 1), (7, 5), (16, 33)),
        (4, 3, 32),  # reduction: 8, 10 and 1 features
        (True, False),  # bias
    )
)


@pytest.mark.parametrize(("stride", "size", "ratio", "bias"), COMBINATIONS)
def test_fused_and_unfused_layers_agree(stride, size, ratio, bias, available) -> None:
    """In float64, output, gradients and running statistics; odd maps, a single position, maps larger than a tile."""
    fused, plain = twins(
        lambda fused: Involution2d(
            32, 5, stride, reduction_ratio=ratio, bias=bias, fused=fused, dtype=torch.float64
        )
    )
    x = torch.randn(3, 32, *size, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    expected, result = outcome(plain, x), outcome(fused, x)
    assert result.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(result[name], tensor, rtol=1e-9, atol=1e-9, msg=name)
    assert result["output"].stride() == expected["output"].stride()


LAYERS = [
    (lambda **options: Involution1d(6, 4, 3, groups=3, **options), (6, 11)),
    (lambda **options: Involution2d(8, (2, 5), (3, 1), "same", (3, 1), groups=8, **options), (8, 7, 4)),
    (lambda **options: Involution2d(6, 3, 2, 0, groups=3, **options), (6, 7, 8)),
    (lambda **options: Involution2d(6, 5, 2, (1, 4), norm_layer=None, groups=1, **options), (6, 8, 7)),
    (lambda **options: Involution2d(12, 7, groups=3, out_channels=6, **options), (12, 2, 1)),
    (lambda **options: Involution3d(4, (1, 3, 2), (1, 2, 2), groups=2, **options), (4, 3, 5, 4)),
]


@pytest.mark.parametrize("case", LAYERS, ids=range(len(LAYERS)))
def test_every_kind_of_layer_agrees(case, available) -> None:
    make, shape = case
    fused, plain = twins(lambda fused: make(fused=fused, dtype=torch.float64))
    x = torch.randn(2, *shape, dtype=torch.float64)
    assert operators(copy.deepcopy(fused), x) == ["fused_involution"]
    assert operators(copy.deepcopy(plain), x) == ["involution"]
    expected, result = outcome(plain, x), outcome(fused, x)
    for name, tensor in expected.items():
        torch.testing.assert_close(result[name], tensor, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_under_autocast_and_in_half_types(dtype, available) -> None:
    fused, plain = twins(lambda fused: Involution2d(32, 7, 2, fused=fused))
    x = torch.randn(2, 32, 9, 10).contiguous(memory_format=torch.channels_last)
    if dtype is torch.bfloat16:
        fused, plain, x = fused.to(dtype), plain.to(dtype), x.to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.float32):
        expected, result = plain(x), fused(x)
    assert result.dtype == expected.dtype == torch.bfloat16
    largest = expected.abs().max().item()
    torch.testing.assert_close(result, expected, rtol=0, atol=2e-2 * largest)


def test_the_state_is_the_same() -> None:
    fused, plain = Involution2d(32, fused=True), Involution2d(32)
    assert fused.state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(fused.state_dict())
    assert "fused=True" in repr(fused) and "fused" not in repr(plain)


# ---- memory ----


def kept_bytes(layer: nn.Module, x: Tensor) -> dict[int, int]:
    """The storages that autograd keeps for a backward pass, and their sizes."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x)
    return kept


def test_the_kernel_tensor_is_not_kept(available) -> None:
    """All that the unfused layer keeps, but for the kernels: three times the input at K=7 and 16 channels a group."""
    fused, plain = twins(lambda fused: Involution2d(64, 7, fused=fused))
    x = torch.randn(2, 64, 14, 14).contiguous(memory_format=torch.channels_last).requires_grad_()
    kernels = 2 * 4 * 49 * 14 * 14 * 4
    without, with_kernels = kept_bytes(fused, x), kept_bytes(plain, x)
    assert kernels in with_kernels.values() and kernels not in without.values()
    bias = fused.span.bias.untyped_storage().nbytes()  # kept to make the kernels again
    assert sum(with_kernels.values()) - sum(without.values()) == kernels - bias
    assert kernels > 3 * x.numel() * 4


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


def test_what_is_traced_for_every_input_is_not_fused(available) -> None:
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
def test_what_is_not_a_plain_product_is_not_fused(how, available, on_cuda) -> None:
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


def test_small_maps_of_many_features_are_left_to_a_matrix_product(available) -> None:
    """A choice of speed alone: fused=True does not ask."""
    assert _fused.why_slower(torch.empty(63, 128, 7, 7)) is None
    assert _fused.why_slower(torch.empty(64, 120, 7, 7)) is None
    assert _fused.why_slower(torch.empty(64, 128, 8, 7)) is None
    assert "128 features on 64 maps of (7, 7)" in _fused.why_slower(torch.empty(64, 128, 7, 7))
    layer = Involution2d(16, 3, reduction_ratio=1)
    layer.span = nn.Conv2d(128, 9, 1)
    layer.reduce, layer.norm = nn.Conv2d(16, 128, 1), nn.BatchNorm2d(128)
    x = torch.randn(64, 16, 7, 7)
    assert operators(layer, x) == ["involution"]
    layer.fused = True
    assert operators(layer, x) == ["fused_involution"]


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


# ---- the unfused path on CUDA ----


@pytest.mark.parametrize("size", [(8, 10), (9, 7), (1, 1)])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_a_matrix_product_and_a_later_pool_change_nothing(size, stride, monkeypatch) -> None:
    """Kernels by F.linear, and the average behind the reduction, with which it commutes, its bias too."""
    torch.manual_seed(0)
    layer = Involution2d(32, 3, stride, norm_layer=None, dtype=torch.float64)
    nn.init.normal_(layer.reduce.bias), nn.init.normal_(layer.span.bias)
    x = torch.randn(2, 32, *size, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    expected = outcome(copy.deepcopy(layer), x)
    monkeypatch.setattr(kernel_branch, "_on_cuda", lambda tensor: True)
    pooled = []
    if layer.pool is not None:
        layer.pool.register_forward_pre_hook(lambda module, args: pooled.append(args[0].shape[1]))
    with Calls() as calls:
        layer(x)
    assert pooled == ([8] if stride > 1 else [])
    one_position = size == (1, 1) or (stride == 3 and size == (1, 1))
    assert calls.names.count("aten::convolution") == (2 if one_position else 1)
    for name, tensor in outcome(layer, x).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-10, atol=1e-10, msg=name)
    assert layer(x).is_contiguous(memory_format=torch.channels_last)


def test_a_reduction_that_is_watched_comes_behind_the_pool(on_cuda) -> None:
    layer, seen = Involution2d(32, 3, 2), []
    layer.reduce.register_forward_hook(lambda module, args, output: seen.append(tuple(output.shape)))
    layer(torch.randn(2, 32, 9, 8))
    assert seen == [(2, 8, 5, 4)]


# ---- networks ----


def network(**arguments: Any) -> RedNet:
    """A network with a stem and a strided stage, and norms that matter."""
    torch.manual_seed(0)
    options = {"widths": (16, 32), "strides": (1, 2), "stem_channels": 32, "num_classes": 5, **arguments}
    model = RedNet((2, 1), **options).double()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.running_var):
                    tensor.uniform_(0.5, 2)
                module.weight *= torch.randn_like(module.weight).sign()
                module.bias.normal_(), module.running_mean.normal_()
    return model.eval()


def test_the_norm_and_relu_behind_an_involution_go_along(available) -> None:
    """As factors of the fused operator: nothing runs between it and the next convolution."""
    model = network()
    fused = fuse(model)
    x = torch.randn(2, 3, 45, 32, dtype=torch.float64)
    with torch.no_grad(), Calls() as calls:
        result = fused(x)
    # The factors are float32.
    torch.testing.assert_close(result, model(x), rtol=1e-5, atol=1e-5)
    names = [name for name in calls.names if not name.endswith(("view", "reshape", "alias", "detach"))]
    after = [names[i + 1] for i, name in enumerate(names) if name == "involution::fused_involution"]
    assert after == ["aten::convolution"] * 4
    assert not any("batch_norm" in name for name in names)


def test_the_epilogue_in_half_types(available) -> None:
    """Of float32 factors, also where the network is converted afterwards; as near as the norm that it stands for."""
    model = network()
    block = fuse(model).stages[0][0]
    epilogue, norm = block.involution.epilogue, model.stages[0][0].norm2
    x = torch.randn(2, 16, 9, 8, dtype=torch.float64)
    exact = norm(x).relu()
    scale, shift, relu = epilogue.bfloat16().factors()
    assert (scale.dtype, shift.dtype, relu) == (torch.float32, torch.float32, True)
    by_factors = involution._composition.apply_epilogue(x.bfloat16(), scale, shift, relu)
    errors = [(y.double() - exact).abs().max() for y in (by_factors, norm.bfloat16()(x.bfloat16()).relu())]
    assert by_factors.dtype == torch.bfloat16 and errors[0] <= 2 * errors[1]


@pytest.mark.parametrize("way", ["compile", "export"])
def test_fused_networks_are_compiled_and_exported(way, available) -> None:
    torch._dynamo.reset()
    model = fuse(network()).float()
    x = torch.randn(2, 3, 37, 45)
    with torch.no_grad():
        expected = model(x)
        if way == "compile":
            result = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
        else:
            dynamic = torch.export.Dim.DYNAMIC
            program = torch.export.export(model, (x,), dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic},))
            targets = [str(node.target) for node in program.graph.nodes]
            assert targets.count("involution.fused_involution.default") == 4
            result = program.module()(x)
            other = torch.randn(3, 3, 64, 33)
            torch.testing.assert_close(program.module()(other), model(other), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


def test_a_training_step_is_compiled(available) -> None:
    torch._dynamo.reset()
    fused, plain = twins(lambda fused: Involution2d(32, 3, 2, fused=fused or None, dtype=torch.float64))
    plain.fused = False
    x = torch.randn(2, 32, 9, 8, dtype=torch.float64)
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    result, expected = outcome(compiled, x), outcome(plain, x)
    for name, tensor in expected.items():
        torch.testing.assert_close(result.get(name, result.get(f"_orig_mod.{name}")), tensor, msg=name)


def test_the_choice_is_compiled(monkeypatch) -> None:
    """As for a GPU: without a break of the graph, the capability of the device being a constant."""
    torch._dynamo.reset()
    asked = []

    def device(index: int) -> str:
        asked.append(index)
        return "There is none."

    device._dynamo_marked_constant = True
    assert _fused._why_not_on._dynamo_marked_constant
    monkeypatch.setattr(_fused, "_why_not_on", device)
    monkeypatch.setattr(_fused, "DEVICE_TYPE", "cpu")
    x = torch.randn(2, 32, 5, 5)
    layer = Involution2d(32).eval()
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="eager")(x), layer(x))
    assert asked[0] == 0


def test_an_epilogue_of_a_norm_without_parameters(available) -> None:
    """Its factors travel with the state of the network, as the norm's statistics do."""
    norm = nn.BatchNorm2d(16, affine=False, dtype=torch.float64).eval()
    norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 16, 5, 4, dtype=torch.float64)
    epilogue, other = Epilogue(norm), Epilogue(nn.BatchNorm2d(16, affine=False, dtype=torch.float64).eval())
    other.load_state_dict(epilogue.state_dict())
    for each in (epilogue, other):
        result = involution._composition.apply_epilogue(x, *each.factors())
        torch.testing.assert_close(result, norm(x).relu(), rtol=1e-5, atol=1e-5)
        assert torch.equal(each(x), norm(x).relu())


def test_a_resized_stem_keeps_the_choice() -> None:
    stem = network().stem
    stem.involution.fused = False
    stem.resize_involution(7)
    assert stem.involution.fused is False and stem.involution.kernel_size == (7, 7)
