"""What several layers need: checks of their arguments, and a softmax that leaves storage alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from torch import Tensor, fx, nn

from .. import _arguments
from .._tracing import shape

CONVOLUTIONS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
BATCH_NORMS: dict[int, type[nn.Module]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
AXES = ("depth", "height", "width")

# That share a kernel in RedNet, and wherever neither they nor the groups are given.
GROUP_CHANNELS = 16

NormLayer = Callable[[int], nn.Module] | str | None
ActivationLayer = Callable[[], nn.Module] | None

# Not in place, because hooks may have seen what a normalisation or a convolution gives.
RELU: Callable[[], nn.Module] = nn.ReLU


class NotScriptable:
    """A module that ``torch.jit.script`` refuses in a sentence; torch asks this method first, of every part too."""

    def __prepare_scriptable__(self) -> NoReturn:
        raise NotImplementedError(
            f"{type(self).__name__} cannot be scripted: its checks and sizes are Python. Use torch.export, "
            "torch.compile, or torch.jit.trace, whose traces hold for other sizes too. In a scripted function, call "
            "torch.ops.involution.involution and its siblings."
        )


def has_hooks(module: nn.Module) -> bool:
    """Whether something watches the calls of a module, so that these have to be made."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name) for name in hooks)


def is_plain_convolution(module: Any) -> bool:
    """Whether a module is a convolution and nothing else: torch's own code, on its own weight, unwatched."""
    kinds: list[Any] = [kind for kind in CONVOLUTIONS.values() if isinstance(module, kind)]
    # By what it runs, not by its type, for which torch.export has stand-ins.
    if not kinds or type(module).forward is not kinds[0].forward:
        return False
    return "weight" in module._parameters and not has_hooks(module)  # a parametrisation takes the weight out


def check_count(value: int, name: str, least: int = 1) -> int:
    """An integer of at least 1, or ``least``."""
    number = _arguments.integer(value, name)
    if number < least:
        raise ValueError(f"{name} must be at least {least}, not {number}.")
    return number


def check_map(tensor: Tensor, name: str, channels: int, axes: int = 2) -> None:
    """A ``(batch, channels, *space)`` tensor with the channels that a module was made for."""
    if isinstance(tensor, fx.Proxy):  # torch.fx only records what is computed
        return
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, not {type(tensor).__name__}.")
    if tensor.dim() != axes + 2 or shape(tensor)[1] != channels:
        space = "length" if axes == 1 else ", ".join(AXES[-axes:])
        raise ValueError(
            f"{name} must be (batch, {channels}, {space}), but its shape is {tuple(shape(tensor))}."
        )


def choose_groups(channels: int, groups: int | None, group_channels: int | None) -> int:
    """The number of groups: as given, or so many that ``group_channels`` channels share a kernel."""
    if group_channels is not None:
        group_channels = check_count(group_channels, "group_channels")
    if groups is None:
        group_channels = GROUP_CHANNELS if group_channels is None else group_channels
        if channels <= group_channels:
            return 1
        if channels % group_channels != 0:
            raise ValueError(
                f"{channels} channels cannot be divided into groups of group_channels={group_channels}; "
                f"give a divisor of {channels} as group_channels or as groups."
            )
        return channels // group_channels
    groups = check_count(groups, "groups")
    if channels % groups != 0:
        raise ValueError(f"groups must divide the {channels} channels, but it is {groups}.")
    if group_channels is not None and groups != choose_groups(channels, None, group_channels):
        raise ValueError(
            f"groups={groups} and group_channels={group_channels} do not agree on {channels} channels, of which "
            f"{channels // groups} are in each of {groups} groups; give one of them."
        )
    return groups


def make_norm(layer: NormLayer, axes: int, channels: int, factory: dict[str, Any]) -> nn.Module | None:
    """The normalisation of ``channels`` channels, on the device and of the dtype that were asked for."""
    if layer is None:
        return None
    if layer == "batch":
        return BATCH_NORMS[axes](channels, **factory)
    if isinstance(layer, nn.Module) or not callable(layer):
        raise TypeError(
            'norm_layer must be "batch", None, or a class or callable that makes a module from a number of channels, '
            f"not {_given(layer)}."
        )
    # A callable of one's own need not take device and dtype.
    return _made("norm_layer", layer, layer(channels)).to(**factory)


def make_activation(layer: ActivationLayer) -> nn.Module | None:
    """The activation, if there is one."""
    if layer is None:
        return None
    if isinstance(layer, nn.Module) or not callable(layer):
        raise TypeError(
            f"activation_layer must be None, or a class or callable that makes a module, not {_given(layer)}."
        )
    return _made("activation_layer", layer, layer())


def _given(layer: object) -> str:
    """An argument that is not what makes a module; of a module, which its maker could be mistaken for, says so."""
    if not isinstance(layer, nn.Module):
        return repr(layer)
    return (
        f"the module {layer!r}, of which there is only one; give its class or a function that makes a new one"
    )


def _made(name: str, layer: object, module: object) -> nn.Module:
    if not isinstance(module, nn.Module):
        raise TypeError(f"{name} must make a module, but {layer!r} made {module!r}.")
    return module


def initialise_convolutions(*modules: nn.Module | None) -> None:
    """Kaiming's normal distribution over the fan-out, biases of zero, as RedNet's convolutions start."""
    for module in modules:
        if module is not None:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")  # type: ignore[arg-type]
            if module.bias is not None:
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]


def softmax_over_points(scores: Tensor) -> Tensor:
    """Softmax over axis 2 of ``(B, G, points, *space)`` that keeps how the scores are stored.

    torch's softmax first copies whatever is not contiguous, and this is a layer's largest tensor.
    """
    return _softmax_over_points(scores)


# Functions with this mark are one node to torch.fx, because what they do depends on the tensors that they get.
@fx.wrap
def _softmax_over_points(scores: Tensor) -> Tensor:
    axes = range(scores.dim())
    # Asked of strides alone: whether a tensor is contiguous depends on sizes, which may depend on data.
    if scores.stride(-1) != 1 and scores.stride(2) == 1:
        points_last = scores.permute(0, *axes[3:], 1, 2)
        return points_last.softmax(-1).permute(0, -2, -1, *axes[1:-2])
    return scores.softmax(2)


def per_axis_text(values: Sequence[int]) -> str:
    """One number where all are the same, and all of them otherwise."""
    return str(values[0]) if len(set(values)) == 1 else str(tuple(values))


def pad_argument(front: Sequence[int], behind: Sequence[int]) -> list[int] | None:
    """What ``torch.nn.functional.pad`` takes, last axis first; None where there is nothing to do."""
    if not any(front) and not any(behind):
        return None
    return [amount for pair in zip(reversed(front), reversed(behind), strict=True) for amount in pair]
