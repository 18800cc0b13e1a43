"""Layers with the fused involution on a CUDA device, where they take its kernel: both ways, memory, graphs.

With the kernels of its backward pass and without them.
"""

import pytest
import torch

from involution import Involution2d, _fused

pytestmark = pytest.mark.gpu

EACH_HALF = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)


@pytest.fixture(params=["1", "0"], ids=["backward kernels", "composed"])
def backward(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether gradients take kernels of their own, where there are any."""
    monkeypatch.setenv(_fused.BACKWARD_VARIABLE, request.param)


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


@EACH_HALF
@pytest.mark.parametrize("stride", [1, 2])
def test_layers_agree(stride: int, dtype: torch.dtype, backward: None) -> None:
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


def test_the_backward_kernels_take_less_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layers(64, 7, 1, torch.bfloat16)[0]
    x = image(64, (56, 56), torch.bfloat16, batch=64).requires_grad_()
    peaks = []
    for switch in ("1", "0"):
        monkeypatch.setenv(_fused.BACKWARD_VARIABLE, switch)
        output = layer(x)
        grad = torch.ones_like(output)
        layer(x).backward(grad)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        output.backward(grad)
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[0] < peaks[1]


@pytest.mark.parametrize("channels", [64, 128, 256, 512])
def test_a_training_step_in_a_graph(channels: int, backward: None) -> None:
    """On RedNet's maps: replayed, it gives the same gradients."""
    layer = layers(channels, 7, 1, torch.bfloat16)[0]
    x = image(channels, (3584 // channels,) * 2, torch.bfloat16, batch=4).requires_grad_()
    wanted = (x, *layer.parameters())
    with torch.no_grad():
        grad = torch.randn_like(layer(x))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            expected = torch.autograd.grad(layer(x), wanted, grad)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = torch.autograd.grad(layer(x), wanted, grad)
    for _ in range(2):
        graph.replay()
        for result, other in zip(captured, expected, strict=True):
            torch.testing.assert_close(result, other, rtol=2e-2, atol=2e-2 * other.abs().max().item())


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
