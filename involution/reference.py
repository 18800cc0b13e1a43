"""The definition in plain PyTorch: the fallback on any device, and what the kernels are compared with.

With input ``x``, kernel tensor ``w`` and a tensor ``y`` shaped like the output, everything is a partial
contraction of one trilinear form (Li et al., "Involution: Inverting the Inherence of Convolution for
Visual Recognition", CVPR 2021, section 3; ``g`` is the group of channel ``c``)::

    T(x, w, y) = sum over b, c, k, o of  y[b, c, o] * w[b, g, k, o] * x[b, c, o*stride - padding + k*dilation]

Positions of ``x`` outside the input are zeros that take part in the product. The frames of input and output
are independent here, as in the dispatcher operators: the sizes are those of the tensors, and a window may
reach beyond the input on either side.

Each operation is a loop over kernel points that multiplies a shifted view: no unfolded tensor is made, and
everything is built of differentiable operations. float16 and bfloat16 are summed in float32.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["involution", "involution_transpose", "local_correlation"]


def _accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _points(kernel_size: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """The kernel points in row-major order."""
    return itertools.product(*(range(size) for size in kernel_size))


def _extents(
    output_size: Sequence[int], kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> list[int]:
    """How far the windows of all output positions reach along each axis, from the first one's start."""
    return [
        max(0, (o - 1) * s + (k - 1) * d + 1)
        for o, k, s, d in zip(output_size, kernel_size, stride, dilation, strict=True)
    ]


def _reached(
    point: Sequence[int], output_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[Any, ...]:
    """The index of the positions, in the padded frame, that a kernel point reaches from every output position."""
    places = (
        slice(k * d, k * d + s * (o - 1) + 1 if o > 0 else k * d, s)
        for k, o, s, d in zip(point, output_size, stride, dilation, strict=True)
    )
    return (..., *places)


def _point_index(point: Sequence[int]) -> tuple[Any, ...]:
    """The index of one kernel point's values, with an axis for the channels of a group."""
    return (slice(None), slice(None), None, *point)


def _pad(x: Tensor, padding: Sequence[int], extents: Sequence[int]) -> Tensor:
    """Zeros around ``x``, or a crop of it, so that its spatial axes are just what the windows reach."""
    inside: list[Any] = [...]
    amounts: list[int] = []
    for size, front, extent in zip(x.shape[2:], padding, extents, strict=True):
        start = min(max(0, -front), size)
        stop = max(start, min(size, extent - front))
        inside.append(slice(start, stop))
        before = min(max(0, front), extent)
        amounts = [before, extent - before - (stop - start), *amounts]
    return F.pad(x[tuple(inside)], amounts)


def involution(
    input: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """``dT/dy``: the weighted sum of every output position's neighbourhood.

    Args:
        input (Tensor): ``(B, C, *In)``.
        weight (Tensor): ``(B, G, *K, *Out)``, with ``C`` divisible by ``G``.
        stride (sequence of int): Positions from one window to the next, one integer per axis.
        padding (sequence of int): Zeros in front of each axis.
        dilation (sequence of int): Positions from one kernel point to the next.

    Returns:
        ``(B, C, *Out)``.
    """
    axes = len(stride)
    kernel_size, output_size = weight.shape[2 : 2 + axes], weight.shape[2 + axes :]
    batch, channels, groups = input.shape[0], input.shape[1], weight.shape[1]
    dtype = _accumulation_dtype(input.dtype)

    padded = _pad(input.to(dtype), padding, _extents(output_size, kernel_size, stride, dilation))
    padded = padded.unflatten(1, (groups, channels // groups))
    output = padded.new_zeros((batch, groups, channels // groups, *output_size))
    for point in _points(kernel_size):
        shifted = padded[_reached(point, output_size, stride, dilation)]
        output = output + shifted * weight[_point_index(point)].to(dtype)
    return output.flatten(1, 2).to(input.dtype)


def involution_transpose(
    input: Tensor,
    weight: Tensor,
    output_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """``dT/dx``: every input position spreads its kernel over its neighbourhood.

    Args:
        input (Tensor): ``y``, ``(B, C, *Out)``.
        weight (Tensor): ``(B, G, *K, *Out)``, with ``C`` divisible by ``G``.
        output_size (sequence of int): The spatial size ``In`` of the result.
        stride (sequence of int): That of the involution which this transposes, one integer per axis.
        padding (sequence of int): That involution's padding.
        dilation (sequence of int): That involution's dilation.

    Returns:
        ``(B, C, *In)``.
    """
    axes = len(stride)
    kernel_size, frame = weight.shape[2 : 2 + axes], weight.shape[2 + axes :]
    batch, channels, groups = input.shape[0], input.shape[1], weight.shape[1]
    dtype = _accumulation_dtype(input.dtype)

    grouped = input.to(dtype).unflatten(1, (groups, channels // groups))
    extents = _extents(frame, kernel_size, stride, dilation)
    spread = grouped.new_zeros((batch, groups, channels // groups, *extents))
    for point in _points(kernel_size):
        spread[_reached(point, frame, stride, dilation)] += grouped * weight[_point_index(point)].to(dtype)
    # Cropping the padding is padding with the opposite sign.
    cropped = _pad(spread.flatten(1, 2), [-front for front in padding], output_size)
    return cropped.to(input.dtype)


def local_correlation(
    query: Tensor,
    key: Tensor,
    kernel_size: Sequence[int],
    groups: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """``dT/dw``: the product, summed over a group's channels, of each position with its neighbourhood.

    Args:
        query (Tensor): ``y``, ``(B, C, *Out)``.
        key (Tensor): ``x``, ``(B, C, *In)``.
        kernel_size (sequence of int): The neighbourhood's size along each axis.
        groups (int): How many groups the channels are divided into.
        stride (sequence of int): Positions from one window to the next, one integer per axis.
        padding (sequence of int): Zeros in front of each axis.
        dilation (sequence of int): Positions from one kernel point to the next.

    Returns:
        ``(B, G, *K, *Out)``.
    """
    output_size = query.shape[2:]
    batch, channels = query.shape[:2]
    dtype = _accumulation_dtype(query.dtype)

    padded = _pad(key.to(dtype), padding, _extents(output_size, kernel_size, stride, dilation))
    padded = padded.unflatten(1, (groups, channels // groups))
    grouped = query.to(dtype).unflatten(1, (groups, channels // groups))
    products = [
        (grouped * padded[_reached(point, output_size, stride, dilation)]).sum(2)
        for point in _points(kernel_size)
    ]
    return torch.stack(products, 2).reshape(batch, groups, *kernel_size, *output_size).to(query.dtype)
