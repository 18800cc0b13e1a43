"""The fused involution as a composition: a matrix product makes the kernels, the involution applies them.

What ``csrc/fused.cpp`` does, in Python: for installations without the extension, for transforms that take the
operator apart, and for derivatives, which make the kernels again. Everything here is made of differentiable
operations, and sizes may be symbols.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Size = Sequence[int]


def is_channels_last(activation: Tensor) -> bool:
    """Channels are the innermost axis in memory, as in torch.channels_last, also for sequences and slices."""
    if not (is_known(activation.shape[1] > 1) and is_known(activation.stride(1) == 1)):
        return False
    if any(isinstance(size, torch.SymInt) for size in activation.shape):
        return not all(is_known(size == 1) for size in activation.shape[2:])
    return not activation.is_contiguous()


def is_known(condition: bool | torch.SymBool) -> bool:
    """Whether a condition holds; of a symbolic size, whether it holds for every size that this one may have."""
    if isinstance(condition, bool):
        return condition
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(condition)


def pointwise(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 1x1 convolution as a matrix product, which takes the bias along.

    Args:
        features: ``(B, R, *space)``.
        weight: ``(P, R)``.
        bias: ``(P)``, or None.

    Returns:
        ``(B, P, *space)``, channels_last where the features are, and contiguous otherwise.
    """
    if is_channels_last(features):
        return F.linear(features.movedim(1, -1), weight, bias).movedim(-1, 1)
    flat = features.reshape(*features.shape[:2], math.prod(features.shape[2:]))
    weights = weight.expand(flat.shape[0], *weight.shape)
    product = torch.bmm(weights, flat) if bias is None else torch.baddbmm(bias[:, None], weights, flat)
    return product.reshape(*product.shape[:2], *features.shape[2:])


def make_kernels(features: Tensor, weight: Tensor, bias: Tensor | None, kernel_size: Size) -> Tensor:
    """``(B, G, *K, *Out)``: the kernels of every position, in the storage format of the features."""
    groups = weight.shape[0] // math.prod(kernel_size)
    return pointwise(features, weight, bias).unflatten(1, (groups, *kernel_size))


def apply_epilogue(output: Tensor, scale: Tensor | None, shift: Tensor | None, relu: bool) -> Tensor:
    """``output * scale[c] + shift[c]`` and ReLU, as far as they are asked for, in float32 or better."""
    if scale is None or shift is None:
        return output.relu() if relu else output
    channels = (-1, *(1 for _ in output.shape[2:]))
    wide = torch.promote_types(output.dtype, torch.float32)
    result = output.to(wide) * scale.view(channels).to(wide) + shift.view(channels).to(wide)
    return (result.relu() if relu else result).to(output.dtype)


def compose(
    input: Tensor,
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    kernel_size: Size,
    stride: Size,
    padding: Size,
    dilation: Size,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """``torch.ops.involution.fused_involution`` by the operators that it is made of."""
    kernels = make_kernels(features, weight, bias, kernel_size)
    output = torch.ops.involution.involution.default(input, kernels, stride, padding, dilation)
    return apply_epilogue(output, scale, shift, relu)


def check(
    input: Tensor,
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    kernel_size: Size,
    stride: Size,
    padding: Size,
    dilation: Size,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> None:
    """Raises unless the arguments fit each other; what ``check_fused_operands`` of csrc/fused.cpp does.

    Raises:
        ValueError: a shape, size or device does not fit; the message says which.
        TypeError: a dtype does not fit.
    """
    name = "fused_involution"
    axes = len(stride)
    if not len(kernel_size) == len(padding) == len(dilation) == axes or not 1 <= axes <= 3:
        raise ValueError(
            f"{name} needs kernel_size, stride, padding and dilation of one length, 1 to 3, but they are "
            f"{tuple(kernel_size)}, {tuple(stride)}, {tuple(padding)} and {tuple(dilation)}."
        )
    if min(*kernel_size, *stride, *dilation) < 1:
        raise ValueError(
            f"{name} needs kernel sizes, strides and dilations of at least 1, but they are {tuple(kernel_size)}, "
            f"{tuple(stride)} and {tuple(dilation)}."
        )
    others = {"features": features, "weight": weight, **({} if bias is None else {"bias": bias})}
    for other_name, other in others.items():
        if other.dtype != input.dtype:
            raise TypeError(
                f"{name} needs tensors of one dtype, but input is {input.dtype} and {other_name} {other.dtype}."
            )
        if other.device != input.device:
            raise ValueError(
                f"{name} needs tensors on one device, but input is on {input.device} and {other_name} on "
                f"{other.device}."
            )
    if input.dim() != axes + 2 or features.dim() != axes + 2 or features.shape[0] != input.shape[0]:
        raise ValueError(
            f"{name} needs input and features of {axes + 2} dimensions and one batch size, but their shapes are "
            f"{tuple(input.shape)} and {tuple(features.shape)}."
        )
    if weight.dim() != 2 or weight.shape[1] != features.shape[1]:
        raise ValueError(
            f"{name} needs a weight of (groups * kernel points, {features.shape[1]}), one column for each channel "
            f"of features, but its shape is {tuple(weight.shape)}."
        )
    rows, points = weight.shape[0], math.prod(kernel_size)
    if rows < 1 or rows % points != 0:
        raise ValueError(
            f"{name} needs a weight with a multiple of the {points} points of kernel_size {tuple(kernel_size)} "
            f"rows, but its shape is {tuple(weight.shape)}."
        )
    if input.shape[1] % (rows // points) != 0:
        raise ValueError(
            f"{name}: the {input.shape[1]} channels of input cannot be divided into the {rows // points} groups of "
            f"a weight of shape {tuple(weight.shape)}."
        )
    if bias is not None and tuple(bias.shape) != (rows,):
        raise ValueError(
            f"{name} needs a bias of {rows} numbers, one for each row of weight, but its shape is "
            f"{tuple(bias.shape)}."
        )
    _check_epilogue(name, input, scale, shift)


def _check_epilogue(name: str, input: Tensor, scale: Tensor | None, shift: Tensor | None) -> None:
    if (scale is None) != (shift is None):
        given = "shift" if scale is None else "scale"
        raise ValueError(f"{name} takes scale and shift together or neither, but only {given} is given.")
    for factor_name, factor in (("scale", scale), ("shift", shift)):
        if factor is None:
            continue
        if factor.dtype != torch.float32:
            raise TypeError(f"{name} needs a {factor_name} of float32, but it is {factor.dtype}.")
        if tuple(factor.shape) != (input.shape[1],):
            raise ValueError(
                f"{name} needs a {factor_name} of one number for each of the {input.shape[1]} channels, but it has "
                f"shape {tuple(factor.shape)}."
            )
        if factor.device != input.device:
            raise ValueError(
                f"{name} needs tensors on one device, but input is on {input.device} and {factor_name} on "
                f"{factor.device}."
            )
