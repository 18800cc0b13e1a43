"""Involution and its transpose as layers against their composition, and what all layers do."""

from __future__ import annotations

import copy
import functools
import itertools
import pickle
from typing import Any

import layer_oracle as oracle
import pytest
import torch
from hooks import gradients_of, hooked
from layer_cases import ATTENTIONS, parameters, randomise, tuples
from torch import Tensor, nn

import involution
from involution import (
    Involution1d,
    Involution2d,
    Involution3d,
    InvolutionTranspose2d,
    LocalAttention2d,
)

LAYERS = {1: Involution1d, 2: Involution2d, 3: Involution3d}


TRANSPOSES = {axes: getattr(involution, f"InvolutionTranspose{axes}d") for axes in (1, 2, 3)}


# axes, channels, kernel, stride, padding, dilation, keywords, space
INVOLUTIONS: list[tuple[int, int, Any, Any, Any, Any, dict[str, Any], tuple[int, ...]]] = [
    (2, 32, 7, 1, "same", 1, {}, (9, 11)),  # RedNet's
    (2, 32, 7, 2, "same", 1, {}, (8, 10)),
    (2, 32, 7, 2, "same", 1, {}, (9, 7)),
    (2, 16, 3, 3, "same", 2, {"group_channels": 4}, (7, 11)),
    (2, 8, 4, 2, "same", 1, {"groups": 2}, (5, 6)),  # even
    (2, 8, (2, 5), (3, 1), "same", (3, 1), {"groups": 8, "reduction_ratio": 1}, (7, 4)),
    (2, 12, 7, 1, "same", 1, {"groups": 3, "out_channels": 6}, (2, 1)),  # larger than the map
    (2, 6, 1, 2, "same", 1, {"groups": 2}, (1, 1)),
    (2, 6, 3, 2, 0, 1, {"groups": 3}, (7, 8)),
    (2, 6, 5, 2, (1, 4), 1, {"groups": 1, "norm_layer": None}, (8, 7)),
    (2, 6, (3, 4), (2, 3), "valid", 2, {"bias": False, "kernel_normalizer": "softmax"}, (9, 11)),
    (1, 32, 7, 1, "same", 1, {}, (13,)),
    (1, 5, 4, 3, "same", 2, {"kernel_normalizer": "softmax"}, (11,)),
    (1, 6, 9, 2, 1, 1, {"out_channels": 4, "groups": 2}, (10,)),
    (3, 16, 3, 1, "same", 1, {"groups": 4}, (3, 5, 4)),
    (3, 4, (1, 3, 2), (1, 2, 2), "same", (1, 2, 1), {"kernel_normalizer": "softmax"}, (2, 5, 7)),
    (3, 4, (2, 3, 3), 2, (1, 0, 2), 1, {"groups": 2}, (4, 5, 6)),
]


def involution_case(case: tuple, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor, Any]:
    """The layer, an input, and the composition as a function of input, parameters and training."""
    torch.manual_seed(0)
    axes, channels, kernel, stride, padding, dilation, keywords, space = case
    layer = LAYERS[axes](channels, kernel, stride, padding, dilation, **keywords, dtype=dtype)
    randomise(layer)
    normalise = functools.partial(torch.softmax, dim=2) if "kernel_normalizer" in keywords else None
    padded = padding if isinstance(padding, str) else tuples(padding, axes)

    def composed(x: Tensor, p: dict[str, Tensor], training: bool) -> Tensor:
        sizes = (tuples(kernel, axes), tuples(stride, axes), padded, tuples(dilation, axes))
        return oracle.involution_layer(x, p, layer.groups, *sizes, training, normalise)

    return layer, torch.randn(3, channels, *space, dtype=dtype), composed


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("case", INVOLUTIONS, ids=str)
def test_involution_equals_the_composition(case, training):
    layer, x, composed = involution_case(case)
    layer.train(training)
    p = {name: t.requires_grad_(t.is_floating_point()) for name, t in parameters(layer).items()}
    x.requires_grad_()
    expected = composed(x, p, training)
    output = layer(x)
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-11)

    names = [name for name, _ in layer.named_parameters()]
    upstream = torch.randn_like(output)
    got = torch.autograd.grad(output, [x, *layer.parameters()], upstream)
    want = torch.autograd.grad(expected, [x, *(p[name] for name in names)], upstream)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("case", [INVOLUTIONS[i] for i in (0, 2, 3, 11, 14)], ids=str)
def test_involution_in_float32_is_as_exact_as_the_composition(case, training):
    layer, x, composed = involution_case(case, torch.float32)
    layer.train(training)
    p = parameters(layer)
    exact = composed(x.double(), p, training)
    plain = composed(x, {name: t.float() for name, t in p.items()}, training)
    error, allowed = ((y.double() - exact).abs().max() for y in (layer(x), plain))
    epsilon = torch.finfo(torch.float32).eps
    assert error <= 2 * allowed + epsilon * exact.abs().max()
    assert error <= 64 * epsilon * exact.abs().max()


def test_every_window_gets_a_kernel():
    """Whatever stride, padding and dilation: the pooled branch has the size that a convolution would have."""
    refused = 0
    sizes = (1, 2, 3, 4, 7), (1, 2, 3), (1, 2, 3), ("same", "valid", 1, 2, 5), (1, 2, 6, 13)
    for kernel, stride, dilation, padding, size in itertools.product(*sizes):
        layer = Involution1d(1, kernel, stride, padding, dilation, norm_layer=None, device="meta")
        x = torch.empty(1, 1, size, device="meta")
        amount = 0 if isinstance(padding, str) else padding
        out = (size + 2 * amount - dilation * (kernel - 1) - 1) // stride + 1
        if padding == "same":
            out = -(-size // stride)
        elif size + 2 * amount <= dilation * (kernel - 1):
            with pytest.raises(ValueError, match="larger than the padded input"):
                layer(x)
            refused += 1
            continue
        assert layer(x).shape == (1, 1, out), (kernel, stride, dilation, padding, size)
    assert refused


TRANSPOSED: list[tuple[int, int, Any, Any, Any, Any, Any, dict[str, Any], tuple[int, ...]]] = [
    (2, 32, 4, 2, "same", 0, 1, {}, (5, 4)),
    (2, 8, 5, 2, "same", 0, 1, {"groups": 2}, (3, 4)),
    (2, 8, (2, 3), (1, 2), "same", 0, (3, 1), {"groups": 4, "kernel_normalizer": "softmax"}, (5, 3)),
    (2, 6, 3, 2, 1, 1, 1, {"out_channels": 4}, (4, 3)),
    (2, 6, 3, (3, 2), (0, 1), (2, 0), 1, {"groups": 2}, (3, 4)),
    (1, 5, 7, 3, "same", 0, 1, {}, (6,)),
    (3, 4, (1, 2, 3), (1, 2, 2), "same", 0, 1, {"groups": 2}, (2, 3, 2)),
]


@pytest.mark.parametrize("case", TRANSPOSED, ids=str)
def test_transpose_equals_the_composition(case):
    torch.manual_seed(0)
    axes, channels, kernel, stride, padding, extra, dilation, keywords, space = case
    layer = randomise(
        TRANSPOSES[axes](channels, kernel, stride, padding, extra, dilation, **keywords, dtype=torch.float64)
    )
    x = torch.randn(2, channels, *space, dtype=torch.float64)
    kernel, stride, extra, dilation = (tuples(v, axes) for v in (kernel, stride, extra, dilation))
    if padding == "same":
        front = [(d * (k - 1) + 1 - s) // 2 for k, s, d in zip(kernel, stride, dilation, strict=True)]
        size = [n * s for n, s in zip(space, stride, strict=True)]
    else:
        front, size = tuples(padding, axes), []
        for n, k, s, f, e, d in zip(space, kernel, stride, front, extra, dilation, strict=True):
            size.append((n - 1) * s - 2 * f + d * (k - 1) + e + 1)
    p = parameters(layer)
    normalise = functools.partial(torch.softmax, dim=2) if "kernel_normalizer" in keywords else None
    kernels = oracle.make_kernels(x, p, layer.groups, kernel, True, normalise)
    values = oracle.pointwise(x, p, "project") if "project.weight" in p else x
    expected = oracle.transposed(values, kernels, kernel, stride, front, dilation, size)
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-11)


ALL = [
    *(functools.partial(layer, 32, 3, 2) for layer in LAYERS.values()),
    *(functools.partial(layer, 32, 4, 2) for layer in TRANSPOSES.values()),
    *(functools.partial(layer, 32, 3, 2) for layer in ATTENTIONS.values()),
]


EACH = pytest.mark.parametrize("make", ALL, ids=lambda make: make.func.__name__)


@EACH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types(make, dtype):
    torch.manual_seed(0)
    layer = make()
    x = torch.randn(2, 32, *(9, 8, 5)[: layer.axes])
    exact = copy.deepcopy(layer).double()(x.double())
    halved = layer.to(dtype)(x.to(dtype))
    assert halved.dtype == dtype
    assert (halved.double() - exact).abs().max() <= 64 * torch.finfo(dtype).eps * exact.abs().max()


@EACH
def test_autocast(make):
    torch.manual_seed(0)
    layer = make(**({"kernel_normalizer": "softmax"} if "Involution" in make.func.__name__ else {}))
    x = torch.randn(2, 32, *(9, 8, 5)[: layer.axes])
    exact = copy.deepcopy(layer).double()(x.double())
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(x)
    assert output.dtype == torch.bfloat16
    assert (output.double() - exact).abs().max() <= 2**-3 * exact.abs().max()
    output.sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


@pytest.mark.parametrize(
    "make", [m for m in ALL if m.func.__name__.endswith("2d")], ids=lambda m: m.func.__name__
)
def test_channels_last(make):
    layer = make().eval()
    x = torch.randn(2, 32, 9, 8)
    expected = layer(x)
    layer = layer.to(memory_format=torch.channels_last)
    output = layer(x.contiguous(memory_format=torch.channels_last))
    assert output.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


@EACH
@pytest.mark.parametrize("training", [True, False])
def test_hooks_see_what_stays(make, training):
    """Nothing is changed in place that a hook has seen, and a full backward hook allows no such change."""
    torch.manual_seed(0)
    layer = randomise(make()).train(training)
    x = torch.randn(2, 32, *(9, 8, 5)[: layer.axes], requires_grad=True)
    expected = gradients_of(copy.deepcopy(layer), x)
    torch.testing.assert_close(hooked(layer, x), expected)


@EACH
def test_results_may_be_changed_in_place(make):
    layer = make().eval()
    x = torch.randn(2, 32, *(9, 8, 5)[: layer.axes], requires_grad=True)
    expected = torch.autograd.grad(layer(x).relu().sum(), x)
    torch.testing.assert_close(torch.autograd.grad(layer(x).relu_().sum(), x), expected)


@EACH
def test_copies_pickles_and_state(make):
    torch.manual_seed(0)
    layer = make().eval()
    x = torch.randn(1, 32, *(5, 4, 3)[: layer.axes])
    expected = layer(x)
    fresh = make().eval()
    assert not torch.equal(fresh(x), expected)
    fresh.load_state_dict(layer.state_dict())
    for other in (fresh, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), expected)


@pytest.mark.parametrize(
    "make",
    [make for make in ALL if make.func.axes == 2 or make.func is Involution3d],
    ids=lambda m: m.func.__name__,
)
def test_compile_and_export(make):
    torch._dynamo.reset()
    torch.manual_seed(0)
    layer = make().eval()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    spaces = ((9, 8, 5), (11, 6, 7))
    inputs = [torch.randn(n, 32, *space[: layer.axes]) for n, space in zip((3, 2), spaces, strict=True)]
    for x in inputs:
        torch.testing.assert_close(compiled(x), layer(x))
    dynamic = torch.export.Dim.DYNAMIC
    shapes = ({0: dynamic, **{2 + axis: dynamic for axis in range(layer.axes)}},)
    program = torch.export.export(layer, (inputs[0],), dynamic_shapes=shapes)
    for x in inputs:
        torch.testing.assert_close(program.module()(x), layer(x))


@EACH
def test_device_and_dtype(make):
    layer = make(device="meta", dtype=torch.bfloat16)
    tensors = [*layer.parameters(), *(b for b in layer.buffers() if b.is_floating_point())]
    assert all(t.is_meta and t.dtype == torch.bfloat16 for t in tensors)
    with torch.device("meta"):
        assert all(t.is_meta for t in make().parameters())


def test_empty_batch():
    assert Involution2d(32, 3, 2).eval()(torch.randn(0, 32, 5, 4)).shape == (0, 32, 3, 2)


def test_names_of_the_state():
    names = ["reduce.weight", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"]
    names += ["norm.num_batches_tracked", "span.weight", "span.bias"]
    assert list(Involution2d(64).state_dict()) == names
    assert list(InvolutionTranspose2d(64).state_dict()) == names
    assert list(Involution2d(64, out_channels=32, norm_layer=None, bias=False).state_dict()) == [
        "reduce.weight",
        "reduce.bias",
        "span.weight",
        "project.weight",
    ]


def test_initialisation_is_kaimings_over_the_fan_out():
    torch.manual_seed(0)
    layer = Involution2d(512)
    assert layer.reduce.weight.shape == (128, 512, 1, 1)
    assert layer.span.weight.shape == (49 * 32, 128, 1, 1)
    assert layer.reduce.weight.std().item() == pytest.approx((2 / 128) ** 0.5, rel=0.02)
    assert layer.span.weight.std().item() == pytest.approx((2 / (49 * 32)) ** 0.5, rel=0.02)
    assert not layer.span.bias.any()
    before = copy.deepcopy(layer.state_dict())
    randomise(layer).reset_parameters()
    assert not layer.span.bias.any() and torch.equal(layer.norm.weight, torch.ones(128))
    assert not torch.equal(layer.reduce.weight, before["reduce.weight"])


def test_layers_of_ones_own():
    layer = Involution2d(
        32, norm_layer=lambda n: nn.GroupNorm(2, n), activation_layer=nn.GELU, dtype=torch.float64
    )
    assert isinstance(layer.norm, nn.GroupNorm) and layer.norm.weight.dtype == torch.float64
    assert isinstance(layer.activation, nn.GELU)
    assert layer(torch.randn(1, 32, 5, 5, dtype=torch.float64)).shape == (1, 32, 5, 5)
    linear = Involution2d(32, activation_layer=None)
    assert linear.activation is None
    assert linear(torch.randn(1, 32, 5, 5)).shape == (1, 32, 5, 5)


def test_a_class_makes_the_norm_and_the_activation():
    """As for torchvision's blocks, with what its constructor has as defaults, or with functools.partial."""
    layer = Involution3d(32, 3, norm_layer=nn.InstanceNorm3d, activation_layer=nn.SiLU, dtype=torch.float64)
    assert type(layer.norm) is nn.InstanceNorm3d and layer.norm.num_features == 8
    assert type(layer.activation) is nn.SiLU
    norm = functools.partial(nn.BatchNorm2d, eps=0.5)
    layer = InvolutionTranspose2d(32, norm_layer=norm, activation_layer=functools.partial(nn.LeakyReLU, 0.25))
    assert (layer.norm.eps, layer.activation.negative_slope) == (0.5, 0.25)
    assert layer(torch.randn(1, 32, 3, 3)).shape == (1, 32, 6, 6)


def test_a_normaliser_may_be_a_module():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = nn.Parameter(torch.tensor(0.0))

        def forward(self, points: Tensor) -> Tensor:
            assert points.shape == (1, 2, 49, 5, 4)
            return points * self.factor

    layer = Involution2d(32, kernel_normalizer=Scale())
    assert "kernel_normalizer.factor" in layer.state_dict()
    assert not layer(torch.randn(1, 32, 5, 4)).any()


def test_printing():
    assert Involution2d(64).extra_repr() == "64, kernel_size=7, groups=4"
    layer = Involution2d(64, (3, 5), 2, 1, 3, out_channels=32, kernel_normalizer="softmax")
    assert layer.extra_repr() == (
        "64, out_channels=32, kernel_size=(3, 5), groups=2, kernel_normalizer='softmax', stride=2, dilation=3, "
        "padding=(1, 1)"
    )
    assert InvolutionTranspose2d(64).extra_repr() == "64, kernel_size=4, groups=4, stride=2"
    assert LocalAttention2d(64, stride=2).extra_repr() == "64, kernel_size=7, num_heads=2, stride=2"
