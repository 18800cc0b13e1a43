"""The fused operator on what its CUDA kernel takes: on a GPU, and on the host where test_backend_on_host.py runs it."""

from __future__ import annotations

import os

import fused_cases
import pytest
import torch
from cases import Case
from fused_cases import FusedCase

import involution  # noqa: F401  defines the operators

DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
HALF_DTYPES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])


def fused_case(
    kernel: int, reduced: int, size: tuple[int, int], dtype: torch.dtype, groups: int = 2, stride: int = 1
) -> FusedCase:
    sizes = (size, (kernel, kernel), (stride, stride), (kernel // 2,) * 2, (1, 1))
    window = Case(2, groups, 16, *sizes, dtype, x_layout="channels_last")
    return FusedCase(window, reduced, features_layout="channels_last")


@DEVICES
@HALF_DTYPES
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize(
    ("reduced", "size", "groups"), [(8, (9, 11), 2), (24, (1, 5), 3), (64, (8, 16), 4), (128, (7, 7), 5)]
)
def test_the_kernel_is_right(
    kernel: int,
    stride: int,
    reduced: int,
    size: tuple[int, int],
    groups: int,
    dtype: torch.dtype,
    device: str,
) -> None:
    case = fused_case(kernel, reduced, size, dtype, groups, stride)
    tensors = case.tensors(kernel)
    scale, shift = fused_cases.epilogue_of(case)
    for epilogue in ((), (scale, shift, True), (None, None, True)):
        moved = [None if t is None else t.to(device) for t in (*tensors, *epilogue[:2])]
        result = torch.ops.involution.fused_involution(*moved[:4], *case.arguments, *moved[4:], *epilogue[2:])
        assert result.is_contiguous(memory_format=torch.channels_last)
        fused_cases.assert_right(result.cpu(), tensors, case.arguments, *epilogue)


@DEVICES
def test_whatever_the_operands_lie_like(device: str) -> None:
    """Slices whose address is no multiple of 16 bytes, weights that are transposed, features of another format."""
    case = fused_case(5, 16, (6, 9), torch.bfloat16)
    x, z, w, b = (tensor.to(device) for tensor in case.tensors())
    shifted = (
        torch.empty(x.numel() + 1, dtype=x.dtype, device=device)[1:].view(2, 6, 9, 32).permute(0, 3, 1, 2)
    )
    for operands in (
        (shifted.copy_(x), z, w, b),
        (x, z, w.t().contiguous().t(), torch.stack((b, b), 1)[:, 0]),
        (x, z.contiguous(), w, b),
        (x.contiguous(), z, w, b),
        (x, z, w[:, :].clone(), None),
    ):
        result = torch.ops.involution.fused_involution(*operands, *case.arguments)
        on_cpu = tuple(None if tensor is None else tensor.cpu() for tensor in operands)
        fused_cases.assert_right(result.cpu(), on_cpu, case.arguments)


@DEVICES
def test_the_kernel_is_taken(device: str) -> None:
    """The composition has a matrix product, which the kernel has not."""
    has_kernel = device == "cuda" or "INVOLUTION_BACKEND_ON_HOST" in os.environ
    case = fused_case(7, 16, (9, 8), torch.bfloat16)
    for features_last, taken in ((True, has_kernel), (False, False)):
        x, z, w, b = (tensor.to(device) for tensor in case.tensors())
        z = z if features_last else z.contiguous()
        with torch.profiler.profile() as profile:
            torch.ops.involution.fused_involution(x, z, w, b, *case.arguments)
        names = {event.name for event in profile.events()}
        assert "involution::fused_involution" in names
        assert ("involution::involution" not in names) == taken, names


@pytest.mark.gpu
def test_a_bit_for_a_bit() -> None:
    case = fused_case(7, 32, (28, 28), torch.bfloat16, groups=8)
    tensors = [tensor.cuda() for tensor in case.tensors()]
    first, *others = (torch.ops.involution.fused_involution(*tensors, *case.arguments) for _ in range(3))
    assert all(torch.equal(first, other) for other in others)
