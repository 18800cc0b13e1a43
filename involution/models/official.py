"""The names of the official RedNet's parameters and of ours, converted both ways.

The official repository (https://github.com/d-li14/involution) is built on mmcv, and its names follow from that: a
convolution with its norm is ``N.conv`` and ``N.bn``, and an involution's ``conv1`` and ``conv2`` are what the paper
calls reduce and span. The tensors are the same, in shape and in meaning.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

__all__ = ["from_official", "to_official"]

_INVOLUTION = {"conv1.conv": "reduce", "conv1.bn": "norm", "conv2.conv": "span"}
_STEM = {
    "0.conv": "conv1",
    "0.bn": "norm1",
    **{f"1.{official}": f"involution.{ours}" for official, ours in _INVOLUTION.items()},
    "2": "norm2",
    "4.conv": "conv2",
    "4.bn": "norm3",
}
_BLOCK = {
    "conv1": "conv1",
    "bn1": "norm1",
    **{f"conv2.{official}": f"involution.{ours}" for official, ours in _INVOLUTION.items()},
    "bn2": "norm2",
    "conv3": "conv2",
    "bn3": "norm3",
    "downsample.0": "shortcut.conv",
    "downsample.1": "shortcut.norm",
}
_STEM_BACK = {ours: official for official, ours in _STEM.items()}
_BLOCK_BACK = {ours: official for official, ours in _BLOCK.items()}


def official_name(ours: str) -> str | None:
    """The official name of a tensor, without prefix; None if it has none."""
    module, _, tensor = ours.rpartition(".")
    if module == "head":
        return f"head.fc.{tensor}"
    if found := re.fullmatch(r"stages\.(\d+)\.(\d+)\.(.+)", module):
        stage, block, part = found.groups()
        return f"layer{int(stage) + 1}.{block}.{_BLOCK_BACK[part]}.{tensor}" if part in _BLOCK_BACK else None
    part = module.removeprefix("stem.")
    return f"stem.{_STEM_BACK[part]}.{tensor}" if module != part and part in _STEM_BACK else None


def our_name(official: str) -> str | None:
    """Our name of a tensor with an official name without prefix; None if the network has no such tensor."""
    module, _, tensor = official.rpartition(".")
    if module == "head.fc":
        return f"head.{tensor}"
    if found := re.fullmatch(r"layer([1-9]\d*)\.(\d+)\.(.+)", module):
        stage, block, part = found.groups()
        return f"stages.{int(stage) - 1}.{block}.{_BLOCK[part]}.{tensor}" if part in _BLOCK else None
    part = module.removeprefix("stem.")
    return f"stem.{_STEM[part]}.{tensor}" if module != part and part in _STEM else None


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state_dict with our names, from one with the official names.

    Args:
        state: a backbone's (``stem.0.conv.weight``, ...), or a classifier's, whose names begin with ``backbone.`` but
            for ``head.fc.``.

    Raises:
        ValueError: a name is not one of the official network's.
    """
    converted = {name: our_name(name.removeprefix("backbone.")) for name in state}
    unknown = [name for name, ours in converted.items() if ours is None]
    if unknown:
        raise ValueError(f"These are not names of the official RedNet: {in_words(unknown)}.")
    return {ours: state[name] for name, ours in converted.items() if ours is not None}


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state_dict with the official names, from one with ours.

    Returns:
        A classifier's names if ``state`` has a head, with the prefix ``backbone.`` for the rest; otherwise a
        backbone's, without it.

    Raises:
        ValueError: a name is not one of RedNet's.
    """
    converted = {name: official_name(name) for name in state}
    unknown = [name for name, official in converted.items() if official is None]
    if unknown:
        raise ValueError(f"These are not names of a RedNet: {in_words(unknown)}.")
    prefix = "backbone." if any(name.startswith("head.") for name in state) else ""
    return {
        official if official.startswith("head.") else prefix + official: state[name]
        for name, official in converted.items()
        if official is not None
    }


def in_words(names: list[str], most: int = 5) -> str:
    """Some names, and how many there are beside."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
