"""The layers and a network as torch.compile sees them: one graph, whatever the batch and the size."""

from collections.abc import Callable

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, nn

import involution
from involution.models import RedNet


def small_rednet() -> RedNet:
    """A stem, and a block with a stride and a projection."""
    widths = {"widths": (16,), "strides": (2,), "stem_channels": 16, "expansion": 2}
    return RedNet((1,), **widths, stem="small", kernel_size=3, num_classes=4)


MODULES: dict[str, Callable[[], nn.Module]] = {
    "Involution2d": lambda: involution.Involution2d(3, kernel_size=3, groups=1, reduction_ratio=1),
    "Involution2d, strided": lambda: involution.Involution2d(3, 5, 2, groups=3, out_channels=6),
    "InvolutionLayer": lambda: involution.InvolutionLayer(3, 8, 3, stride=2, groups=2),
    "RedNet": small_rednet,
}
EACH_MODULE = pytest.mark.parametrize("name", MODULES)
# Batch, height and width differ from each other and from all channels: torch takes equal ones for one symbol.
SIZES = ((5, 14, 13), (7, 20, 19), (9, 15, 22))


def step(module: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, ...]:
    """The output and every gradient."""
    output = module(x)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype, device=output.device)
    parameters = tuple(getattr(module, "_orig_mod", module).parameters())
    return (output, *torch.autograd.grad(output.flatten() @ weights, (x, *parameters)))


def made(name: str, device: str = "cpu", dtype: torch.dtype = torch.float64) -> nn.Module:
    """In evaluation mode, so that a call does not change the module; gradients go through it all the same."""
    torch.manual_seed(0)
    return MODULES[name]().to(device, dtype).eval()


@pytest.mark.parametrize(
    ("name", "backend"), [*((name, "aot_eager") for name in MODULES), ("Involution2d", "inductor")]
)
def test_one_graph_for_every_batch_and_size(name: str, backend: str) -> None:
    """Forward and backward; the first call compiles, and none after that.

    On a CPU inductor chooses another layout for convolutions, and then takes the height and width of a training
    step for fixed, in a network of torch's own layers too: it is asked about batches alone.
    """
    torch._dynamo.reset()
    module = made(name)
    compilations = torch._dynamo.testing.CompileCounterWithBackend(backend)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=compilations)
    first = None
    for batch, height, width in SIZES if backend == "aot_eager" else [(batch, 14, 13) for batch in (5, 7, 9)]:
        x = torch.randn(batch, 3, height, width, dtype=torch.float64, requires_grad=True)
        with torch._dynamo.config.patch(error_on_recompile=True):
            torch.testing.assert_close(step(compiled, x), step(module, x))
        # More than 1 where torch starts anew within the first call, as it does for a batch normalisation.
        first = first or compilations.frame_count
    assert compilations.frame_count == first


@EACH_MODULE
def test_another_batch_size_compiles_once_more(name: str) -> None:
    """As torch.compile comes, it takes the first size for fixed, and the second for one of many."""
    torch._dynamo.reset()
    module = made(name)
    compilations = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, backend=compilations)
    counts = []
    for batch in (5, 7, 9):
        x = torch.randn(batch, 3, 14, 13, dtype=torch.float64)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), module(x))
        counts.append(compilations.frame_count)
    assert counts[0] == 1 and counts[1] == counts[2]


class Chosen(nn.Module):
    """The layer of a part of its input that data choose: of a batch, or of the last axis."""

    def __init__(self, layer: nn.Module, dim: int, memory_format: torch.memory_format) -> None:
        super().__init__()
        self.layer, self.dim, self.memory_format = layer.to(memory_format=memory_format), dim, memory_format

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        chosen = x[mask] if self.dim == 0 else x[..., mask]
        return self.layer(chosen.contiguous(memory_format=self.memory_format))


def chosen_layer(name: str, stride: int) -> nn.Module:
    """Without the batch normalisation, whose implementation in torch asks for the batch's size."""
    softmax = {"norm_layer": None, "kernel_normalizer": "softmax"} if name[-1] == "d" else {"padding": 1}
    keywords = {} if "Attention" in name else softmax
    channels = (4,) if name[-1] == "d" else (4, 4)
    return getattr(involution, name)(*channels, 3, stride, **keywords)


LAYERS = [
    f"{kind}{axes}d" for axes in (1, 2, 3) for kind in ("Involution", "InvolutionTranspose", "LocalAttention")
]


@pytest.mark.parametrize(
    ("name", "stride", "dim", "memory_format"),
    [
        *((name, 1, 0, torch.contiguous_format) for name in [*LAYERS, "InvolutionLayer"]),
        *((name, 2, 0, torch.channels_last) for name in [*LAYERS[3:6], "InvolutionLayer"]),
        *((name, stride, -1, torch.contiguous_format) for name in LAYERS[:3] for stride in (1, 2)),
    ],
    ids=str,
)
def test_sizes_that_depend_on_data(
    name: str, stride: int, dim: int, memory_format: torch.memory_format
) -> None:
    """They are known only when the program runs."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    layer = chosen_layer(name, stride)
    x = torch.randn(5, 4, *(6, 7, 5)[: getattr(layer, "axes", 2)])
    module = Chosen(layer, dim, memory_format)
    masks = [torch.arange(x.shape[dim]) < count for count in (3, 2)]
    program = torch.export.export(module, (x, masks[0]), strict=False).module()
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        for mask in masks:
            expected = module(x, mask)
            torch.testing.assert_close(program(x, mask), expected)
            torch.testing.assert_close(compiled(x, mask), expected)
            gradients = torch.autograd.grad(compiled(x, mask).square().sum(), list(layer.parameters()))
            expected_gradients = torch.autograd.grad(expected.square().sum(), list(layer.parameters()))
            torch.testing.assert_close(gradients, expected_gradients, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@EACH_MODULE
def test_reduce_overhead(name: str) -> None:
    """Recorded as CUDA graphs, replayed with other values."""
    torch._dynamo.reset()
    module = made(name, "cuda", torch.float32)
    compiled = torch.compile(module, fullgraph=True, mode="reduce-overhead")
    for seed in range(4):  # compiled, warmed up, recorded, replayed
        torch.manual_seed(seed)
        x = torch.randn(5, 3, 14, 13, device="cuda", requires_grad=True)
        torch.compiler.cudagraph_mark_step_begin()
        result = [tensor.clone() for tensor in step(compiled, x)]
        torch.testing.assert_close(result, list(step(module, x)), rtol=1e-3, atol=1e-4)
