"""Replaces the convolutions of an existing network by involutions."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn
from torch.nn.parameter import is_lazy

from .layers import Involution1d, Involution2d, Involution3d
from .layers._shared import GROUP_CHANNELS, check_count

__all__ = ["Conversion", "ConversionReport", "convert"]

_LAYERS: dict[type[nn.Module], Any] = {
    nn.Conv1d: Involution1d,
    nn.Conv2d: Involution2d,
    nn.Conv3d: Involution3d,
}

Select = Callable[[str, nn.Module], bool]


@dataclass(frozen=True)
class ConversionReport:
    """What :func:`convert` did with each convolution of a network.

    Attributes:
        replaced (dict of str to str): What each replaced convolution was and what it is now, by its name.
        left (dict of str to str): Why each other convolution was kept, by its name.
        parameters (tuple of int): The network's number of parameters before and after.
    """

    replaced: dict[str, str]
    left: dict[str, str]
    parameters: tuple[int, int]

    def __str__(self) -> str:
        before, after = self.parameters
        lines = [f"{len(self.replaced)} convolutions replaced, {len(self.left)} left."]
        lines += [f"  replaced {name or 'the module itself'}: {what}" for name, what in self.replaced.items()]
        lines += [f"  left {name or 'the module itself'}: {why}" for name, why in self.left.items()]
        return "\n".join([*lines, f"{before:,} parameters before, {after:,} after."])


class Conversion(NamedTuple):
    """The network, and what happened to its convolutions."""

    module: nn.Module
    report: ConversionReport


def convert(
    module: nn.Module,
    *,
    kernel_size: int = 7,
    replaces: Sequence[int] = (3,),
    group_channels: int | None = None,
    groups: int | None = None,
    reduction_ratio: int = 4,
    select: Select | None = None,
    in_place: bool = False,
    **arguments: Any,
) -> Conversion:
    """Replaces a network's 3x3 convolutions by involution, as RedNet is made from ResNet (CVPR 2021, section 4.1).

    An involution takes over the convolution's channels, stride, dilation, device and dtype, and gives an output of the
    same size: its padding grows with its kernel. If input and output channels differ, it first projects the input by a
    1x1 convolution. It has no bias of its output; the norm after it has one. A convolution that modules share becomes
    an involution that they share. Involutions start untrained, so train the network again.

    The following convolutions are kept, and the report says why:

    - those of another size;
    - those with groups, which mix fewer channels than an involution does;
    - those with a padding other than zeros;
    - those with fewer input channels than a group has, as in a stem, which are too few to make kernels from;
    - those whose output channels cannot be divided into the groups;
    - subclasses, whose own behaviour would be lost;
    - transposed convolutions;
    - those that ``select`` refuses.

    Args:
        module (nn.Module): The network, or a convolution itself. Hooks and parametrisations of replaced convolutions
            are lost.
        kernel_size (int): Kernel size of the involutions, along each axis. Default: 7
        replaces (sequence of int): Kernel sizes of the convolutions to replace. A convolution needs the same one of
            these along every axis. Default: (3,)
        group_channels (int, optional): How many channels share a kernel. Default: 16, unless ``groups`` is given
        groups (int, optional): The number of groups of each involution, in place of ``group_channels``. If both are
            given, they must agree for each convolution that is replaced. Default: None
        reduction_ratio (int): Reduction ratio of the kernel branch. Default: 4
        select (callable, optional): A function of a convolution's name and module that returns whether it may be
            replaced. Default: all may
        in_place (bool): Change ``module`` instead of a deep copy. If ``module`` is a convolution itself, it cannot be
            changed in place, and its replacement is returned. Default: False
        **arguments: Further arguments of :class:`Involution1d`, :class:`Involution2d` and :class:`Involution3d`, such
            as ``kernel_normalizer="softmax"``.

    Returns:
        Conversion: ``(module, report)``; ``print(report)`` lists every convolution.

    Raises:
        ValueError: If one of the kernel sizes is odd and the other even, so that no padding keeps the size, or an
            argument is out of range.

    Example:
        >>> model, report = convert(nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1)))
        >>> model[2].out_channels, list(report.left)
        (64, ['0'])
    """
    kernel_size = check_count(kernel_size, "kernel_size")
    replaces = tuple(check_count(size, "replaces") for size in replaces)
    for size in replaces:
        if (kernel_size - size) % 2:
            raise ValueError(
                f"A kernel of size {kernel_size} cannot replace one of size {size} and keep the output's size; both "
                "must be odd, or both even."
            )
    group_channels = None if group_channels is None else check_count(group_channels, "group_channels")
    groups = None if groups is None else check_count(groups, "groups")
    if not in_place:
        module = copy.deepcopy(module)
    before = _count(module)
    replaced: dict[str, str] = {}
    left: dict[str, str] = {}
    substitutes: dict[nn.Module, nn.Module] = {}
    for name, found in module.named_modules():
        if not isinstance(found, nn.modules.conv._ConvNd):
            continue
        why = _reason_to_leave(name, found, kernel_size, replaces, group_channels, groups, select)
        if why is not None:
            left[name] = why
            continue
        widths = {"group_channels": group_channels, "groups": groups, "reduction_ratio": reduction_ratio}
        layer = _substitute(found, kernel_size, {**widths, **arguments})
        substitutes[found] = layer
        replaced[name] = f"{_describe(found)} by {type(layer).__name__}({layer.extra_repr()})"
    if module in substitutes:
        module = substitutes[module]
    # All names of a shared module, which named_modules gives only once.
    for parent in list(module.modules()):
        for key, child in list(parent._modules.items()):
            if child in substitutes:
                setattr(parent, key, substitutes[child])
    return Conversion(module, ConversionReport(replaced, left, (before, _count(module))))


def _reason_to_leave(
    name: str,
    found: nn.Module,
    kernel_size: int,
    replaces: Sequence[int],
    group_channels: int | None,
    groups: int | None,
    select: Select | None,
) -> str | None:
    convolution: Any = found
    if isinstance(found, nn.modules.conv._ConvTransposeNd):
        return f"{_describe(found)} is transposed; InvolutionTranspose is its counterpart."
    if type(found) not in _LAYERS:
        return f"{type(found).__name__} is a subclass, whose own behaviour would be lost."
    if any(size not in replaces for size in convolution.kernel_size):
        return f"{_describe(found)} has another kernel size than {' or '.join(map(str, replaces))}."
    if convolution.groups != 1:
        return f"{_describe(found)} has {convolution.groups} groups."
    if convolution.padding_mode != "zeros":
        return f"{_describe(found)} pads by {convolution.padding_mode!r}, and involution by zeros."
    if groups is not None and convolution.out_channels % groups:
        return (
            f"{_describe(found)} has {convolution.out_channels} output channels, which cannot be divided into "
            f"{groups} groups of one size."
        )
    if groups is None:
        width = GROUP_CHANNELS if group_channels is None else group_channels
    else:
        width = convolution.out_channels // groups
    if convolution.in_channels < width:
        return (
            f"{_describe(found)} has {convolution.in_channels} input channels, fewer than the {width} that share a "
            "kernel."
        )
    if convolution.out_channels > width and convolution.out_channels % width:
        return (
            f"{_describe(found)} has {convolution.out_channels} output channels, which cannot be divided into groups "
            f"of {width}; give a divisor as group_channels."
        )
    padding = _grown_padding(convolution, kernel_size)
    if not isinstance(padding, str) and min(padding) < 0:
        return f"{_describe(found)} is larger than the involution, which would have to pad by {padding}."
    if select is not None and not select(name, found):
        return f"{_describe(found)} was not selected."
    return None


def _grown_padding(convolution: Any, kernel_size: int) -> tuple[int, ...] | str:
    """The padding with which a kernel of another size gives the same output size."""
    if convolution.padding == "same":
        return "same"
    padding = [0] * len(convolution.kernel_size) if convolution.padding == "valid" else convolution.padding
    axes = list(zip(padding, convolution.dilation, convolution.kernel_size, strict=True))
    grown = tuple(amount + dilation * (kernel_size - size) // 2 for amount, dilation, size in axes)
    centred = tuple(dilation * (kernel_size - 1) // 2 for dilation in convolution.dilation)
    return "same" if kernel_size % 2 and grown == centred else grown


def _substitute(convolution: Any, kernel_size: int, options: dict[str, Any]) -> Any:
    layer = _LAYERS[type(convolution)](
        convolution.in_channels,
        kernel_size,
        convolution.stride,
        _grown_padding(convolution, kernel_size),
        convolution.dilation,
        out_channels=convolution.out_channels,
        device=convolution.weight.device,
        dtype=convolution.weight.dtype,
        **options,
    )
    return layer.train(convolution.training)


def _describe(convolution: Any) -> str:
    return f"{type(convolution).__name__}({convolution.extra_repr()})"


def _count(module: nn.Module) -> int:
    # A lazy module's parameters have no number yet.
    return sum(parameter.numel() for parameter in module.parameters() if not is_lazy(parameter))
