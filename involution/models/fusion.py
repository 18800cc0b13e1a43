"""A network for inference: batch norms folded into what is before them, and fewer passes over its maps."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, TypeGuard, TypeVar

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..layers._shared import CONVOLUTIONS
from ..layers.epilogue import Epilogue
from ..layers.kernel_branch import KernelBranch
from .blocks import Bottleneck, ConvNormAct, Shortcut, Stem
from .inference import FusedBottleneck, FusedStem

__all__ = ["fuse"]

Module = TypeVar("Module", bound=nn.Module)

# Convolution and norm of each part.
_PAIRS: dict[type[nn.Module], list[tuple[str, str]]] = {
    Stem: [("conv1", "norm1"), ("conv2", "norm3")],
    Bottleneck: [("conv1", "norm1"), ("conv2", "norm3")],
    Shortcut: [("conv", "norm")],
    ConvNormAct: [("conv", "norm")],
    KernelBranch: [("reduce", "norm")],
}


def fuse(model: Module) -> Module:
    """Fuses batch norms into the layers before them, in a copy of a network for inference.

    A batch norm that directly follows a convolution is folded into its weight and bias: ``weight * scale`` and
    ``(bias - mean) * scale + shift`` with ``scale = gamma / sqrt(variance + eps)``. A norm after an involution cannot
    be folded, because the channels of a group share a kernel. That norm and the ReLU after it become the involution's
    ``epilogue``: a part of the fused kernel if the layer takes it, and otherwise computed after the involution. Stems
    and blocks without a norm left become :class:`~involution.models.inference.FusedStem` and
    :class:`~involution.models.inference.FusedBottleneck`, whose convolutions on a GPU include the ReLU and the addition
    that follow them. Results are the same except for rounding. The copy cannot be trained, and does not load
    checkpoints of the network.

    A parametrised convolution (``torch.nn.utils.parametrize``) is folded with its weight in evaluation mode.

    Args:
        model (nn.Module): A :class:`RedNet`, an involution layer, or a module that contains them, in training or
            evaluation mode. Norms other than batch norms with running statistics are kept.

    Returns:
        nn.Module: A deep copy in evaluation mode, whose parameters need no gradients.

    Raises:
        ValueError: If a convolution has no weight of its own to fold into, because a hook makes it.
    """
    for module, convolution, norm in _pairs(model):
        _check_weight(getattr(module, convolution), f"{type(module).__name__}.{convolution}", norm)
    fused = copy.deepcopy(model).eval().requires_grad_(False)
    for module, convolution, norm in list(_pairs(fused)):
        first, second = getattr(module, convolution), getattr(module, norm)
        setattr(module, convolution, fuse_conv_bn_eval(_plain(first), second).requires_grad_(False))
        setattr(module, norm, nn.Identity())
    for module in list(fused.modules()):
        if isinstance(module, Stem | Bottleneck) and _has_statistics(module.norm2):
            module.involution.epilogue = Epilogue(module.norm2)
            module.norm2 = module.relu2 = nn.Identity()
    for name, module in list(fused.named_modules()):
        if name and isinstance(module, Stem | Bottleneck) and _is_folded(module):
            kind = FusedStem if isinstance(module, Stem) else FusedBottleneck
            fused.set_submodule(name, kind(module).eval())  # type: ignore[arg-type]
    return fused


def _is_folded(module: Stem | Bottleneck) -> bool:
    """Whether nothing of a module's norms is left, nor anything in their place that ``fuse`` does not know."""
    shortcut = (
        [module.shortcut.norm] if isinstance(module, Bottleneck) and module.shortcut is not None else []
    )
    norms = (module.norm1, module.norm2, module.relu2, module.norm3, *shortcut)
    return module.involution.epilogue is not None and all(type(norm) is nn.Identity for norm in norms)


def _has_statistics(norm: nn.Module | None) -> TypeGuard[_BatchNorm]:
    return isinstance(norm, _BatchNorm) and norm.running_mean is not None


def _pairs(model: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """Every batch norm with running statistics that follows a convolution, by names in their module."""
    for module in model.modules():
        for kind, pairs in _PAIRS.items():
            for convolution, norm in pairs if isinstance(module, kind) else ():
                if _has_statistics(getattr(module, norm)):
                    yield module, convolution, norm


def _plain(convolution: Any) -> Any:
    """The convolution with its weight and bias as they are in evaluation, without their parametrisations.

    A new one, because ``parametrize.remove_parametrizations`` takes them from the copy's class, which is the
    original's too.
    """
    if not parametrize.is_parametrized(convolution):
        return convolution
    weight, bias = convolution.weight, convolution.bias
    sizes = (convolution.in_channels, convolution.out_channels, convolution.kernel_size)
    window = (convolution.stride, convolution.padding, convolution.dilation, convolution.groups)
    kind: Any = CONVOLUTIONS[weight.dim() - 2]
    plain = kind(*sizes, *window, bias is not None, convolution.padding_mode, device="meta").eval()
    plain.weight = nn.Parameter(weight.detach())
    if bias is not None:
        plain.bias = nn.Parameter(bias.detach())
    return plain


def _check_weight(convolution: nn.Module, name: str, norm: str) -> None:
    if not isinstance(convolution, nn.modules.conv._ConvNd):
        raise ValueError(
            f"fuse cannot fold {norm} into {name}, which is a {type(convolution).__name__} and no convolution."
        )
    if not parametrize.is_parametrized(convolution, "weight") and "weight" not in convolution._parameters:
        raise ValueError(
            f"fuse cannot fold {norm} into {name}, whose weight is made by a hook, as torch.nn.utils.weight_norm and "
            "torch.nn.utils.prune make it. Make it a parameter first, with torch.nn.utils.remove_weight_norm or "
            "prune.remove."
        )
