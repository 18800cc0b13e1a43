"""Batch norms folded into the convolutions before them, and into the fused involutions, for inference."""

from __future__ import annotations

import copy
from typing import TypeGuard, TypeVar

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..layers.epilogue import Epilogue
from ..layers.kernel_branch import KernelBranch
from .blocks import Bottleneck, Shortcut, Stem

__all__ = ["fuse"]

Module = TypeVar("Module", bound=nn.Module)

# Convolution and norm of each part.
_PAIRS: dict[type[nn.Module], list[tuple[str, str]]] = {
    Stem: [("conv1", "norm1"), ("conv2", "norm3")],
    Bottleneck: [("conv1", "norm1"), ("conv2", "norm3")],
    Shortcut: [("conv", "norm")],
    KernelBranch: [("reduce", "norm")],
}


def fuse(model: Module) -> Module:
    """A copy of a network for inference, in evaluation mode, with fewer passes over its maps.

    Every batch norm that follows a convolution directly is folded into it: ``weight * scale`` and
    ``(bias - mean) * scale + shift`` with ``scale = gamma / sqrt(variance + eps)``. The norm behind an involution
    cannot be, because a group's kernels are one for all its channels. It and the ReLU behind it become the
    involution's ``epilogue``: part of the fused kernel where the layer takes that, and run behind it otherwise. The
    result is the same but for rounding. It cannot be trained on, nor hold a checkpoint of the network as it was.

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
        if isinstance(module, Stem | Bottleneck) and _has_statistics(module.norm2):
            module.involution.epilogue = Epilogue(module.norm2)
            module.norm2 = module.relu2 = nn.Identity()
    return fused


def _has_statistics(norm: nn.Module | None) -> TypeGuard[_BatchNorm]:
    return isinstance(norm, _BatchNorm) and norm.running_mean is not None


def _fold(module: nn.Module, convolution: str, norm: str) -> None:
    first, second = getattr(module, convolution), getattr(module, norm)
    if _has_statistics(second):
        setattr(module, convolution, fuse_conv_bn_eval(first, second).requires_grad_(False))
        setattr(module, norm, nn.Identity())
