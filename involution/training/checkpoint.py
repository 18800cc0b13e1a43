"""Checkpoints: written so that a kill leaves the old one or the new one, read so that a damaged one says so.

A checkpoint is what ``torch.save`` makes of a dictionary of plain types and tensors::

    format           "involution-training"
    version          1
    model            {"name": str, "arguments": dict}: the arguments of involution.models.create_model
    state_dict       of the model
    ema_state_dict   of the moving average of the weights, or None
    optimizer        its state_dict
    scheduler        {"taken": int}
    scaler           state_dict of the gradient scaler, or None
    epoch            how many epochs are done
    rng              a list with the states of the random number generators of each process
    config           the run's options
    classes          names, in the order of the labels
    input            {"channels": int, "size": [H, W], "mean": [...], "std": [...]}, of values from 0 to 1
    metrics          the last line of the log, and "history", a list of all of them
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn

from ..models import create_model

FORMAT = "involution-training"
VERSION = 1
KEYS: dict[str, type | tuple[type, ...]] = {
    "model": dict,
    "state_dict": dict,
    "ema_state_dict": (dict, type(None)),
    "optimizer": dict,
    "scheduler": dict,
    "scaler": (dict, type(None)),
    "epoch": int,
    "rng": list,
    "config": dict,
    "classes": list,
    "input": dict,
    "metrics": dict,
}


class CheckpointError(ValueError):
    """A file is not a checkpoint of this library, is damaged, or does not fit."""


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Writes a file that is there completely or not at all, also after a kill or a power failure.

    Args:
        path: the file, replaced if it is there.
        write: gets the open file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # the new name, too
    finally:
        os.close(directory)


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Writes a checkpoint.

    Args:
        path: the file, replaced atomically.
        content: everything but ``format`` and ``version``.
    """
    write_atomically(path, lambda file: torch.save({"format": FORMAT, "version": VERSION, **content}, file))


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint to the CPU and checks that it is whole.

    Args:
        path: the file.

    Returns:
        The dictionary that the module's documentation describes.

    Raises:
        CheckpointError: the file is missing, damaged or truncated, or of another format or version.
    """
    path = Path(path)
    try:
        # torch.load does not look at the checksums that the archive has.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise CheckpointError(
                f"The checkpoint {path} is damaged: the checksum of its part {damaged} is wrong."
            )
        content = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"There is no checkpoint {path}.") from error
    except Exception as error:  # damage shows in many ways
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} is not a checkpoint of involution.train, or is damaged: {reason}"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is not a checkpoint of involution.train: it does not name the format {FORMAT!r}."
        )
    if content.get("version") != VERSION:
        raise CheckpointError(
            f"The checkpoint {path} has version {content.get('version')!r} of its format; this library reads "
            f"version {VERSION}."
        )
    for key, kind in KEYS.items():
        if not isinstance(content.get(key, ...), kind):
            raise CheckpointError(
                f"The checkpoint {path} is incomplete: its {key!r} is missing or of the wrong type."
            )
    return content


def load_model(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """The trained model of a checkpoint.

    Args:
        path: a checkpoint of ``involution.train``.

    Returns:
        The model, on the CPU and in evaluation mode, with the moving average of the weights where the run kept
        one; and the checkpoint without the tensors: ``model``, ``epoch``, ``config``, ``classes``, ``input`` and
        ``metrics``.

    Raises:
        CheckpointError: the file is missing, damaged, of another format or version, or does not fit the model that
            it names.
    """
    content = read_checkpoint(path)
    try:
        model = create_model(content["model"]["name"], **content["model"]["arguments"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"The model that {path} names cannot be built: {error}") from error
    weights = content["ema_state_dict"] or content["state_dict"]
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"The weights in {path} do not fit the model that it names: {error}") from error
    info = {key: content[key] for key in ("model", "epoch", "config", "classes", "input", "metrics")}
    return model.eval(), info


# --- Random numbers ---------------------------------------------------------------------------------------


def random_state(device: torch.device) -> dict[str, Any]:
    """The states of this process's random number generators, as plain types and tensors.

    Args:
        device: where the run computes; a GPU's generator is taken, too.
    """
    version, words, following = random.getstate()
    state: dict[str, Any] = {"python": [version, list(words), following], "torch": torch.get_rng_state()}
    state["cuda"] = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    state["numpy"] = None
    if "numpy" in sys.modules:  # not needed by this library, and not imported for it
        kind, keys, position, has_gauss, gauss = sys.modules["numpy"].random.get_state()
        state["numpy"] = [kind, keys.tolist(), int(position), int(has_gauss), float(gauss)]
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Sets this process's random number generators to what :func:`random_state` returned."""
    version, words, following = state["python"]
    random.setstate((version, tuple(words), following))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
    if state["numpy"] is not None:
        import numpy as np

        np.random.set_state(tuple(state["numpy"]))
