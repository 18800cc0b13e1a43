"""Layers by the fused kernel and without it: the same results, memory, networks."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from fused_layers import Calls, operators
from small_models import randomise_norms
from torch import Tensor, nn

import involution
from involution import Involution1d, Involution2d, Involution3d, _fused
from involution.layers import kernel_branch
from involution.layers.epilogue import Epilogue
from involution.models import RedNet, fuse


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
def test_fused_and_unfused_layers_agree(stride, size, ratio, bias, everything_fused) -> None:
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
def test_every_kind_of_layer_agrees(case, everything_fused) -> None:
    make, shape = case
    fused, plain = twins(lambda fused: make(fused=fused, dtype=torch.float64))
    x = torch.randn(2, *shape, dtype=torch.float64)
    assert operators(copy.deepcopy(fused), x) == ["fused_involution"]
    assert operators(copy.deepcopy(plain), x) == ["involution"]
    expected, result = outcome(plain, x), outcome(fused, x)
    for name, tensor in expected.items():
        torch.testing.assert_close(result[name], tensor, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_under_autocast_and_in_half_types(dtype, everything_fused) -> None:
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


def test_the_kernel_tensor_is_not_kept(everything_fused) -> None:
    """All that the unfused layer keeps, but for the kernels: three times the input at K=7 and 16 channels a group."""
    fused, plain = twins(lambda fused: Involution2d(64, 7, fused=fused))
    x = torch.randn(2, 64, 14, 14).contiguous(memory_format=torch.channels_last).requires_grad_()
    kernels = 2 * 4 * 49 * 14 * 14 * 4
    without, with_kernels = kept_bytes(fused, x), kept_bytes(plain, x)
    assert kernels in with_kernels.values() and kernels not in without.values()
    bias = fused.span.bias.untyped_storage().nbytes()  # kept to make the kernels again
    assert sum(with_kernels.values()) - sum(without.values()) == kernels - bias
    assert kernels > 3 * x.numel() * 4


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


def test_a_reduction_that_is_watched_comes_behind_the_pool(cuda_pretended) -> None:
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
    randomise_norms(model)
    return model.eval()


def test_the_norm_and_relu_behind_an_involution_go_along(everything_fused) -> None:
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


def test_the_epilogue_in_half_types(everything_fused) -> None:
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
def test_fused_networks_are_compiled_and_exported(way, everything_fused) -> None:
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


def test_a_training_step_is_compiled(everything_fused) -> None:
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


def test_the_choice_under_vmap(monkeypatch) -> None:
    """As for a GPU: storage is asked for of a tensor that has an axis more than the layer sees."""
    monkeypatch.setattr(_fused, "_why_not_on", lambda index: None)
    monkeypatch.setattr(_fused, "DEVICE_TYPE", "cpu")
    layer = Involution2d(32, dtype=torch.bfloat16).eval()
    for x in (torch.randn(3, 2, 9, 5, 32).movedim(-1, 2), torch.randn(3, 2, 32, 9, 5)):
        expected = torch.stack([layer(images) for images in x.bfloat16()])
        result = torch.func.vmap(layer)(x.bfloat16())
        torch.testing.assert_close(result, expected, rtol=0.02, atol=0.02)


def test_an_epilogue_of_a_norm_without_parameters(everything_fused) -> None:
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
