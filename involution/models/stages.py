"""Numbers of RedNet's stages: their strides and dilations, and which of them are meant."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Sequence

from .. import _arguments


def geometry(
    strides: Sequence[int], dilations: Sequence[int], reduction: int, output_stride: int | None
) -> list[tuple[int, int, int]]:
    """Stride, dilation and the first block's dilation of each stage, as timm's ResNet chooses them."""
    possible = list(itertools.accumulate(strides, operator.mul, initial=reduction))
    if output_stride is None:
        output_stride = possible[-1]
    elif output_stride not in possible:
        raise ValueError(
            f"output_stride must be one of {sorted(set(possible))}, which the stem and the strides {tuple(strides)} "
            f"can give, not {output_stride!r}."
        )
    stages, factor = [], 1
    for stride, dilation in zip(strides, dilations, strict=False):
        before = factor
        if reduction >= output_stride:
            factor, stride = factor * stride, 1
        reduction *= stride
        stages.append((stride, dilation * factor, dilation * before))
    return stages


def stage_indices(indices: int | Sequence[int] | None, stages: int) -> list[int]:
    """Numbers of stages, counted from 0, as timm reads them."""
    if indices is None:
        indices = stages
    if isinstance(indices, Iterable):
        numbers = [_arguments.integer(index, "indices") for index in indices]
        taken = [index + stages if index < 0 else index for index in numbers]
    else:
        taken = list(range(stages - _arguments.integer(indices, "indices"), stages))
    if not taken or not all(0 <= index < stages for index in taken):
        raise ValueError(
            f"indices must be numbers of stages from {-stages} to {stages - 1}, or how many of the last, but it is "
            f"{indices}."
        )
    return taken


def rising_indices(out_indices: int | Sequence[int] | None, stages: int) -> tuple[int, ...]:
    """The same, in the order in which the maps come."""
    try:
        taken = stage_indices(out_indices, stages)
    except ValueError:
        taken = []
    if not taken or taken != sorted(set(taken)):
        raise ValueError(
            f"out_indices must be rising numbers of stages from 0 to {stages - 1}, or from {-stages} to -1, or how "
            f"many of the last, but it is {out_indices}."
        )
    return tuple(taken)
