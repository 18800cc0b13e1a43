"""The operators on a CUDA device: the same cases as elsewhere, and what only a device has."""

import random
import subprocess
import sys
from pathlib import Path

import cases
import pytest
import torch
from cases import Case, assert_right
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

import involution

pytestmark = pytest.mark.gpu

EACH_OPERATION = pytest.mark.parametrize("operation", cases.OPERATIONS)
EACH_DTYPE = pytest.mark.parametrize(
    "dtype", cases.DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch.")
)


@pytest.fixture(scope="module", autouse=True)
def kernels_are_built() -> None:
    reason = involution.build_info()["no_cuda_reason"]
    assert reason is None, f"There is a GPU, but involution has no CUDA kernels: {reason}"


def operator(operation: str):
    return getattr(torch.ops.involution, operation).default


def on_device(case: Case, operation: str, seed: int = 0) -> list[torch.Tensor]:
    """The operands on the device, with the strides and the misalignment that the case asks for."""
    layouts = {"involution": "xw", "involution_transpose": "yw", "local_correlation": "yx"}[operation]
    operands = []
    for tensor, role in zip(case.operands(operation, seed), layouts, strict=True):
        layout = getattr(case, f"{role}_layout")
        operands.append(cases.laid_out(tensor.cuda(), layout, 2 + case.axes if role == "w" else 2))
    return operands


def check(case: Case, operation: str, seed: int = 0) -> torch.Tensor:
    operands = on_device(case, operation, seed)
    result = operator(operation)(*operands, *case.arguments(operation))
    assert result.is_cuda
    assert_right(result, operation, *operands, case.arguments(operation))
    return result


@EACH_OPERATION
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_random_problems(operation: str, axes: int) -> None:
    rng = random.Random(f"{operation} {axes}")
    for seed in range(180):
        check(cases.random_case(rng, axes), operation, seed)


@EACH_OPERATION
@EACH_DTYPE
@pytest.mark.parametrize("width", [3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2])
def test_tiled_kernels(operation: str, width: int, stride: int, dtype: torch.dtype) -> None:
    rng = random.Random(f"{operation} {width} {stride}")
    for seed in range(4):
        case = Case(
            batch=2,
            groups=2,
            channels_per_group=rng.choice((1, 7, 16, 20, 70)),
            input=(rng.randint(1, 19), rng.randint(4, 23)),
            kernel=(rng.randint(1, 7), width),
            stride=(1 if operation == "involution_transpose" else rng.randint(1, 3), stride),
            padding=(rng.randint(3, 6), rng.randint(2, 4)),
            dilation=(1, 1),
            dtype=dtype,
        )
        check(cases.random_layouts(rng, case), operation, seed)


@EACH_OPERATION
@EACH_DTYPE
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "misaligned"])
def test_rednet_shapes(operation: str, dtype: torch.dtype, layout: str) -> None:
    for size in (7, 14, 28, 56):
        case = Case(1, 2, 16, (size, size), (7, 7), (1, 1), (3, 3), (1, 1), dtype, *[layout] * 3)
        result = check(case, operation)
        leading = 4 if operation == "local_correlation" else 2
        like = cases.laid_out(result, "channels_last" if layout == "channels_last" else "contiguous", leading)
        assert result.stride() == like.stride()


@EACH_OPERATION
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_gradients(operation: str, axes: int) -> None:
    size = (3, 4, 5)[:axes]
    case = Case(1, 2, 2, size, (3,) * axes, (1,) * axes, (1,) * axes, (1,) * axes)
    operands = tuple(tensor.requires_grad_() for tensor in on_device(case, operation))
    public = getattr(involution, f"{operation}{axes}d")
    extra = (3, 2) if operation == "local_correlation" else ()
    assert gradcheck(lambda a, b: public(a, b, *extra, padding=1), operands)
    assert gradgradcheck(lambda a, b: public(a, b, *extra, padding=1), operands)


@EACH_OPERATION
def test_opcheck(operation: str) -> None:
    for layout in ("contiguous", "channels_last"):
        case = Case(2, 2, 4, (5, 6), (3, 3), (1, 1), (1, 1), (1, 1), torch.float32, *[layout] * 3)
        operands = [tensor.requires_grad_() for tensor in on_device(case, operation)]
        opcheck(operator(operation), (*operands, *case.arguments(operation)))


@EACH_OPERATION
@EACH_DTYPE
def test_results_repeat_bit_for_bit(operation: str, dtype: torch.dtype) -> None:
    case = Case(4, 4, 16, (37, 41), (7, 7), (1, 1), (3, 3), (1, 1), dtype)
    operands = on_device(case, operation)
    first = operator(operation)(*operands, *case.arguments(operation))
    for _ in range(20):
        assert torch.equal(operator(operation)(*operands, *case.arguments(operation)), first)


@EACH_OPERATION
def test_cuda_graph(operation: str) -> None:
    case = Case(2, 2, 16, (14, 14), (7, 7), (1, 1), (3, 3), (1, 1), torch.float32)
    operands = on_device(case, operation)
    call = lambda: operator(operation)(*operands, *case.arguments(operation))  # noqa: E731
    call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()
    for seed in (1, 2):
        for tensor, fresh in zip(operands, on_device(case, operation, seed), strict=True):
            tensor.copy_(fresh)
        graph.replay()
        torch.testing.assert_close(result, call(), rtol=0, atol=0)


@EACH_OPERATION
def test_side_stream(operation: str) -> None:
    """The current stream is used: work behind a long wait on a side stream sees what was written before it."""
    case = Case(2, 2, 16, (28, 28), (7, 7), (1, 1), (3, 3), (1, 1), torch.float32)
    first, second = on_device(case, operation)
    arguments = case.arguments(operation)
    expected = operator(operation)(first, second, *arguments)
    late = torch.zeros_like(first)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late.copy_(first)
        result = operator(operation)(late, second, *arguments)
    stream.synchronize()
    torch.testing.assert_close(result, expected, rtol=0, atol=0)


@EACH_OPERATION
def test_nothing_synchronises(operation: str) -> None:
    case = Case(2, 2, 16, (28, 28), (7, 7), (1, 1), (3, 3), (1, 1), torch.float32)
    operands = [tensor.requires_grad_() for tensor in on_device(case, operation)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        public = getattr(involution, f"{operation}2d")
        extra = (7, 2) if operation == "local_correlation" else ()
        public(*operands, *extra, padding=3).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@EACH_OPERATION
def test_the_tensors_device_is_used(operation: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    case = Case(1, 2, 4, (9, 9), (3, 3), (1, 1), (1, 1), (1, 1), torch.float32)
    operands = [tensor.to("cuda:1") for tensor in on_device(case, operation)]
    result = operator(operation)(*operands, *case.arguments(operation))
    assert result.device == torch.device("cuda:1")
    assert_right(result, operation, *operands, case.arguments(operation))


@pytest.mark.parametrize("force_generic", [False, True])
def test_more_than_2_31_elements(force_generic: bool) -> None:
    """Offsets need 64 bits: the last batch element of a huge tensor is as right as it is alone."""
    kernel = 1 if force_generic else 3
    size, channels, batch = 1024, 64, 34
    if torch.cuda.mem_get_info()[0] < 24 * 2**30:
        pytest.skip("needs 24 GiB of free device memory")
    x = torch.empty(batch, channels, size, size, dtype=torch.bfloat16, device="cuda").normal_()
    w = torch.empty(batch, 1, 1, kernel, size, size, dtype=torch.bfloat16, device="cuda").normal_()
    assert x.numel() > 2**31
    padding = (0, kernel // 2)
    y = involution.involution2d(x, w, padding=padding)
    torch.testing.assert_close(
        y[-1:], involution.involution2d(x[-1:], w[-1:], padding=padding), rtol=0, atol=0
    )
    back = involution.involution_transpose2d(y, w, padding=padding)
    alone = involution.involution_transpose2d(y[-1:], w[-1:], padding=padding)
    torch.testing.assert_close(back[-1:], alone, rtol=0, atol=0)
    product = involution.local_correlation2d(y, x, (1, kernel), padding=padding)
    alone = involution.local_correlation2d(y[-1:], x[-1:], (1, kernel), padding=padding)
    torch.testing.assert_close(product[-1:], alone, rtol=0, atol=0)


def test_a_plane_of_more_than_2_31_elements() -> None:
    """One (batch, group) plane whose offsets need 64 bits takes the generic path and is right at its end."""
    if torch.cuda.mem_get_info()[0] < 24 * 2**30:
        pytest.skip("needs 24 GiB of free device memory")
    length, channels = 2**25 + 3, 65
    x = torch.empty(1, channels, length, dtype=torch.bfloat16, device="cuda").normal_()
    w = torch.empty(1, 1, 3, length, dtype=torch.bfloat16, device="cuda").normal_()
    y = involution.involution1d(x, w, padding=1)
    alone = involution.involution1d(x[:, -2:, -9:], w[..., -9:], padding=1)
    torch.testing.assert_close(y[:, -2:, -8:], alone[..., 1:], rtol=0, atol=0)


def test_compiled_step() -> None:
    torch._dynamo.reset()

    def step(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return involution.involution2d(x, w, padding=3).relu().sum()

    x = torch.randn(2, 32, 14, 14, device="cuda", requires_grad=True)
    w = torch.randn(2, 2, 7, 7, 14, 14, device="cuda", requires_grad=True)
    compiled = torch.compile(step, fullgraph=True)
    result = torch.autograd.grad(compiled(x, w), (x, w))
    torch.testing.assert_close(result, torch.autograd.grad(step(x, w), (x, w)))


def test_tensors_on_different_devices_are_refused() -> None:
    with pytest.raises(ValueError, match="must be on one device, but they are on cuda:0 and cpu"):
        involution.involution2d(torch.ones(1, 1, 3, 3, device="cuda"), torch.ones(1, 1, 3, 3, 1, 1))


def test_reference_on_cuda_warns_once() -> None:
    """Where no CUDA kernels are built, the first CUDA tensor says so, with the command that builds them."""
    # Importing any part of involution loads its kernels first; the plugin imports a copy that has none.
    program = (
        "import without_extension, warnings, torch, involution\n"
        "x, w = torch.ones(1, 1, 3, 3, device='cuda'), torch.ones(1, 1, 3, 3, 1, 1, device='cuda')\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    assert involution.involution2d(x, w).item() == 9\n"
        "    involution.involution2d(x, w)\n"
        "assert len(caught) == 1 and 'INVOLUTION_BUILD=cuda' in str(caught[0].message), caught\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parent, check=True)
