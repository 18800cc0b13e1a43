"""Pretrained weights: the official files and our own, read into a network as a whole or not at all."""

from __future__ import annotations

import importlib
import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .official import REDNET, OfficialNames, in_words
from .rednet import RedNet

__all__ = ["CheckpointError", "LoadReport", "from_checkpoint", "load_checkpoint", "save_official"]

_SPAN = "stem.involution.span."
# What files of networks around a RedNet are known by, and the modules that name and build these.
_AROUND = {
    "decode_head.": "involution.segmentation.models",
    "roi_head.": "involution.detection.official",
    "bbox_head.": "involution.detection.official",
}

logger = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A file is not a checkpoint, is damaged, or does not fit: one of weights, or one of a training run."""


@dataclass(frozen=True)
class LoadReport:
    """What :func:`load_checkpoint` did.

    Attributes:
        path: the file.
        official: whether it had the official names.
        loaded: the number of tensors that went into the network.
        left_out: tensors of the file that the network has no place for, or none that was asked for.
        stem_kernel_size: kernel size of the stem's involution, as the file has it.
        stem_changed: whether the network had another one, which was replaced.
    """

    path: str
    official: bool
    loaded: int
    left_out: tuple[str, ...]
    stem_kernel_size: int
    stem_changed: bool

    def __str__(self) -> str:
        names = "official" if self.official else "our"
        text = f"Loaded {self.loaded} tensors with {names} names from {self.path}."
        if self.stem_changed:
            size = self.stem_kernel_size
            text += f" The stem's involution was replaced by one of {size}x{size}, as in the file."
        if self.left_out:
            text += f" Left out: {in_words(list(self.left_out))}."
        return text


def load_checkpoint(model: nn.Module, path: str | os.PathLike[str], *, head: bool = True) -> LoadReport:
    """Reads a checkpoint into a network, all of it or nothing.

    Files of the official repository are read as they are published, of classifiers, backbones, segmenters and
    detectors: with or without a ``state_dict`` inside, names that begin with ``backbone.`` (or ``module.``), and a
    head. So are files with our own names. Where the stem's involution has another size than the network's (3 in the
    published classifiers, 7 in the published backbones for detection), that layer is replaced by one of the file's
    size, so make the optimiser afterwards.

    Everything that the network has must be in the file, in its shape, and nothing else may be, except for what is
    left out and reported: the head, where the network has none or ``head`` is False; stages behind the last
    feature map of a network with ``features_only``; a segmenter's auxiliary head, where the network has none; and for
    a RedNet by itself a detector's or segmenter's other parts. If anything is left out or replaced, a warning is
    logged too. When an error is raised, nothing in the network has changed.

    Args:
        model (nn.Module): Any :class:`RedNet`, or a segmenter of ``involution.segmentation``.
        path (str or os.PathLike): The file. It is unpickled with ``weights_only=True``, so it cannot run code.
        head (bool): Whether the layers that score the classes are loaded: a RedNet's head, a segmenter's last
            convolutions. With False they stay as they are: for another number of classes. Default: True

    Returns:
        What was loaded and what was left out; ``str()`` of it is a sentence.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is not a checkpoint, is truncated, or does not fit; the message says which.
        TypeError: ``model`` is no such network, but something around one.
    """
    names = _official_names(model)
    network = model.get_submodule(names.body)
    assert isinstance(network, RedNet)
    state, official, others = _our_state(_tensors(Path(path)), names, path)
    expected = model.state_dict()
    if any(tensor.is_meta for tensor in expected.values()):
        raise CheckpointError(
            "The network is on the meta device and has no memory to load into; give it some with "
            'model.to_empty(device="cpu").'
        )
    prefix, change = names.prefix, False
    size = _stem_kernel_size(state, path, network.stem.involution.groups, prefix)
    if network.stem.involution.kernel_size != (size, size):
        change = True
        for name in (f"{prefix}{_SPAN}weight", f"{prefix}{_SPAN}bias"):
            rows = size * size * network.stem.involution.groups
            expected[name] = expected[name].new_empty((rows, *expected[name].shape[1:]), device="meta")

    classifiers = tuple(f"{part}." for part in names.classifiers)
    absent = tuple(f"{part}." for part in names.optional if getattr(model, part) is None)
    unwanted = absent if head else (*absent, *classifiers)
    wanted, left_out = {}, list(others)
    for name, tensor in state.items():
        if name.startswith(unwanted) or _behind(name.removeprefix(prefix), network):
            left_out.append(name)
        else:
            wanted[name] = tensor
    kept = {name: tensor for name, tensor in expected.items() if name.startswith(classifiers) and not head}
    _check_fit(wanted, {name: tensor for name, tensor in expected.items() if name not in kept}, names, path)

    if change:
        network.stem.resize_involution(size)
        network.train(network.training)  # what is frozen stays so
    model.load_state_dict({**kept, **wanted}, strict=True)
    report = LoadReport(os.fspath(path), official, len(wanted), tuple(left_out), size, change)
    if left_out or change:
        logger.warning("%s", report)
    return report


def from_checkpoint(path: str | os.PathLike[str], **arguments: Any) -> Any:
    """Builds the network that an official checkpoint was made from, and loads it.

    Depth, widths, the size of the stem's involution, the channels of the image and the number of classes are found
    in the file; a file without a head gives ``num_classes=0``. A segmenter's file gives a segmenter, with the neck
    and the heads that are found there; :func:`load_checkpoint` takes the backbone alone from it.

    Args:
        path (str or os.PathLike): As for :func:`load_checkpoint`.
        **arguments: Further ones for :class:`RedNet`, such as ``features_only=True``, or for
            ``involution.segmentation``'s ``semantic_fpn`` or ``upernet``; they go before what is found.

    Returns:
        A :class:`RedNet`, or a segmenter.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is not a checkpoint, or of no network that is known here.
    """
    tensors = _tensors(Path(path))
    if any("stages." in name for name in tensors):
        raise CheckpointError(
            f"{os.fspath(path)} has our names, and its tensors do not tell strides and stem; build the network as it "
            "was built and use load_checkpoint."
        )
    around = [kind for mark, kind in _AROUND.items() if any(name.startswith(mark) for name in tensors)]
    kind = importlib.import_module(around[0]) if around else None
    names = kind.NAMES if kind else REDNET
    state, _, _ = _our_state(tensors, names, path)
    try:
        found = _sizes({name.removeprefix(names.prefix): tensor for name, tensor in state.items()}, path)
        if kind:
            model = kind.build(state, found, **arguments)
        else:
            classes = state["head.weight"].shape[0] if "head.weight" in state else 0
            model = RedNet(**{**found, "num_classes": classes, **arguments})
    except (KeyError, IndexError) as error:
        raise CheckpointError(
            f"{os.fspath(path)} is not a whole {names.kind}: {error} is missing or wrong."
        ) from error
    load_checkpoint(model, path)
    return model


def _sizes(state: Mapping[str, Tensor], path: str | os.PathLike[str]) -> dict[str, Any]:
    """The arguments of a RedNet with these tensors."""
    blocks = _block_counts(state)
    widths = [state[f"stages.{stage}.0.conv1.weight"].shape[0] for stage in range(len(blocks))]
    return {
        "blocks": blocks,
        "widths": widths,
        "expansion": state["stages.0.0.conv2.weight"].shape[0] // widths[0],
        "stem_channels": state["stem.conv2.weight"].shape[0],
        "stem_kernel_size": _stem_kernel_size(state, path, state["stem.norm2.weight"].shape[0] // 16),
        "in_channels": state["stem.conv1.weight"].shape[1],
    }


def save_official(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Writes a network as the official repository does: ``{"meta": {}, "state_dict": ...}`` with its names.

    A RedNet with a head gets the names of a classifier, another one those of a backbone, and a segmenter those of a
    segmenter. A file of this name is replaced at once, when the new one is whole.

    Raises:
        ValueError: the network holds something that the official one has no name for.
        TypeError: ``model`` is no such network.
    """
    document = {"meta": {}, "state_dict": _official_names(model).to_official(model.state_dict())}
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        torch.save(document, partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _official_names(model: nn.Module) -> OfficialNames:
    # Of the class: a compiled network would pass on an attribute, but has other names.
    names = getattr(type(model), "official_names", None)
    if names is None:
        raise TypeError(
            f"model must have official names, as a RedNet or a segmenter, but it is a {type(model).__name__}; take the "
            "network itself, before it is compiled or wrapped for several processes."
        )
    return names


def _tensors(path: Path) -> dict[str, Tensor]:
    """What a file holds, by its names."""
    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # damaged files fail in every way there is
        detail = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: it is truncated, not written by torch.save, or holds more than "
            f"tensors ({detail})"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(document, Mapping) and isinstance(document.get(key), Mapping):
            document = document[key]
            break
    if not isinstance(document, Mapping) or not document:
        raise CheckpointError(f"{path} is not a checkpoint: it holds no names with tensors.")
    wrong = [str(k) for k, v in document.items() if not isinstance(k, str) or not isinstance(v, Tensor)]
    if wrong:
        raise CheckpointError(
            f"{path} is not a checkpoint: what it has under {in_words(wrong)} is no tensor."
        )

    return {name.removeprefix("module."): tensor for name, tensor in document.items()}


def _our_state(
    state: dict[str, Tensor], names: OfficialNames, path: str | os.PathLike[str]
) -> tuple[dict[str, Tensor], bool, list[str]]:
    """A file's tensors by our names, whether it had the official ones, and what is no part of a RedNet."""
    if any(name.startswith(f"{names.prefix}stages.") for name in state):
        return state, False, []
    others = []
    if names is REDNET and any(name.startswith("backbone.") for name in state):
        # A detector has more parts than a classifier, beside a backbone that is the same.
        others = [name for name in state if not name.startswith(("backbone.", "head.fc."))]
    given = {name: tensor for name, tensor in state.items() if name not in set(others)}
    if not any(names.our_name(name) for name in given):
        raise CheckpointError(
            f"{os.fspath(path)} is not a checkpoint of a {names.kind}: it holds {in_words(list(state))}."
        )
    try:
        return names.from_official(given), True, others
    except ValueError as error:
        raise CheckpointError(f"{os.fspath(path)} does not fit. {error}") from error


def _stem_kernel_size(
    state: Mapping[str, Tensor], path: str | os.PathLike[str], groups: int, prefix: str = ""
) -> int:
    """From the shape of the stem's span, ``(K * K * G, C / 4, 1, 1)``."""
    weight = state.get(f"{prefix}{_SPAN}weight")
    rows = 0 if weight is None or weight.dim() != 4 else weight.shape[0]
    size = math.isqrt(rows // max(1, groups))
    if size < 1 or size * size * groups != rows:
        found = "is missing" if weight is None else f"has shape {tuple(weight.shape)}"
        raise CheckpointError(
            f"{os.fspath(path)} does not tell the size of the stem's involution: {prefix}{_SPAN}weight {found}, where "
            f"(K * K * {groups}, ...) was expected."
        )
    return size


def _block_counts(names: Mapping[str, Any], prefix: str = "") -> list[int]:
    """How many blocks each stage has."""
    blocks: dict[int, int] = {}
    for name in names:
        parts = name.removeprefix(prefix).split(".")
        if parts[0] == "stages":
            blocks[int(parts[1])] = max(blocks.get(int(parts[1]), 0), int(parts[2]) + 1)
    return [blocks[stage] for stage in sorted(blocks)]


def _behind(name: str, model: RedNet) -> bool:
    """Whether a tensor belongs to a stage that a network for features does not have."""
    parts = name.split(".")
    return model.features_only and parts[0] == "stages" and int(parts[1]) >= len(model.stages)


def _check_fit(
    given: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    names: OfficialNames,
    path: str | os.PathLike[str],
) -> None:
    """Names, shapes and kinds of number are those of the network."""
    missing = [name for name in expected if name not in given]
    unexpected = [name for name in given if name not in expected]
    problems = []
    counts, ours = _block_counts(given, names.prefix), _block_counts(expected, names.prefix)
    if counts != ours:
        problems.append(f"its stages have {counts} blocks and the network's {ours}")
    if missing:
        problems.append(f"it lacks {in_words(missing)}")
    if unexpected:
        problems.append(f"the network has no {in_words(unexpected)}")
    wrong = []
    for name in expected.keys() & given.keys():
        tensor, like = given[name], expected[name]
        if tensor.shape != like.shape:
            wrong.append(f"{name} has shape {tuple(tensor.shape)} and the network's has {tuple(like.shape)}")
        elif tensor.layout != torch.strided or tensor.is_floating_point() != like.is_floating_point():
            wrong.append(f"{name} holds {tensor.dtype} ({tensor.layout}) and the network's {like.dtype}")
    if wrong:
        problems.append(in_words(sorted(wrong), 3))
        if any(text.startswith(names.classifiers) for text in wrong):
            problems.append("with head=False the head is left as it is")
    if problems:
        raise CheckpointError(f"{os.fspath(path)} does not fit the network: {'; '.join(problems)}.")
