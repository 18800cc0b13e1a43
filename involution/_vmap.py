"""The operators under ``torch.vmap``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._composition import apply_epilogue

__all__ = ["fused_rule", "rule"]

MappedResult = tuple[Tensor, int]


def _fold(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """``(size * B, ...)``: the mapped axis, or as many copies, joined with the batch."""
    mapped = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return mapped.reshape(size * mapped.shape[1], *mapped.shape[2:])


def rule(operator: Callable[..., Tensor]) -> Callable[..., MappedResult]:
    """The mapped axis joins the batch, over which the operations are maps anyway."""

    def fold_both(info: Any, in_dims: tuple, first: Tensor, second: Tensor, *arguments: Any) -> MappedResult:
        size = info.batch_size
        folded = (_fold(first, in_dims[0], size), _fold(second, in_dims[1], size))
        result = operator(*folded, *arguments)
        return result.reshape(size, result.shape[0] // size, *result.shape[1:]), 0

    return fold_both


def fused_rule(info: Any, in_dims: tuple, *arguments: Any) -> MappedResult:
    """The mapped axis joins the batch, where all of it shares weight and epilogue; else the composition is mapped."""
    operators, size = torch.ops.involution, info.batch_size
    arguments += (None, None, False)[len(arguments) - 8 :]  # the schema's defaults, which torch leaves out
    in_dims += (None,) * (len(arguments) - len(in_dims))
    if all(in_dims[index] is None for index in (2, 3, 8, 9)):
        folded = [_fold(arguments[index], in_dims[index], size) for index in range(2)]
        result = operators.fused_involution.default(*folded, *arguments[2:])
        return result.reshape(size, result.shape[0] // size, *result.shape[1:]), 0

    def mapped(index: int) -> Any:
        """With the mapped axis in front, of size 1 where a tensor is not mapped."""
        tensor, dim = arguments[index], in_dims[index]
        return tensor if tensor is None else tensor[None] if dim is None else tensor.movedim(dim, 0)

    features, weight, bias = mapped(1), mapped(2), mapped(3)
    kernel_size, *window = arguments[4:8]
    kernels = weight[:, None] @ features.flatten(3)  # (size or 1, B, P, positions)
    if bias is not None:
        kernels = kernels + bias[:, None, :, None]
    kernels = kernels.expand(size, *kernels.shape[1:]).flatten(0, 1)
    groups = weight.shape[1] // math.prod(kernel_size)
    kernels = kernels.reshape(kernels.shape[0], groups, *kernel_size, *features.shape[3:])
    output = operators.involution.default(_fold(arguments[0], in_dims[0], size), kernels, *window)
    # For the epilogue the mapped axis joins the channels, each of which has its factor.
    output = output.unflatten(0, (size, output.shape[0] // size)).movedim(0, 1)
    channels = output.shape[1:3]
    scale, shift = (
        None if factor is None else factor.expand(channels).flatten() for factor in (mapped(8), mapped(9))
    )
    result = apply_epilogue(output.flatten(1, 2), scale, shift, arguments[10])
    return result.unflatten(1, channels), 1
