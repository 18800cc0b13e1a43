"""Other ways to compute the same, and a depthwise convolution to show what a static kernel costs.

A baseline says why it cannot take a problem, how much memory it needs beyond operands and result, and binds to
operands; what it prepares there is not timed.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from involution import reference

from . import check, official_kernel, plain_kernel
from .cases import Case, Tensors

Call = Callable[[], Tensor]
Binding = Callable[[Tensors], Call]


@dataclass(frozen=True)
class Baseline:
    """One contender.

    Attributes:
        name: What results call it.
        bind: From an operation and a case, what turns operands into the call that is timed.
        why_not: Why it cannot take an operation on a case, in a layout and dtype, on a kind of device; None if it can.
        scratch: Bytes that a call needs beyond operands and result.
        kept: Bytes of what it prepares for each copy of the operands.
        accumulates_wide: Whether half types are summed, and products kept, in float32.
    """

    name: str
    bind: Callable[[str, Case], Binding]
    why_not: Callable[[str, Case, str, torch.dtype, torch.device], str | None]
    scratch: Callable[[str, Case, int], int] = lambda operation, case, item_size: 0
    kept: Callable[[str, Case, int], int] = lambda operation, case, item_size: 0
    accumulates_wide: bool = False

    def check(self, operation: str, case: Case, tensors: Tensors, result: Tensor) -> float:
        """The error of a result, as ``check.check``; raises ``check.WrongAnswerError``."""
        if self.name == "depthwise":
            return check.check_depthwise(operation, case, tensors, _static_weight(case, tensors), result)
        return check.check(operation, case, tensors, result, self.accumulates_wide)


# --- Unfold and multiply ----------------------------------------------------------------------------------


def _flat(case: Case) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Input size, kernel size, padding and stride in two dimensions; a sequence is a map of height 1."""
    if case.axes == 1:
        return (1, *case.input_size), (1, *case.kernel_size), (0, *case.padding), (1, *case.stride)
    return case.input_size, case.kernel_size, case.padding, case.stride


def _unfold(x: Tensor, case: Case) -> Tensor:
    """``(B, G, Cg, |K|, positions)``."""
    size, kernel, padding, stride = _flat(case)
    columns = F.unfold(x.reshape(*x.shape[:2], *size), kernel, padding=padding, stride=stride)
    return columns.reshape(case.batch, case.groups, case.group_width, case.points, -1)


def _columns(w: Tensor, case: Case) -> Tensor:
    return w.reshape(case.batch, case.groups, 1, case.points, -1)


def unfold_forward(x: Tensor, w: Tensor, case: Case) -> Tensor:
    return (_unfold(x, case) * _columns(w, case)).sum(3).reshape(case.output_shape)


def unfold_input_gradient(y: Tensor, w: Tensor, case: Case) -> Tensor:
    size, kernel, padding, stride = _flat(case)
    grouped = y.reshape(case.batch, case.groups, case.group_width, 1, -1)
    products = (grouped * _columns(w, case)).reshape(case.batch, case.channels * case.points, -1)
    return F.fold(products, size, kernel, padding=padding, stride=stride).reshape(case.input_shape)


def unfold_weight_gradient(y: Tensor, unfolded: Tensor, case: Case) -> Tensor:
    """The product with the unfolded input, which the forward pass has kept."""
    grouped = y.reshape(case.batch, case.groups, case.group_width, 1, -1)
    return (grouped * unfolded).sum(2).reshape(case.weight_shape)


def _bind_unfold(operation: str, case: Case) -> Binding:
    def bind(t: Tensors) -> Call:
        if operation == "forward":
            return lambda: unfold_forward(t.x, t.w, case)
        if operation == "input_gradient":
            return lambda: unfold_input_gradient(t.y, t.w, case)
        unfolded = _unfold(t.x, case)
        return lambda: unfold_weight_gradient(t.y, unfolded, case)

    return bind


def _unfolded_bytes(operation: str, case: Case, item_size: int) -> int:
    return item_size * math.prod(case.output_shape) * case.points


def _why_not_unfold(
    operation: str, case: Case, layout: str, dtype: torch.dtype, device: torch.device
) -> str | None:
    return "torch.nn.functional.unfold has no 3D form" if case.axes == 3 else None


# --- The definition ---------------------------------------------------------------------------------------


def _bind_reference(operation: str, case: Case) -> Binding:
    window = (case.stride, case.padding, case.dilation)
    if operation == "forward":
        return lambda t: lambda: reference.involution(t.x, t.w, *window)
    if operation == "input_gradient":
        return lambda t: lambda: reference.involution_transpose(t.y, t.w, case.input_size, *window)
    return lambda t: lambda: reference.local_correlation(t.y, t.x, case.kernel_size, case.groups, *window)


# --- Compiled formulas ------------------------------------------------------------------------------------


def _compile(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    torch._dynamo.reset()  # otherwise every case counts towards the limit of recompilations
    return torch.compile(function, dynamic=False)


def _bind_unfold_compiled(operation: str, case: Case) -> Binding:
    if operation == "forward":
        function = _compile(lambda t: unfold_forward(t[0], t[1], case))
    elif operation == "input_gradient":
        function = _compile(lambda t: unfold_input_gradient(t[2], t[1], case))
    else:
        # The compiler may fuse the unfolding, so it is part of what is compiled and nothing is kept.
        function = _compile(lambda t: unfold_weight_gradient(t[2], _unfold(t[0], case), case))
    return lambda t: lambda: function((t.x, t.w, t.y))


def _shift_input_gradient(y: Tensor, w: Tensor, case: Case) -> Tensor:
    """Stride 1 as a gather, which compiles to one kernel: shifted products of both padded tensors."""
    wide = reference._accumulation_dtype(y.dtype)
    amounts = [p for k in reversed(case.kernel_size) for p in (k - 1, k - 1)]
    padded_y = F.pad(y.unflatten(1, (case.groups, case.group_width)), amounts)
    padded_w = F.pad(w, amounts)
    total = torch.zeros((), dtype=wide, device=y.device)
    for point in itertools.product(*map(range, case.kernel_size)):
        places = tuple(
            slice(k - 1 + p - at, k - 1 + p - at + size)
            for k, p, at, size in zip(case.kernel_size, case.padding, point, case.input_size, strict=True)
        )
        stored: tuple[Any, ...] = (slice(None), slice(None), *point)
        shifted: tuple[Any, ...] = (..., *places)
        weights = padded_w[stored].unsqueeze(2)
        total = total + padded_y[shifted].to(wide) * weights[shifted].to(wide)
    return total.flatten(1, 2).to(y.dtype)


def _bind_shift_compiled(operation: str, case: Case) -> Binding:
    window = (case.stride, case.padding, case.dilation)
    if operation == "forward":
        function = _compile(lambda t: reference.involution(t[0], t[1], *window))
    elif operation == "weight_gradient":
        size = case.kernel_size
        function = _compile(lambda t: reference.local_correlation(t[2], t[0], size, case.groups, *window))
    elif case.strides == 1:
        function = _compile(lambda t: _shift_input_gradient(t[2], t[1], case))
    else:
        size = case.input_size
        function = _compile(lambda t: reference.involution_transpose(t[2], t[1], size, *window))
    return lambda t: lambda: function((t.x, t.w, t.y))


def _why_not_compiled(
    operation: str, case: Case, layout: str, dtype: torch.dtype, device: torch.device
) -> str | None:
    return None


# --- The plain CUDA kernel --------------------------------------------------------------------------------


def _bind_plain(operation: str, case: Case) -> Binding:
    size, kernel, padding, _ = _flat(case)
    out = (1, *case.output_size) if case.axes == 1 else case.output_size
    window = (case.strides, *padding)

    def bind(t: Tensors) -> Call:
        module = plain_kernel.load()
        x = t.x.view(case.batch, case.channels, *size)
        w = t.w.view(case.batch, case.groups, *kernel, *out)
        y = t.y.view(case.batch, case.channels, *out)
        if operation == "forward":
            return lambda: module.forward(x, w, *window).view(case.output_shape)
        if operation == "input_gradient":
            return lambda: module.input_gradient(y, w, *size, *window).view(case.input_shape)
        return lambda: module.weight_gradient(y, x, case.groups, *kernel, *window).view(case.weight_shape)

    return bind


def _why_not_contiguous_on_cuda(layout: str, device: torch.device) -> str | None:
    if device.type != "cuda":
        return "it is a CUDA kernel"
    if layout != "contiguous":
        return "it reads contiguous tensors only"
    return None


def _why_not_plain(
    operation: str, case: Case, layout: str, dtype: torch.dtype, device: torch.device
) -> str | None:
    if why := _why_not_contiguous_on_cuda(layout, device):
        return why
    if case.axes == 3:
        return "the published design has two dimensions"
    if case.axes == 1 and case.strides != 1:
        return "it has one stride for both axes"
    return None


# --- The published kernels, compiled for each shape ---------------------------------------------------------


def _official_problem(case: Case) -> official_kernel.Problem:
    pairs = (case.input_size, case.output_size, case.kernel_size, case.stride, case.padding, case.dilation)
    height_and_width = ((sizes[0], sizes[1]) for sizes in pairs)
    return official_kernel.Problem(case.batch, case.channels, case.groups, *height_and_width)


def _bind_official(operation: str, case: Case) -> Binding:
    problem = _official_problem(case)

    def bind(t: Tensors) -> Call:
        operands = {"forward": (t.x, t.w), "input_gradient": (t.y, t.w), "weight_gradient": (t.y, t.x)}
        return lambda: official_kernel.run(operation, problem, *operands[operation])

    return bind


def _why_not_official(
    operation: str, case: Case, layout: str, dtype: torch.dtype, device: torch.device
) -> str | None:
    if why := _why_not_contiguous_on_cuda(layout, device):
        return why
    if case.axes != 2:
        return f"the published kernels have two dimensions, not {case.axes}"
    return official_kernel.why_not(_official_problem(case), dtype)


# --- A static kernel of the same size ---------------------------------------------------------------------

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def _static_weight(case: Case, t: Tensors) -> Tensor:
    """One kernel for each channel, those of the first position of the first batch item's group."""
    position: tuple[Any, ...] = (0, ..., *[0] * case.axes)
    first = t.w[position].repeat_interleave(case.group_width, 0).unsqueeze(1)
    if case.axes == 2 and t.x.is_contiguous(memory_format=torch.channels_last):
        return first.contiguous(memory_format=torch.channels_last)
    return first.contiguous()


def _bind_depthwise(operation: str, case: Case) -> Binding:
    def bind(t: Tensors) -> Call:
        weight = _static_weight(case, t)
        if operation == "forward":
            convolution = functools.partial(
                _CONVOLUTIONS[case.axes], stride=case.stride, padding=case.padding, groups=case.channels
            )
            return lambda: convolution(t.x, weight)
        mask = [operation == "input_gradient", operation == "weight_gradient", False]
        rest = (None, case.stride, case.padding, case.dilation, False, [0] * case.axes, case.channels, mask)
        backward = torch.ops.aten.convolution_backward.default
        return lambda: backward(t.y, t.x, weight, *rest)[mask.index(True)]

    return bind


def _never(operation: str, case: Case, layout: str, dtype: torch.dtype, device: torch.device) -> str | None:
    return None


def _products_bytes(operation: str, case: Case, item_size: int) -> int:
    """The product of unfolded input and kernels; and the unfolded input itself, which forward also makes."""
    return _unfolded_bytes(operation, case, item_size) * (2 if operation == "forward" else 1)


def _kept_by_unfold(operation: str, case: Case, item_size: int) -> int:
    return _unfolded_bytes(operation, case, item_size) if operation == "weight_gradient" else 0


BASELINES = {
    baseline.name: baseline
    for baseline in (
        Baseline("plain", _bind_plain, _why_not_plain, accumulates_wide=True),
        Baseline("official", _bind_official, _why_not_official),
        Baseline("unfold", _bind_unfold, _why_not_unfold, _products_bytes, _kept_by_unfold),
        Baseline("reference", _bind_reference, _why_not_compiled, accumulates_wide=True),
        # In the worst case the compiler fuses nothing.
        Baseline("unfold-compiled", _bind_unfold_compiled, _why_not_unfold, _products_bytes),
        Baseline("shift-compiled", _bind_shift_compiled, _why_not_compiled),
        Baseline("depthwise", _bind_depthwise, _never),
    )
}
