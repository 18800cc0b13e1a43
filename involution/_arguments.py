"""What the public functions accept: one place that completes arguments and explains wrong ones.

Every check raises before anything is computed, in a sentence that names the offending values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class Window(NamedTuple):
    """A sliding window, one integer per axis; ``padding`` counts zeros in front, ``padding_end`` behind."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    padding_end: tuple[int, ...]
    dilation: tuple[int, ...]


def per_axis(value: int | Sequence[int], axes: int, name: str, least: int) -> tuple[int, ...]:
    """One integer per axis from an integer or a sequence of them."""
    if isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool):
        values: tuple[int, ...] = (value,) * axes
    elif isinstance(value, (tuple, list)):
        values = tuple(value)
        if len(values) == 1:
            values *= axes
    else:
        raise TypeError(
            f"{name} must be an integer or a sequence of {axes} integers, not {value!r} of type {type(value).__name__}."
        )
    if len(values) != axes:
        raise ValueError(
            f"{name} must be one integer or {axes}, one for each spatial axis, but {value!r} has {len(values)}."
        )
    for element in values:
        if not isinstance(element, (int, torch.SymInt)) or isinstance(element, bool):
            raise TypeError(f"{name} must hold integers, but {value!r} holds {element!r}.")
        if element < least:
            raise ValueError(f"{name} must be at least {least} along every axis, not {value!r}.")
    return values


def complete_window(
    axes: int,
    kernel_size: Sequence[int],
    stride: int | Sequence[int],
    padding: int | Sequence[int] | str,
    dilation: int | Sequence[int],
) -> Window:
    """The window along each axis; ``"same"`` puts the odd element of its padding at the end, as conv does."""
    kernel_size = tuple(kernel_size)
    strides = per_axis(stride, axes, "stride", 1)
    dilations = per_axis(dilation, axes, "dilation", 1)
    if isinstance(padding, str):
        if padding == "valid":
            front = behind = (0,) * axes
        elif padding == "same":
            if any(step != 1 for step in strides):
                raise ValueError(f'padding="same" needs a stride of 1, but stride is {stride!r}.')
            total = [d * (k - 1) for k, d in zip(kernel_size, dilations, strict=True)]
            front = tuple(amount // 2 for amount in total)
            behind = tuple(amount - amount // 2 for amount in total)
        else:
            raise ValueError(f'padding must be integers, "same" or "valid", not {padding!r}.')
    else:
        front = behind = per_axis(padding, axes, "padding", 0)
    return Window(kernel_size, strides, front, behind, dilations)


def check_pair(
    axes: int, first: Tensor, first_name: str, second: Tensor, second_name: str, second_dims: int
) -> None:
    """Two floating-point tensors of one dtype, device and batch size, with the dimensions they must have."""
    for tensor, name in ((first, first_name), (second, second_name)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, not {type(tensor).__name__}.")
    if first.dim() != axes + 2:
        raise ValueError(
            f"{first_name} must be (batch, channels, {_axis_names(axes)}) with {axes + 2} dimensions, "
            f"but its shape is {_shape(first)}."
        )
    if second.dim() != second_dims:
        layout = (
            "(batch, channels, {0})" if second_dims == axes + 2 else "(batch, groups, kernel {0}, output {0})"
        )
        raise ValueError(
            f"{second_name} must be {layout.format(_axis_names(axes))} with {second_dims} dimensions, "
            f"but its shape is {_shape(second)}."
        )
    if first.dtype != second.dtype:
        raise TypeError(
            f"{first_name} and {second_name} must have one dtype, but they are {first.dtype} and {second.dtype}."
        )
    if first.dtype not in DTYPES:
        raise TypeError(
            f"{first_name} and {second_name} must be float64, float32, float16 or bfloat16, not {first.dtype}."
        )
    if first.device != second.device:
        raise ValueError(
            f"{first_name} and {second_name} must be on one device, but they are on {first.device} and {second.device}."
        )
    if first.shape[0] != second.shape[0]:
        raise ValueError(
            f"{first_name} and {second_name} must have one batch size, but it is {first.shape[0]} in {first_name} "
            f"of shape {_shape(first)} and {second.shape[0]} in {second_name} of shape {_shape(second)}."
        )


def check_groups(channels: int, groups: int, name: str) -> None:
    """Channels that divide evenly into at least one group."""
    if not isinstance(groups, (int, torch.SymInt)) or isinstance(groups, bool):
        raise TypeError(f"groups must be an integer, not {groups!r}.")
    if groups < 1:
        raise ValueError(f"groups must be at least 1, not {groups}.")
    if channels % groups != 0:
        raise ValueError(
            f"The {channels} channels of {name} cannot be divided into {groups} groups of one size."
        )


def check_kernel_size(kernel_size: Sequence[int], name: str) -> None:
    """Kernel sizes of at least 1."""
    if any(size < 1 for size in kernel_size):
        raise ValueError(
            f"The kernel size must be at least 1 along every axis, but {name} gives {tuple(kernel_size)}."
        )


def output_size(input_size: Sequence[int], window: Window, name: str) -> tuple[int, ...]:
    """``floor((In + padding - dilation*(K - 1) - 1) / stride) + 1`` along each axis, as for convolution."""
    sizes = []
    for axis, size in enumerate(input_size):
        reach = window.dilation[axis] * (window.kernel_size[axis] - 1) + 1
        padded = size + window.padding[axis] + window.padding_end[axis]
        if reach > padded:
            raise ValueError(
                f"The kernel of size {window.kernel_size} with dilation {window.dilation} is larger than the padded "
                f"{name}: it spans {reach} along axis {axis}, where {name} has {size} positions and padding "
                f"{window.padding[axis]} + {window.padding_end[axis]}."
            )
        sizes.append((padded - reach) // window.stride[axis] + 1)
    return tuple(sizes)


def transposed_size(
    input_size: Sequence[int], window: Window, output_padding: int | Sequence[int]
) -> tuple[int, ...]:
    """``(In - 1)*stride - padding + dilation*(K - 1) + output_padding + 1`` along each axis, as for conv_transpose."""
    extra = per_axis(output_padding, len(input_size), "output_padding", 0)
    sizes = []
    for axis, size in enumerate(input_size):
        if extra[axis] >= max(window.stride[axis], window.dilation[axis]):
            raise ValueError(
                f"output_padding must be smaller than the stride or the dilation, but along axis {axis} it is "
                f"{extra[axis]} with stride {window.stride[axis]} and dilation {window.dilation[axis]}."
            )
        reach = window.dilation[axis] * (window.kernel_size[axis] - 1) + 1
        result = (
            (size - 1) * window.stride[axis]
            - window.padding[axis]
            - window.padding_end[axis]
            + reach
            + extra[axis]
        )
        if result < 1:
            raise ValueError(
                f"An input of size {tuple(input_size)} with kernel size {window.kernel_size}, stride {window.stride} "
                f"and padding {window.padding} gives an output of size {result} along axis {axis}, which "
                "must be at least 1."
            )
        sizes.append(result)
    return tuple(sizes)


def check_space(tensor: Tensor, name: str, expected: Sequence[int], why: str) -> None:
    """The last axes of a tensor are the expected ones; states the whole shape that was expected."""
    axes = len(expected)
    if tuple(tensor.shape[-axes:]) != tuple(expected):
        shape = (*tensor.shape[:-axes], *expected)
        raise ValueError(f"{name} must have shape {_tuple(shape)}, {why}, but its shape is {_shape(tensor)}.")


def _axis_names(axes: int) -> str:
    return ", ".join(("depth", "height", "width")[-axes:]) if axes > 1 else "length"


def _tuple(sizes: Sequence[int]) -> str:
    return str(tuple(sizes))


def _shape(tensor: Tensor) -> str:
    return _tuple(tensor.shape)
