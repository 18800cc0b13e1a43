"""The fused involution on a CUDA device: its kernel against the definition, and layers both ways."""

import math

import fused_cases
import pytest
import torch
from cases import Case
from fused_cases import FusedCase
from torch import Tensor

import involution
from involution import Involution2d

pytestmark = pytest.mark.gpu

OPERATOR = torch.ops.involution.fused_involution.default
EACH_HALF = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)


def layers(
    channels: int, kernel_size: int, stride: int, dtype: torch.dtype
) -> tuple[Involution2d, Involution2d]:
    """A layer that must take the fused kernel, and the same one that must not."""
    torch.manual_seed(0)
    fused, plain = (
        Involution2d(channels, kernel_size, stride, fused=fused, device="cuda") for fused in (True, False)
    )
    torch.nn.init.normal_(fused.span.bias)
    plain.load_state_dict(fused.state_dict())
    return tuple(layer.to(dtype, memory_format=torch.channels_last) for layer in (fused, plain))


def image(channels: int, size: tuple[int, int], dtype: torch.dtype, batch: int = 2) -> torch.Tensor:
    x = torch.randn(batch, channels, *size, device="cuda", dtype=dtype)
    return x.contiguous(memory_format=torch.channels_last)


def by_definition(tensors: list[Tensor | None], arguments: tuple, scale: Tensor, shift: Tensor) -> Tensor:
    """The operator with its epilogue, in the dtype of the tensors: kernels first, then a loop over their points."""
    x, z, w, b = tensors
    kernel_size, *window = arguments
    kernels = torch.einsum("pr,brhw->bphw", w, z)
    if b is not None:
        kernels = kernels + b.view(-1, 1, 1)
    groups = w.shape[0] // math.prod(kernel_size)
    output = involution.reference.involution(x, kernels.unflatten(1, (groups, *kernel_size)), *window)
    return (output.double() * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)).relu()


@EACH_HALF
@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (14, 14), (33, 70)])
@pytest.mark.parametrize(("reduced", "groups", "bias"), [(8, 1, True), (24, 3, False), (128, 4, True)])
def test_the_operator(kernel, stride, size, reduced, groups, bias, dtype: torch.dtype) -> None:
    """As near to float64 as twice the plain formula in the same dtype, and the same bit by bit when it runs again."""
    square = ((kernel,) * 2, (stride,) * 2, (kernel // 2,) * 2, (1, 1))
    case = FusedCase(Case(3, groups, 16, size, *square, dtype), reduced, bias)
    tensors = [tensor if tensor is None else tensor.cuda() for tensor in case.tensors()]
    tensors[:2] = (tensor.contiguous(memory_format=torch.channels_last) for tensor in tensors[:2])
    scale, shift = (factor.cuda() for factor in fused_cases.epilogue_of(case))
    assert involution.fused_available(*tensors[:3], *case.arguments)
    result = OPERATOR(*tensors, *case.arguments, scale, shift, True)
    assert result.is_contiguous(memory_format=torch.channels_last) and result.dtype == dtype
    assert torch.equal(result, OPERATOR(*tensors, *case.arguments, scale, shift, True))
    doubles = [tensor if tensor is None else tensor.double() for tensor in tensors]
    exact = by_definition(doubles, case.arguments, scale, shift)
    plain = by_definition(tensors, case.arguments, scale, shift)
    largest = max(exact.abs().max().item(), 1.0)
    bound = 2 * (plain - exact).abs().max().item() + 4 * torch.finfo(dtype).eps * largest
    assert (result - exact).abs().max().item() <= bound


@EACH_HALF
@pytest.mark.parametrize("stride", [1, 2])
def test_layers_agree(stride: int, dtype: torch.dtype) -> None:
    """Output and all gradients, within the rounding of the type."""
    fused, plain = layers(64, 7, stride, dtype)
    x = image(64, (29, 30), dtype)
    results = []
    for layer in (fused, plain):
        given = x.clone(memory_format=torch.preserve_format).requires_grad_()
        output = layer(given)
        output.float().square().mean().backward()
        results.append([output, given.grad, *(parameter.grad for parameter in layer.parameters())])
    for result, expected in zip(*results, strict=True):
        largest = expected.float().abs().max().item()
        torch.testing.assert_close(result, expected, rtol=0, atol=5e-2 * largest)


def test_training_takes_less_memory() -> None:
    peaks = []
    for layer in layers(64, 7, 1, torch.bfloat16):
        x = image(64, (56, 56), torch.bfloat16, batch=64).requires_grad_()
        layer(x).sum().backward()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        layer(x).sum().backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[0] < peaks[1]


def test_cuda_graph_and_compile() -> None:
    layer = layers(64, 7, 1, torch.bfloat16)[0].eval()
    x = image(64, (28, 28), torch.bfloat16)
    with torch.no_grad():
        expected = layer(x)
        torch._dynamo.reset()
        compiled = torch.compile(layer, fullgraph=True)(x)
        torch.testing.assert_close(compiled, expected, rtol=2e-2, atol=2e-2 * expected.abs().max().item())
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = layer(x)
        graph.replay()
    assert torch.equal(captured, expected)
