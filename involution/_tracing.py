"""What ``torch.jit.trace`` needs, which hands out sizes as tensors and records whatever is computed from them.

The checks ask for numbers instead: they hold for the traced sizes, and the operators check again when the trace runs
on others.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _library


def shape(tensor: Tensor) -> Sequence[int]:
    """The sizes of a tensor as numbers, in a trace too."""
    if not torch.jit.is_tracing():
        return tensor.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        return tuple(int(size) for size in tensor.shape)


def numbers(*arguments: Any) -> Any:
    """Arguments as they are; of a size in a trace its number, with torch's warning that the trace keeps it."""
    if not torch.jit.is_tracing():
        return arguments
    return tuple(_number(argument) for argument in arguments)


def _number(argument: Any) -> Any:
    if isinstance(argument, (tuple, list)):
        return tuple(_number(element) for element in argument)
    is_size = isinstance(argument, Tensor) and argument.dim() == 0 and argument.dtype == torch.int64
    return int(argument) if is_size else argument


def involution_transpose(
    input: Tensor,
    weight: Tensor,
    output_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """The operator; a trace of it has the output size follow from that of its input, as it does everywhere."""
    if not torch.jit.is_tracing():
        return _library.involution_transpose(input, weight, output_size, stride, padding, dilation)
    sizes = zip(output_size, shape(input)[2:], stride, strict=True)
    beyond = [out - length * step for out, length, step in sizes]
    return _scripted_transpose()(input, weight, beyond, list(stride), list(padding), list(dilation))


def _transpose(
    input: Tensor,
    weight: Tensor,
    beyond: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    size = [input.size(2 + axis) * stride[axis] + beyond[axis] for axis in range(len(stride))]
    return torch.ops.involution.involution_transpose(input, weight, size, stride, padding, dilation)


@functools.cache
def _scripted_transpose() -> Callable[..., Tensor]:
    """Script, because a trace of the operator itself cannot hold a list of computed sizes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch deprecates scripting, where it traces nevertheless
        return torch.jit.script(_transpose)
