"""Batch norms folded into the convolutions before them, for inference."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..layers.kernel_branch import KernelBranch
from .blocks import Bottleneck, Shortcut, Stem

__all__ = ["fuse"]

Module = TypeVar("Module", bound=nn.Module)

# Convolution and norm of each part. The norm behind an involution stays: a group's kernels are one for all its
# channels, and cannot take in a factor for each.
_PAIRS: dict[type[nn.Module], list[tuple[str, str]]] = {
    Stem: [("conv1", "norm1"), ("conv2", "norm3")],
    Bottleneck: [("conv1", "norm1"), ("conv2", "norm3")],
    Shortcut: [("conv", "norm")],
    KernelBranch: [("reduce", "norm")],
}


def fuse(model: Module) -> Module:
    """A copy of a network for inference, in evaluation mode, with fewer passes over its maps.

    Every batch norm that follows a convolution directly is folded into it: ``weight * scale`` and
    ``(bias - mean) * scale + shift`` with ``scale = gamma / sqrt(variance + eps)``. The result is the same but for
    rounding. It cannot be trained on, nor hold a checkpoint of the network as it was.

    Args:
        model: a :class:`RedNet`, an involution layer, or any module that holds them; in any mode. Norms that are not
            batch norms with running statistics are left.

    Returns:
        A deep copy; its parameters need no gradients.
    """
    fused = copy.deepcopy(model).eval().requires_grad_(False)
    for module in list(fused.modules()):
        for kind, pairs in _PAIRS.items():
            if isinstance(module, kind):
                for convolution, norm in pairs:
                    _fold(module, convolution, norm)
    return fused


def _fold(module: nn.Module, convolution: str, norm: str) -> None:
    first, second = getattr(module, convolution), getattr(module, norm)
    if isinstance(second, nn.modules.batchnorm._BatchNorm) and second.running_mean is not None:
        setattr(module, convolution, fuse_conv_bn_eval(first, second).requires_grad_(False))
        setattr(module, norm, nn.Identity())
