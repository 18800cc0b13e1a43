"""The names of the official RedNet's parameters and of ours, converted both ways.

The official repository (https://github.com/d-li14/involution) is built on mmcv, and its names follow from that: a
convolution with its norm is ``N.conv`` and ``N.bn``, and an involution's ``conv1`` and ``conv2`` are what the paper
calls reduce and span. The tensors are the same, in shape and in meaning.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from torch import Tensor

__all__ = ["OfficialNames", "from_official", "to_official"]

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


@dataclass(frozen=True)
class OfficialNames:
    """The official names of a RedNet and of what is built around it, such as a segmenter, and ours.

    A class of networks has them as its attribute ``official_names``, from which the functions for checkpoints know
    it.

    Attributes:
        kind: what the network is, in words.
        body: our name of the RedNet inside, ``""`` for the network itself.
        parts: the official names of all other modules with tensors, and ours; ``{}`` stands for a number, in the same
            order in both.
        classifiers: ours of the modules whose sizes follow from the number of classes.
        optional: ours of the modules that are None in some of these networks.
    """

    kind: str
    body: str
    parts: Mapping[str, str]
    classifiers: tuple[str, ...]
    optional: tuple[str, ...] = ()

    @property
    def prefix(self) -> str:
        """What our names of the RedNet's tensors begin with."""
        return f"{self.body}." if self.body else ""

    def our_name(self, official: str) -> str | None:
        """Our name of a tensor; None if the network has no such tensor."""
        module, _, tensor = official.rpartition(".")
        part = _renamed(module, self.parts)
        if part is None and (part := _our_module(module.removeprefix("backbone."))) is not None:
            part = self.prefix + part
        return None if part is None else f"{part}.{tensor}"

    def from_official(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state_dict with our names; raises ValueError where a name is not an official one."""
        converted = {name: self.our_name(name) for name in state}
        unknown = [name for name, ours in converted.items() if ours is None]
        if unknown:
            raise ValueError(f"These are not names of the official {self.kind}: {in_words(unknown)}.")
        return {ours: state[name] for name, ours in converted.items() if ours is not None}

    def to_official(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state_dict with the official names; raises ValueError where a name is not one of ours."""
        back = {ours: official for official, ours in self.parts.items()}
        parts, body, unknown = {}, {}, []
        for name in state:
            module, _, last = name.rpartition(".")
            if (official := _renamed(module, back)) is not None:
                parts[name] = f"{official}.{last}"
            elif (
                name.startswith(self.prefix)
                and (official := _official_module(module.removeprefix(self.prefix))) is not None
            ):
                body[name] = f"{official}.{last}"
            else:
                unknown.append(name)
        if unknown:
            raise ValueError(f"These are not names of a {self.kind}: {in_words(unknown)}.")
        prefix = "backbone." if parts else ""  # a backbone by itself has none
        return {parts[name] if name in parts else prefix + body[name]: state[name] for name in state}


def involution_names(official: str, ours: str) -> dict[str, str]:
    """The names inside an involution, for :attr:`OfficialNames.parts`."""
    return {f"{official}.{theirs}": f"{ours}.{name}" for theirs, name in _INVOLUTION.items()}


REDNET = OfficialNames("RedNet", "", {"head.fc": "head"}, classifiers=("head",), optional=("head",))


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state_dict with our names, from one with the official names.

    Args:
        state (mapping of str to Tensor): A backbone's (``stem.0.conv.weight``, ...), or a classifier's, whose names
            begin with ``backbone.`` but for ``head.fc.``.

    Raises:
        ValueError: a name is not one of the official network's.
    """
    return REDNET.from_official(state)


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state_dict with the official names, from one with ours.

    Returns:
        A classifier's names if ``state`` has a head, with the prefix ``backbone.`` for the rest; otherwise a
        backbone's, without it.

    Raises:
        ValueError: a name is not one of RedNet's.
    """
    return REDNET.to_official(state)


def _renamed(module: str, table: Mapping[str, str]) -> str | None:
    for pattern, name in table.items():
        if found := _compiled(pattern).fullmatch(module):
            return name.format(*found.groups())
    return None


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(re.escape(pattern).replace(r"\{\}", r"(\d+)"))


def _official_module(ours: str) -> str | None:
    """The official name of a RedNet's module, without prefix; None if it has none."""
    if found := re.fullmatch(r"stages\.(\d+)\.(\d+)\.(.+)", ours):
        stage, block, part = found.groups()
        return f"layer{int(stage) + 1}.{block}.{_BLOCK_BACK[part]}" if part in _BLOCK_BACK else None
    part = ours.removeprefix("stem.")
    return f"stem.{_STEM_BACK[part]}" if ours != part and part in _STEM_BACK else None


def _our_module(official: str) -> str | None:
    """Our name of a RedNet's module with an official name without prefix; None if there is no such module."""
    if found := re.fullmatch(r"layer([1-9]\d*)\.(\d+)\.(.+)", official):
        stage, block, part = found.groups()
        return f"stages.{int(stage) - 1}.{block}.{_BLOCK[part]}" if part in _BLOCK else None
    part = official.removeprefix("stem.")
    return f"stem.{_STEM[part]}" if official != part and part in _STEM else None


def in_words(names: list[str], most: int = 5) -> str:
    """Some names, and how many there are beside."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
