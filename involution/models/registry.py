"""The networks by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .rednet import RedNet

_BLOCKS = {26: (1, 2, 4, 1), 38: (2, 3, 5, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}

Indices = Sequence[int]


def rednet26(
    num_classes: int = 1000,
    in_channels: int = 3,
    stem_kernel_size: int = 3,
    features_only: bool = False,
    out_indices: Indices = (0, 1, 2, 3),
    drop_path: float = 0.0,
    **arguments: Any,
) -> RedNet:
    """Builds RedNet-26 of Li et al., CVPR 2021, table 1, with 9.2 M parameters. Arguments are :class:`RedNet`'s."""
    return _published(
        26, num_classes, in_channels, stem_kernel_size, features_only, out_indices, drop_path, arguments
    )


def rednet38(
    num_classes: int = 1000,
    in_channels: int = 3,
    stem_kernel_size: int = 3,
    features_only: bool = False,
    out_indices: Indices = (0, 1, 2, 3),
    drop_path: float = 0.0,
    **arguments: Any,
) -> RedNet:
    """Builds RedNet-38 of Li et al., CVPR 2021, table 1, with 12.4 M parameters. Arguments are :class:`RedNet`'s."""
    return _published(
        38, num_classes, in_channels, stem_kernel_size, features_only, out_indices, drop_path, arguments
    )


def rednet50(
    num_classes: int = 1000,
    in_channels: int = 3,
    stem_kernel_size: int = 3,
    features_only: bool = False,
    out_indices: Indices = (0, 1, 2, 3),
    drop_path: float = 0.0,
    **arguments: Any,
) -> RedNet:
    """Builds RedNet-50 of Li et al., CVPR 2021, table 1, with 15.5 M parameters. Arguments are :class:`RedNet`'s."""
    return _published(
        50, num_classes, in_channels, stem_kernel_size, features_only, out_indices, drop_path, arguments
    )


def rednet101(
    num_classes: int = 1000,
    in_channels: int = 3,
    stem_kernel_size: int = 3,
    features_only: bool = False,
    out_indices: Indices = (0, 1, 2, 3),
    drop_path: float = 0.0,
    **arguments: Any,
) -> RedNet:
    """Builds RedNet-101 of Li et al., CVPR 2021, table 1, with 25.7 M parameters. Arguments are :class:`RedNet`'s."""
    return _published(
        101, num_classes, in_channels, stem_kernel_size, features_only, out_indices, drop_path, arguments
    )


def rednet152(
    num_classes: int = 1000,
    in_channels: int = 3,
    stem_kernel_size: int = 3,
    features_only: bool = False,
    out_indices: Indices = (0, 1, 2, 3),
    drop_path: float = 0.0,
    **arguments: Any,
) -> RedNet:
    """Builds RedNet-152 of Li et al., CVPR 2021, table 1, with 34.0 M parameters. Arguments are :class:`RedNet`'s."""
    return _published(
        152, num_classes, in_channels, stem_kernel_size, features_only, out_indices, drop_path, arguments
    )


def rednet_tiny(
    num_classes: int = 10,
    in_channels: int = 3,
    stem_kernel_size: int = 3,
    features_only: bool = False,
    out_indices: Indices = (0, 1, 2),
    drop_path: float = 0.0,
    **arguments: Any,
) -> RedNet:
    """Builds a small RedNet for images of 8x8 to 32x32 pixels, such as digits and CIFAR. It is not from the paper.

    It has three stages of two blocks, of widths 16, 32 and 64, a stem of 32 channels that keeps the size, and 0.14 M
    parameters. Arguments, and all other defaults, are :class:`RedNet`'s.
    """
    settings: dict[str, Any] = {
        "widths": (16, 32, 64),
        "strides": (1, 2, 2),
        "stem": "small",
        "stem_channels": 32,
        **arguments,
    }
    return _named(
        (2, 2, 2), num_classes, in_channels, stem_kernel_size, features_only, out_indices, drop_path, settings
    )


def _published(depth: int, *arguments: Any) -> RedNet:
    return _named(_BLOCKS[depth], *arguments)


def _named(
    blocks: Sequence[int],
    num_classes: int,
    in_channels: int,
    stem_kernel_size: int,
    features_only: bool,
    out_indices: Indices,
    drop_path: float,
    others: dict[str, Any],
) -> RedNet:
    return RedNet(
        others.pop("blocks", blocks),
        num_classes=num_classes,
        in_channels=in_channels,
        stem_kernel_size=stem_kernel_size,
        features_only=features_only,
        out_indices=out_indices,
        drop_path=drop_path,
        **others,
    )


_MODELS: dict[str, Callable[..., RedNet]] = {
    function.__name__: function
    for function in (rednet26, rednet38, rednet50, rednet101, rednet152, rednet_tiny)
}


def list_models() -> list[str]:
    """Returns the names that :func:`create_model` takes."""
    return list(_MODELS)


def create_model(name: str, **arguments: Any) -> RedNet:
    """Builds a network by its name.

    Args:
        name (str): One of :func:`list_models`.
        **arguments: Arguments of the function of this name.

    Raises:
        ValueError: If there is no network of this name.
    """
    if name not in _MODELS:
        raise ValueError(f"There is no model {name!r}; there are {', '.join(_MODELS)}.")
    return _MODELS[name](**arguments)
