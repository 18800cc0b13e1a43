"""What the public functions accept: one place that completes arguments and explains wrong ones.

Every check raises before anything is computed, in a sentence that names the offending values.

``involution_window``, ``transpose_window`` and ``correlation_window`` complete and check everything but the tensors'
types. They depend on numbers alone, and a network asks the same few questions over and over, so what they answered
is remembered: an eager call takes less time than its checks would.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

Sizes = Sequence[int]  # the shape of a tensor

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class Window(NamedTuple):
    """A sliding window, one integer per axis; ``padding`` counts zeros in front, ``padding_end`` behind."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    padding_end: tuple[int, ...]
    dilation: tuple[int, ...]


def _as_integer(value: Any) -> int | None:
    """What ``value.__index__()`` gives, as for NumPy's integers; None for a truth value, a float and all else."""
    if isinstance(value, (int, torch.SymInt)):
        return None if isinstance(value, bool) else value  # type: ignore[return-value]
    if str(getattr(value, "dtype", "")) in ("bool", "torch.bool"):  # a truth value of NumPy or torch
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def integer(value: Any, name: str) -> int:
    """An integer, from anything that has ``__index__`` but truth values."""
    number = _as_integer(value)
    if number is None:
        raise TypeError(f"{name} must be an integer, not {value!r} of type {type(value).__name__}.")
    return number


def per_axis(value: int | Sequence[int], axes: int, name: str, least: int) -> tuple[int, ...]:
    """One integer per axis from an integer or a sequence of them."""
    values: tuple[Any, ...]
    if isinstance(value, (tuple, list)):
        values = tuple(value)
        if len(values) == 1:
            values *= axes
    elif (number := _as_integer(value)) is not None:
        values = (number,) * axes
    else:
        raise TypeError(
            f"{name} must be an integer or a sequence of {axes} integers, not {value!r} of type {type(value).__name__}."
        )
    if len(values) != axes:
        raise ValueError(
            f"{name} must be one integer or {axes}, one for each spatial axis, but {value!r} has {len(values)}."
        )
    numbers = []
    for element in values:
        number = _as_integer(element)
        if number is None:
            raise TypeError(f"{name} must hold integers, but {value!r} holds {element!r}.")
        if number < least:
            raise ValueError(f"{name} must be at least {least} along every axis, not {value!r}.")
        numbers.append(number)
    return tuple(numbers)


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


def check_tensors(first: Tensor, first_name: str, second: Tensor, second_name: str) -> None:
    """Two floating-point tensors of one dtype and device. Under autocast, dtypes are made one later."""
    if not isinstance(first, Tensor):
        raise TypeError(f"{first_name} must be a tensor, not {type(first).__name__}.")
    if not isinstance(second, Tensor):
        raise TypeError(f"{second_name} must be a tensor, not {type(second).__name__}.")
    dtype = first.dtype
    if dtype is not second.dtype and not _under_autocast(first.device.type):
        raise TypeError(
            f"{first_name} and {second_name} must have one dtype, but they are {dtype} and {second.dtype}."
        )
    if dtype not in DTYPES:
        raise TypeError(
            f"{first_name} and {second_name} must be float64, float32, float16 or bfloat16, not {dtype}."
        )
    if first.device != second.device:
        raise ValueError(
            f"{first_name} and {second_name} must be on one device, but they are on {first.device} and {second.device}."
        )


def _under_autocast(device_type: str) -> bool:
    return _has_autocast(device_type) and torch.is_autocast_enabled(device_type)


@torch.compiler.assume_constant_result  # torch 2.6 cannot compile it
def _has_autocast(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type)


def _check_shapes(
    axes: int, first: Sizes, first_name: str, second: Sizes, second_name: str, second_dims: int
) -> None:
    """The dimensions that two tensors must have, and one batch size."""
    if len(first) != axes + 2:
        raise ValueError(
            f"{first_name} must be (batch, channels, {_axis_names(axes)}) with {axes + 2} dimensions, "
            f"but its shape is {tuple(first)}."
        )
    if len(second) != second_dims:
        layout = (
            "(batch, channels, {0})" if second_dims == axes + 2 else "(batch, groups, kernel {0}, output {0})"
        )
        raise ValueError(
            f"{second_name} must be {layout.format(_axis_names(axes))} with {second_dims} dimensions, "
            f"but its shape is {tuple(second)}."
        )
    if first[0] != second[0]:
        raise ValueError(
            f"{first_name} and {second_name} must have one batch size, but it is {first[0]} in {first_name} "
            f"of shape {tuple(first)} and {second[0]} in {second_name} of shape {tuple(second)}."
        )


def check_groups(channels: int, groups: int, name: str) -> None:
    """Channels that divide evenly into at least one group."""
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


def check_space(shape: Sizes, name: str, expected: Sequence[int], why: str) -> None:
    """The last axes of a shape are the expected ones; states the whole shape that was expected."""
    axes = len(expected)
    if tuple(shape[-axes:]) != tuple(expected):
        whole = (*shape[:-axes], *expected)
        raise ValueError(f"{name} must have shape {whole}, {why}, but its shape is {tuple(shape)}.")


def _axis_names(axes: int) -> str:
    return ", ".join(("depth", "height", "width")[-axes:]) if axes > 1 else "length"


Answer = TypeVar("Answer")


def _is_plain(value: object) -> bool:
    """Whether a value equals none of another kind that would be refused, as True equals 1."""
    kind = type(value)
    if kind is not tuple:
        return kind is int or kind is str
    for element in value:  # type: ignore[attr-defined]
        if type(element) is not int:
            return False
    return True


def _remembered(check: Callable[..., Answer]) -> Callable[..., Answer]:
    """Asks once for the same number of axes, two shapes, and sizes."""
    known = functools.lru_cache(maxsize=1024)(check)

    @functools.wraps(check)
    def answer(axes: int, first: Sizes, second: Sizes, *sizes: Any) -> Answer:
        if not torch.compiler.is_compiling() and all(map(_is_plain, sizes)):
            try:
                return known(axes, first, second, *sizes)
            except TypeError:  # symbolic sizes cannot be hashed
                pass
        return check(axes, first, second, *sizes)

    return answer


@_remembered
def involution_window(
    axes: int,
    input: Sizes,
    weight: Sizes,
    stride: int | Sequence[int],
    padding: int | Sequence[int] | str,
    dilation: int | Sequence[int],
) -> Window:
    """The window of an involution of tensors of these shapes."""
    _check_shapes(axes, input, "input", weight, "weight", 2 * axes + 2)
    check_groups(input[1], weight[1], "input")
    check_kernel_size(weight[2 : 2 + axes], "weight")
    window = complete_window(axes, weight[2 : 2 + axes], stride, padding, dilation)
    expected = output_size(input[2:], window, "input")
    check_space(weight, "weight", expected, "one kernel for each output position")
    return window


@_remembered
def transpose_window(
    axes: int,
    input: Sizes,
    weight: Sizes,
    stride: int | Sequence[int],
    padding: int | Sequence[int] | str,
    output_padding: int | Sequence[int],
    dilation: int | Sequence[int],
) -> tuple[Window, tuple[int, ...]]:
    """The window of a transposed involution of tensors of these shapes, and the spatial size of its result."""
    _check_shapes(axes, input, "input", weight, "weight", 2 * axes + 2)
    check_groups(input[1], weight[1], "input")
    check_kernel_size(weight[2 : 2 + axes], "weight")
    window = complete_window(axes, weight[2 : 2 + axes], stride, padding, dilation)
    check_space(weight, "weight", input[2:], "one kernel for each input position")
    return window, transposed_size(input[2:], window, output_padding)


@_remembered
def correlation_window(
    axes: int,
    query: Sizes,
    key: Sizes,
    kernel_size: int | Sequence[int],
    groups: int,
    stride: int | Sequence[int],
    padding: int | Sequence[int] | str,
    dilation: int | Sequence[int],
) -> Window:
    """The window of a local correlation of tensors of these shapes."""
    _check_shapes(axes, query, "query", key, "key", axes + 2)
    if query[1] != key[1]:
        raise ValueError(
            f"query and key must have the same channels, but query has {query[1]} and key {key[1]}."
        )
    check_groups(query[1], groups, "query")
    sizes = per_axis(kernel_size, axes, "kernel_size", 1)
    window = complete_window(axes, sizes, stride, padding, dilation)
    expected = output_size(key[2:], window, "key")
    check_space(query, "query", expected, "one position for each window of key")
    return window
