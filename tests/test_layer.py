"""InvolutionLayer against its composition of plain operations."""

from __future__ import annotations

import copy
import io
import math
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hooks import gradients_of, hooked
from torch import Tensor, nn

import involution
from involution import AttentionModule, InvolutionLayer, kernel_decompose
from involution.layers import attention


def neighbourhoods(x: Tensor, kernel_size: tuple[int, int]) -> Tensor:
    """(B, C, K, H, W): zeros around, the odd one of an even kernel at the end."""
    (kh, kw), (height, width) = kernel_size, x.shape[2:]
    padded = F.pad(x, ((kw - 1) // 2, kw // 2, (kh - 1) // 2, kh // 2))
    return F.unfold(padded, kernel_size).unflatten(1, (x.shape[1], kh * kw)).unflatten(3, (height, width))


def composed(layer: InvolutionLayer, x: Tensor) -> tuple[Tensor, Tensor]:
    """The layer's output and its kernels, from its parameters and nothing else of it."""
    p = dict(layer.named_parameters())
    groups, kernel_size = layer.groups, layer.kernel_size
    features = F.conv2d(x, p["conv.weight"], p["conv.bias"], layer.stride, layer.padding)
    query = torch.einsum("rc,bchw->brhw", p["attention.query.weight"][:, :, 0, 0], features)
    query = (query + p["attention.query.bias"][:, None, None]).unflatten(1, (groups, -1))
    key = torch.einsum("rc,bchw->brhw", p["attention.key.weight"][:, :, 0, 0], features)
    key = neighbourhoods(key, kernel_size).unflatten(1, (groups, -1))
    scores = torch.einsum("bgrhw,bgrkhw->bgkhw", query, key) / math.sqrt(query.shape[2])
    per_group = p["conv.weight"].flatten(2).reshape(groups, -1, math.prod(kernel_size))
    scores = scores + (per_group.sum(1) / math.sqrt(per_group.shape[1]))[:, :, None, None]
    weights = scores.exp() / scores.exp().sum(2, keepdim=True)
    values = torch.einsum("oc,bchw->bohw", p["value.weight"][:, :, 0, 0], features)
    values = neighbourhoods(values + p["value.bias"][:, None, None], kernel_size).unflatten(1, (groups, -1))
    fused = torch.einsum("bgkhw,bgckhw->bgchw", weights, values).flatten(1, 2)
    return features + fused, weights.unflatten(2, kernel_size)


# in, out, kernel, stride, padding, groups, height, width
CONFIGURATIONS: list[tuple[int, int, Any, Any, Any, int | None, int, int]] = [
    (3, 64, 3, 1, 0, None, 17, 19),
    (1, 1, 1, 1, 0, None, 1, 1),
    (1, 1, 3, 1, 1, None, 1, 1),
    (2, 3, 3, 1, 1, None, 5, 7),
    (3, 7, 5, 2, 2, 1, 11, 6),
    (4, 8, 2, 1, 0, 2, 6, 5),
    (4, 8, 4, 1, "same", 4, 7, 3),
    (4, 8, (3, 2), (2, 3), (1, 0), 2, 13, 11),
    (5, 6, (1, 5), 1, (0, 2), 3, 3, 4),
    (2, 4, 7, 1, 3, 1, 2, 3),  # larger than the map
    (2, 4, 7, 3, 3, 2, 1, 9),
    (2, 34, 3, 2, "valid", None, 9, 8),
    (3, 32, 7, 1, "same", 2, 10, 12),
]


def make(configuration: tuple, **keywords: Any) -> tuple[InvolutionLayer, Tensor]:
    torch.manual_seed(0)
    *arguments, groups, height, width = configuration
    layer = InvolutionLayer(*arguments, groups=groups, **keywords)
    return layer, torch.randn(2, arguments[0], height, width, **keywords)


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=str)
def test_equals_the_composition(configuration):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's convolution on "same" with an even kernel
        layer, x = make(configuration, dtype=torch.float64)
        x.requires_grad_()
        output, (expected, kernels) = layer(x), composed(layer, x)
        weights = layer.attention(layer.conv(x), kernel_decompose(layer.conv.weight))
        assert output.shape == layer.conv(x).shape
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(weights, kernels, rtol=1e-10, atol=1e-12)

    inputs = [x, *layer.parameters()]
    upstream = torch.randn_like(output)
    got = torch.autograd.grad(output, inputs, upstream)
    want = torch.autograd.grad(expected, inputs, upstream, allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


def test_the_example():
    assert InvolutionLayer(3, 64, 3)(torch.randn(1, 3, 224, 224)).shape == (1, 64, 222, 222)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_dtypes_and_layouts(dtype, channels_last):
    configuration = (3, 32, 7, 1, 3, 2, 12, 9)
    layer, x = make(configuration, dtype=dtype)
    exact, _ = composed(copy.deepcopy(layer).double(), x.double())
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
        layer = layer.to(memory_format=torch.channels_last)
    output = layer(x)
    assert output.dtype == dtype
    assert output.is_contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )
    # The plain formula rounds after every step in the same type; twice its error is allowed.
    plain, _ = composed(layer, x)
    error, allowed = ((y.double() - exact).abs().max() for y in (output, plain))
    epsilon = torch.finfo(dtype).eps
    assert error <= 2 * allowed + epsilon
    assert error <= 16 * epsilon * exact.abs().max()


def test_the_kernels_are_never_copied_to_another_layout():
    module = AttentionModule(32, 3)
    points = torch.randn(9, 32, 3)
    features = torch.randn(2, 32, 5, 6)
    assert module(features, points).is_contiguous()
    innermost = module(features.contiguous(memory_format=torch.channels_last), points)
    assert innermost.permute(0, 4, 5, 1, 2, 3).is_contiguous()
    torch.testing.assert_close(innermost, module(features, points))


def test_weights_sum_to_one():
    weights = AttentionModule(32, (3, 5))(torch.randn(2, 32, 6, 7), torch.randn(15, 32, 4))
    assert weights.shape == (2, 2, 3, 5, 6, 7)
    torch.testing.assert_close(weights.sum((2, 3)), torch.ones(2, 2, 6, 7))


def test_prior_is_felt_where_attention_is_silent():
    module = AttentionModule(4, 3, groups=2)
    torch.nn.init.zeros_(module.key.weight)
    points = torch.randn(9, 4, 3)
    weights = module(torch.randn(1, 4, 5, 5), points)
    prior = points.unflatten(1, (2, 2)).sum((2, 3)).t() / math.sqrt(6)
    everywhere = prior.softmax(1).reshape(1, 2, 3, 3, 1, 1).expand_as(weights)
    torch.testing.assert_close(weights, everywhere)


@pytest.mark.parametrize("channels", [16, 512])
def test_score_and_prior_keep_their_scale_whatever_the_width(channels):
    torch.manual_seed(0)
    layer = InvolutionLayer(channels, channels, 3)
    weight = layer.conv.weight
    prior = attention._prior(kernel_decompose(weight), (3, 3), channels, layer.groups)
    assert 0.5 < prior.std() / weight.std() < 2


def test_autocast():
    layer, x = make((3, 32, 3, 1, 1, None, 8, 8))
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(x)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), layer(x), rtol=0.05, atol=0.05)
    output.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in layer.parameters())


def test_hooks_see_what_stays():
    layer, x = make((3, 8, 3, 1, 1, 2, 6, 7), dtype=torch.float64)
    x.requires_grad_()
    torch.testing.assert_close(hooked(layer, x), gradients_of(layer, x))


def test_gradcheck():
    layer, x = make((2, 4, (3, 2), 1, 1, 2, 4, 3), dtype=torch.float64)
    names = [name for name, _ in layer.named_parameters()]

    def function(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    inputs = (x.requires_grad_(), *layer.parameters())
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("out_channels", [1, 2, 5, 64])
def test_gradients_reach_every_parameter(out_channels):
    torch.manual_seed(0)
    layer = InvolutionLayer(3, out_channels, 3)
    layer(torch.randn(2, 3, 9, 9)).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-6, f"{name} gets no gradient"


def test_gradients_do_not_come_from_the_border_alone():
    torch.manual_seed(0)
    layer = InvolutionLayer(3, 8, 3)
    layer(torch.randn(1, 3, 11, 11))[:, :, 3:-3, 3:-3].square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad.abs().max() > 1e-6, f"{name} gets no gradient from the interior"


def test_the_convolution_learns_through_the_prior_too():
    layer, x = make((3, 8, 3, 1, 1, 2, 6, 6), dtype=torch.float64)
    features = layer.conv(x).detach()
    weights = layer.attention(features, kernel_decompose(layer.conv.weight))
    involution.involution2d(layer.value(features), weights, padding="same").square().sum().backward()
    assert layer.conv.weight.grad.abs().max() > 1e-6


def doubled_by_hooks(layer: InvolutionLayer) -> None:
    """The weight is another for the call alone."""
    saved = {}

    def before(conv: nn.Module, arguments: tuple) -> None:
        saved["weight"] = conv._parameters.pop("weight")
        conv.weight = 2 * saved["weight"]

    def after(conv: nn.Module, arguments: tuple, output: Any) -> None:
        del conv.weight
        conv.register_parameter("weight", saved.pop("weight"))

    layer.conv.register_forward_pre_hook(before)
    layer.conv.register_forward_hook(after)


def doubled_by_forward(layer: InvolutionLayer) -> None:
    """As offloading does, around the module's forward: meta tensors at all other times."""
    conv, weight, forward = layer.conv, layer.conv.weight, layer.conv.forward
    conv.register_parameter("weight", nn.Parameter(weight.detach().to("meta")))

    def managed(*arguments: Any, **keywords: Any) -> Any:
        meta = conv._parameters.pop("weight")
        conv.weight = 2 * weight
        try:
            return forward(*arguments, **keywords)
        finally:
            del conv.weight
            conv.register_parameter("weight", meta)

    conv.forward = managed


def doubled_for_one_reading(layer: InvolutionLayer) -> None:
    """A parametrisation that gives zeros from its second reading on."""

    class Once(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factors = [2.0]

        def forward(self, weight: Tensor) -> Tensor:
            return weight * (self.factors.pop() if self.factors else 0.0)

    nn.utils.parametrize.register_parametrization(layer.conv, "weight", Once(), unsafe=True)


@pytest.mark.parametrize("manage", [doubled_by_hooks, doubled_by_forward, doubled_for_one_reading])
def test_the_weight_is_read_in_the_convolutions_own_forward(manage):
    layer, x = make((3, 8, 3, 1, 1, 2, 6, 7), dtype=torch.float64)
    plain = copy.deepcopy(layer)
    with torch.no_grad():
        plain.conv.weight *= 2
    expected, _ = composed(plain, x)
    weight = layer.conv.weight
    manage(layer)
    output = layer(x)
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-12)
    upstream = torch.randn_like(output)
    (want,) = torch.autograd.grad(expected, [plain.conv.weight], upstream)
    torch.testing.assert_close(torch.autograd.grad(output, [weight], upstream)[0], 2 * want)


def test_kernel_points_of_the_convolution_are_not_its_weight():
    """A view of a weight that is freed after the call would hold nothing."""
    layer, x = make((3, 8, (2, 3), 1, 1, 2, 6, 7))
    features, points = layer.conv(x, kernel_points=True)
    assert torch.equal(features, layer.conv(x)) and torch.equal(points, kernel_decompose(layer.conv.weight))
    layer.conv.weight.data.zero_()
    assert points.all()


@pytest.mark.parametrize("channels", [*range(1, 70), 96, 128, 256, 1024])
def test_default_groups(channels):
    reduced = max(1, channels // 2)
    groups = InvolutionLayer(1, channels, 1, device="meta").groups
    assert channels % groups == 0
    assert reduced % groups == 0
    assert groups == 1 or channels // groups >= attention.GROUP_WIDTH
    if channels % 32 == 0:
        assert channels // groups == 16


def test_device_and_dtype_arguments():
    layer = InvolutionLayer(3, 16, 3, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", torch.bfloat16)}
    assert layer(torch.empty(2, 3, 8, 8, device="meta", dtype=torch.bfloat16)).shape == (2, 16, 6, 6)


def test_empty_batch():
    assert InvolutionLayer(3, 16, 3)(torch.empty(0, 3, 8, 8)).shape == (0, 16, 6, 6)


def test_state_dict_and_deep_copy():
    layer, x = make((3, 16, 3, 1, 0, None, 8, 8))
    assert set(layer.state_dict()) == {
        "conv.weight",
        "conv.bias",
        "attention.query.weight",
        "attention.query.bias",
        "attention.key.weight",
        "value.weight",
        "value.bias",
    }
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = InvolutionLayer(3, 16, 3)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(x), layer(x))

    twin = copy.deepcopy(layer)
    assert torch.equal(twin(x), layer(x))
    torch.nn.init.zeros_(twin.conv.weight)
    assert not torch.equal(twin(x), layer(x))


def test_repr_names_the_arguments():
    text = repr(InvolutionLayer(3, 32, 3, 2, "valid"))
    assert "3, 32, kernel_size=(3, 3), stride=(2, 2), padding='valid', groups=2" in text
    assert "(attention): AttentionModule(\n    32, kernel_size=(3, 3), groups=2" in text


BAD_ARGUMENTS = [
    ((0, 8, 3), {}, ValueError, "in_channels must be at least 1, not 0."),
    ((3, -2, 3), {}, ValueError, "out_channels must be at least 1, not -2."),
    ((3, 8.0, 3), {}, TypeError, "out_channels must be an integer, not 8.0 of type float."),
    ((3, 8, 0), {}, ValueError, "kernel_size must be at least 1 along every axis, not 0."),
    ((3, 8, (3, 3, 3)), {}, ValueError, r"kernel_size must be one integer or 2.*\(3, 3, 3\) has 3"),
    ((3, 8, 3, 0), {}, ValueError, "stride must be at least 1 along every axis, not 0."),
    ((3, 8, 3, 1, -1), {}, ValueError, "padding must be at least 0 along every axis, not -1."),
    ((3, 8, 3, 2, "same"), {}, ValueError, 'padding="same" needs a stride of 1, but stride is 2.'),
    ((3, 8, 3, 1, "full"), {}, ValueError, 'padding must be integers, "same" or "valid", not \'full\'.'),
    ((3, 8, 3), {"groups": 0}, ValueError, "groups must be at least 1, not 0."),
    ((3, 8, 3), {"groups": 2.0}, TypeError, "groups must be an integer, not 2.0 of type float."),
    (
        (3, 12, 3),
        {"groups": 4},
        ValueError,
        "groups must divide the 12 channels and the 6 channels of query and key, but it is 4; "
        "1, 2, 3 or 6 would do.",
    ),
    ((3, 7, 3), {"groups": 7}, ValueError, "the 3 channels of query and key, but it is 7; 1 would do."),
]


@pytest.mark.parametrize(("arguments", "keywords", "error", "message"), BAD_ARGUMENTS, ids=str)
def test_bad_arguments(arguments, keywords, error, message):
    with pytest.raises(error, match=message):
        InvolutionLayer(*arguments, **keywords)


def test_bad_inputs():
    layer = InvolutionLayer(3, 8, 3)
    with pytest.raises(
        ValueError, match=r"input must be \(batch, 3, height, width\), but its shape is \(3, 8, 8\)."
    ):
        layer(torch.randn(3, 8, 8))
    with pytest.raises(
        ValueError, match=r"input must be \(batch, 3, height, width\), but its shape is \(1, 4, 8, 8\)."
    ):
        layer(torch.randn(1, 4, 8, 8))
    with pytest.raises(TypeError, match=r"input must be a tensor, not list\."):
        layer([1.0])
    with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
        layer(torch.randn(1, 3, 2, 8))
    with pytest.raises(
        ValueError,
        match=r"kernel_points must be \(9, 8\) followed .* of size \(3, 3\), but its shape is \(4, 8, 3\).",
    ):
        layer.attention(torch.randn(1, 8, 5, 5), torch.randn(4, 8, 3))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_on_the_gpu(dtype, memory_format):
    layer, x = make((3, 64, 7, 1, 3, None, 30, 29), dtype=dtype)
    exact, _ = composed(copy.deepcopy(layer).double(), x.double())
    layer, x = layer.cuda(), x.cuda().contiguous(memory_format=memory_format)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        output = layer(x)
    assert output.is_contiguous(memory_format=memory_format)
    error = (output.double().cpu() - exact).abs().max()
    assert error <= 16 * torch.finfo(dtype).eps * exact.abs().max()
    output.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in layer.parameters())
