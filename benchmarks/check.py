"""Compares a result with the float64 reference before it is timed.

The operations treat every batch item and group by themselves, so a check of some (batch, group) pairs, all
positions of each, is exact for these. Small problems are checked whole, large ones by evenly spread pairs
that include the first and the last; the rest of a large result must at least be finite.
"""

from __future__ import annotations

import torch
from torch import Tensor

from involution import reference

from .cases import Case, Tensors

# Multiply-adds in float64 that a check may take.
WORK = {"cuda": 2_000_000_000, "cpu": 30_000_000}


class WrongAnswerError(RuntimeError):
    """A result is not what the reference says; it has no time."""


def tolerance(dtype: torch.dtype, accumulates_wide: bool = True) -> float:
    """The largest error that passes, as a share of the largest value of the reference.

    A half type that is summed in float32 errs by its last rounding, half an epsilon. Whoever rounds products
    and partial sums to the half type, as PyTorch's formulas do, gets eight times as much.
    """
    epsilon = torch.finfo(dtype).eps
    if dtype in (torch.float32, torch.float64):
        return 64 * epsilon
    return epsilon if accumulates_wide else 8 * epsilon


def _pairs(case: Case, device: torch.device) -> tuple[Tensor, Tensor]:
    """The batch items and groups to check."""
    total = case.batch * case.groups
    each = case.multiply_adds // total
    count = max(2, min(total, WORK[device.type] // max(1, each)))
    chosen = (
        torch.linspace(0, total - 1, min(count, total), device=device, dtype=torch.float64).round().long()
    )
    return chosen // case.groups, chosen % case.groups


def _expect(result: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if tuple(result.shape) != shape or result.dtype != dtype:
        raise WrongAnswerError(
            f"The result is {result.dtype} of shape {tuple(result.shape)}, "
            f"but should be {dtype} of shape {shape}."
        )
    if not bool(torch.isfinite(result).all()):
        raise WrongAnswerError("The result has values that are not finite, although all operands are.")


def _judge(result: Tensor, expected: Tensor, bound: float) -> float:
    """The largest error as a share of the largest expected value, if it is within the bound."""
    error = ((result.double() - expected).abs().max() / expected.abs().max()).item()
    if not error <= bound:
        raise WrongAnswerError(
            f"The largest error is {error:.2g} of the largest value of the float64 reference, but at most "
            f"{bound:.2g} is right."
        )
    return error


def check(
    operation: str, case: Case, tensors: Tensors, result: Tensor, accumulates_wide: bool = True
) -> float:
    """The relative error of one of the three operations.

    Raises:
        WrongAnswerError: It is not finite, or the error is above the tolerance.
    """
    shapes = {"forward": case.output_shape, "input_gradient": case.input_shape}
    _expect(result, shapes.get(operation, case.weight_shape), tensors.x.dtype)
    batch, group = _pairs(case, result.device)

    def activation(tensor: Tensor) -> Tensor:
        return tensor.unflatten(1, (case.groups, case.group_width))[batch, group].double()

    def kernels(tensor: Tensor) -> Tensor:
        return tensor[batch, group].double().unsqueeze(1)

    window = (case.stride, case.padding, case.dilation)
    if operation == "forward":
        expected = reference.involution(activation(tensors.x), kernels(tensors.w), *window)
    elif operation == "input_gradient":
        operands = (activation(tensors.y), kernels(tensors.w))
        expected = reference.involution_transpose(*operands, case.input_size, *window)
    else:
        operands = (activation(tensors.y), activation(tensors.x))
        expected = reference.local_correlation(*operands, case.kernel_size, 1, *window)
    picked = kernels(result) if operation == "weight_gradient" else activation(result)
    return _judge(picked, expected, tolerance(tensors.x.dtype, accumulates_wide))


def check_depthwise(operation: str, case: Case, tensors: Tensors, static: Tensor, result: Tensor) -> float:
    """The same for a depthwise convolution with the weight ``static``, ``(C, 1, *K)``.

    It is the involution of groups of one channel whose kernels are the same everywhere; the gradient of its
    weight is the sum of involution's over batch and positions.
    """
    shapes = {"forward": case.output_shape, "input_gradient": case.input_shape}
    _expect(result, shapes.get(operation, tuple(static.shape)), tensors.x.dtype)
    window = (case.stride, case.padding, case.dilation)
    bound = tolerance(tensors.x.dtype, accumulates_wide=False)
    if operation == "weight_gradient":
        channels = torch.tensor([0, case.channels - 1], device=result.device)
        query, key = tensors.y[:, channels].double(), tensors.x[:, channels].double()
        products = reference.local_correlation(query, key, case.kernel_size, len(channels), *window)
        expected = products.sum(dim=(0, *range(2 + case.axes, products.dim())))
        return _judge(result[channels, 0], expected, bound)
    items = torch.tensor([0, case.batch - 1], device=result.device)
    channels = torch.tensor([0, case.channels - 1], device=result.device)
    kernels = static[channels, 0].double().reshape(2, 1, *case.kernel_size, *(1,) * case.axes)
    kernels = kernels.expand(2, 1, *case.kernel_size, *case.output_size)
    if operation == "forward":
        expected = reference.involution(tensors.x[items, channels].unsqueeze(1).double(), kernels, *window)
    else:
        operand = tensors.y[items, channels].unsqueeze(1).double()
        expected = reference.involution_transpose(operand, kernels, case.input_size, *window)
    return _judge(result[items, channels].unsqueeze(1), expected, bound)
