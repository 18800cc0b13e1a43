"""Pretrained weights: the official files and our own, read into a network as a whole or not at all."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .official import from_official, in_words, our_name, to_official
from .rednet import RedNet

__all__ = ["CheckpointError", "LoadReport", "from_checkpoint", "load_checkpoint", "save_official"]

_SPAN = "stem.involution.span."

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
        stem_kernel_size: of the stem's involution, as the file has it.
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


def load_checkpoint(model: RedNet, path: str | os.PathLike[str], *, head: bool = True) -> LoadReport:
    """Reads a checkpoint into a network, all of it or nothing.

    Files of the official repository are read as they are published, of classifiers, backbones and detectors: with or
    without a ``state_dict`` inside, names that begin with ``backbone.`` (or ``module.``), and a head. So are files
    with our own names. Where the stem's involution has another size than the network's (3 in the published
    classifiers, 7 in the published backbones for detection), that layer is replaced by one of the file's size, so
    make the optimiser afterwards.

    Everything that the network has must be in the file, in its shape, and nothing else may be, except for what is
    left out and reported: the head, where the network has none or ``head`` is False; stages behind the last
    feature map of a network with ``features_only``; and a detector's other parts. If anything is left out or
    replaced, a warning is logged too. When an error is raised, nothing in the network has changed.

    Args:
        model: any :class:`RedNet`.
        path: the file. It is unpickled with ``weights_only=True``, so it cannot run code.
        head: whether the head is loaded. With False it stays as it is: for another number of classes.

    Returns:
        What was loaded and what was left out; ``str()`` of it is a sentence.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is not a checkpoint, is truncated, or does not fit; the message says which.
        TypeError: ``model`` is not a RedNet, but something around one.
    """
    if not isinstance(model, RedNet):
        raise TypeError(
            f"model must be a RedNet, not {type(model).__name__}; load into the network itself, before it is compiled "
            "or wrapped for several processes."
        )
    state, official, others = _read(Path(path))
    expected = model.state_dict()
    if any(tensor.is_meta for tensor in expected.values()):
        raise CheckpointError(
            "The network is on the meta device and has no memory to load into; give it some with "
            'model.to_empty(device="cpu").'
        )
    size, change = _stem_kernel_size(state, path, model.stem.involution.groups), False
    if model.stem.involution.kernel_size != (size, size):
        change = True
        for name in (f"{_SPAN}weight", f"{_SPAN}bias"):
            rows = size * size * model.stem.involution.groups
            expected[name] = expected[name].new_empty((rows, *expected[name].shape[1:]), device="meta")

    wanted, left_out = {}, list(others)
    for name, tensor in state.items():
        if (name.startswith("head.") and not (head and model.head is not None)) or _behind(name, model):
            left_out.append(name)
        else:
            wanted[name] = tensor
    kept = {name: tensor for name, tensor in expected.items() if name.startswith("head.") and not head}
    _check_fit(wanted, {name: tensor for name, tensor in expected.items() if name not in kept}, path)

    if change:
        model.stem.resize_involution(size)
        model.train(model.training)  # what is frozen stays so
    model.load_state_dict({**kept, **wanted}, strict=True)
    report = LoadReport(os.fspath(path), official, len(wanted), tuple(left_out), size, change)
    if left_out or change:
        logger.warning("%s", report)
    return report


def from_checkpoint(path: str | os.PathLike[str], **arguments: Any) -> RedNet:
    """Builds the network that an official checkpoint was made from, and loads it.

    Depth, widths, the size of the stem's involution, the channels of the image and the number of classes are found
    in the file; a file without a head gives ``num_classes=0``.

    Args:
        path: as for :func:`load_checkpoint`.
        **arguments: further ones for :class:`RedNet`, such as ``features_only=True``; they go before what is found.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is not a checkpoint, or no RedNet's.
    """
    state, official, _ = _read(Path(path))
    if not official:
        raise CheckpointError(
            f"{os.fspath(path)} has our names, and its tensors do not tell strides and stem; build the network as it "
            "was built and use load_checkpoint."
        )
    counts = _block_counts(state)
    try:
        widths = [state[f"stages.{stage}.0.conv1.weight"].shape[0] for stage in range(len(counts))]
        found: dict[str, Any] = {
            "widths": widths,
            "expansion": state["stages.0.0.conv2.weight"].shape[0] // widths[0],
            "stem_channels": state["stem.conv2.weight"].shape[0],
            "stem_kernel_size": _stem_kernel_size(state, path, state["stem.norm2.weight"].shape[0] // 16),
            "in_channels": state["stem.conv1.weight"].shape[1],
            "num_classes": state["head.weight"].shape[0] if "head.weight" in state else 0,
        }
    except (KeyError, IndexError) as error:
        raise CheckpointError(
            f"{os.fspath(path)} is not a whole RedNet: {error} is missing or wrong."
        ) from error
    model = RedNet(counts, **{**found, **arguments})
    load_checkpoint(model, path)
    return model


def save_official(model: RedNet, path: str | os.PathLike[str]) -> None:
    """Writes a network as the official repository does: ``{"meta": {}, "state_dict": ...}`` with its names.

    A network with a head gets the names of a classifier, another one those of a backbone. A file of this name is
    replaced at once, when the new one is whole.

    Raises:
        ValueError: the network holds something that the official one has no name for.
    """
    document = {"meta": {}, "state_dict": to_official(model.state_dict())}
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        torch.save(document, partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _read(path: Path) -> tuple[dict[str, Tensor], bool, list[str]]:
    """A file's tensors by our names, whether it had the official ones, and what is no part of a RedNet."""
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

    state = {name.removeprefix("module."): tensor for name, tensor in document.items()}
    if any(name.startswith("stages.") for name in state):
        return state, False, []
    others = []
    if any(name.startswith("backbone.") for name in state):
        # A detector has more parts than a classifier, beside a backbone that is the same.
        others = [name for name in state if not name.startswith(("backbone.", "head.fc."))]
        state = {name: tensor for name, tensor in state.items() if name not in set(others)}
    if not any(our_name(name.removeprefix("backbone.")) for name in state):
        raise CheckpointError(f"{path} is not a checkpoint of a RedNet: it holds {in_words(list(document))}.")
    try:
        return from_official(state), True, others
    except ValueError as error:
        raise CheckpointError(f"{path} does not fit. {error}") from error


def _stem_kernel_size(state: Mapping[str, Tensor], path: str | os.PathLike[str], groups: int) -> int:
    """From the shape of the stem's span, ``(K * K * G, C / 4, 1, 1)``."""
    weight = state.get(f"{_SPAN}weight")
    rows = 0 if weight is None or weight.dim() != 4 else weight.shape[0]
    size = math.isqrt(rows // max(1, groups))
    if size < 1 or size * size * groups != rows:
        found = "is missing" if weight is None else f"has shape {tuple(weight.shape)}"
        raise CheckpointError(
            f"{os.fspath(path)} does not tell the size of the stem's involution: {_SPAN}weight {found}, where "
            f"(K * K * {groups}, ...) was expected."
        )
    return size


def _block_counts(names: Mapping[str, Any]) -> list[int]:
    """How many blocks each stage has."""
    blocks: dict[int, int] = {}
    for name in names:
        parts = name.split(".")
        if parts[0] == "stages":
            blocks[int(parts[1])] = max(blocks.get(int(parts[1]), 0), int(parts[2]) + 1)
    return [blocks[stage] for stage in sorted(blocks)]


def _behind(name: str, model: RedNet) -> bool:
    """Whether a tensor belongs to a stage that a network for features does not have."""
    parts = name.split(".")
    return model.features_only and parts[0] == "stages" and int(parts[1]) >= len(model.stages)


def _check_fit(
    given: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: str | os.PathLike[str]
) -> None:
    """Names, shapes and kinds of number are those of the network."""
    missing = [name for name in expected if name not in given]
    unexpected = [name for name in given if name not in expected]
    problems = []
    counts, ours = _block_counts(given), _block_counts(expected)
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
        if any(text.startswith("head.") for text in wrong):
            problems.append("with head=False the head is left as it is")
    if problems:
        raise CheckpointError(f"{os.fspath(path)} does not fit the network: {'; '.join(problems)}.")
