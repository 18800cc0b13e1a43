"""A convolution with the ReLU behind it, and a residual between them, in one kernel where torch offers one."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._shared import is_plain_convolution

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def convolution_relu(convolution: Any, input: Tensor, residual: Tensor | None = None) -> Tensor:
    """``relu(convolution(input) + residual)``, by one kernel of cuDNN where :func:`is_one_kernel` says so.

    On a GPU a ReLU and an addition by themselves read and write the whole map once more each, which takes about as long
    as a 1x1 convolution of a wide map.

    Args:
        convolution (nn.Module): A convolution of as many axes as the input has.
        input (Tensor): ``(B, C, *In)``.
        residual (Tensor, optional): ``(B, out_channels, *Out)``; nothing is added without it.

    Returns:
        ``(B, out_channels, *Out)``.
    """
    if not is_one_kernel(convolution, input, residual):
        output = convolution(input)
        return F.relu(output if residual is None else output + residual)
    window = (convolution.stride, convolution.padding, convolution.dilation, convolution.groups)
    if residual is None:
        return torch.cudnn_convolution_relu(input, convolution.weight, convolution.bias, *window)
    return torch.cudnn_convolution_add_relu(
        input, convolution.weight, residual, 1.0, convolution.bias, *window
    )


def is_one_kernel(convolution: Any, *inputs: Tensor | None) -> bool:
    """Whether cuDNN runs a 2D convolution with what follows it: on a GPU, in eager mode, without derivatives.

    What records the program (``torch.compile``, ``torch.export``, ``torch.fx``, ``torch.jit.trace``) sees the
    convolution, the addition and the ReLU by themselves: compilers join them on their own.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    tensors = [each for each in inputs if each is not None]
    if not all(type(each) is Tensor and each.is_cuda for each in tensors):  # no proxy and no fake tensor
        return False
    if not (isinstance(convolution, nn.Conv2d) and is_plain_convolution(convolution)):
        return False
    if convolution.padding_mode != "zeros" or isinstance(convolution.padding, str):
        return False
    weight = convolution.weight
    tensors += [weight] if convolution.bias is None else [weight, convolution.bias]
    return (
        weight.dtype in _DTYPES
        and all(each.dtype == weight.dtype and each.device == weight.device for each in tensors)
        and all(each.dim() == 4 and each.numel() > 0 for each in tensors if each is not convolution.bias)
        and torch.backends.cudnn.is_available()
        and torch.backends.cudnn.enabled
        and not torch.is_autocast_enabled("cuda")
        and not (torch.is_grad_enabled() and any(each.requires_grad for each in tensors))
    )
