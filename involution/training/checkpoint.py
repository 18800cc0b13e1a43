"""Checkpoints: written so that a kill leaves the old one or the new one, read so that a damaged one says so.

They are Lightning's, with the network's own names in ``state_dict`` (its moving average where the run keeps one), and
with plain types under ``involution``::

    version           2
    task, data        {"name": str, "arguments": dict}: the class in involution.training, and what makes it again
    model             the same for :func:`create_network`
    classes           names, in the order of the labels
    input             {"channels": int, "size": [H, W], "mean": [...], "std": [...]}, of values from 0 to 1
    precision         of the training, as Lightning names it
    steps             of the optimiser, in the whole run
    metrics           what was measured last, by name
"""

import contextlib
import os
import zipfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn

from ..models import CheckpointError, create_model

VERSION = 2


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Has ``write`` fill a file that is there completely or not at all, also after a kill or a power failure."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint to the CPU, without executing anything.

    Raises:
        CheckpointError: the file is missing or damaged, holds objects, or is not of this library or version.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not look at its checksums
            if (damaged := archive.testzip()) is not None:
                raise ValueError(f"the checksum of its part {damaged} is wrong")
        content = torch.load(path, map_location="cpu", weights_only=True)
        version = content["involution"]["version"]
    except FileNotFoundError as error:
        raise CheckpointError(f"There is no checkpoint {path}.") from error
    except Exception as error:  # damage shows in many ways
        reason, objects = (str(error) or type(error).__name__).splitlines()[0], []
        with contextlib.suppress(Exception):  # of a damaged file there is nothing more to say
            objects = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
        if objects:
            reason = (
                f"it holds other things than tensors and plain types ({', '.join(objects)}), and to read them can "
                "execute code. If you trust the file, read it by torch.load(path, weights_only=False), turn them into "
                "tensors, numbers or text (a NumPy scalar by .item()), and write it again by torch.save."
            )
        raise CheckpointError(
            f"{path} is no checkpoint of involution.train, or is damaged: {reason}"
        ) from error
    if version != VERSION:
        raise CheckpointError(f"{path} has version {version!r} of the format; this library reads {VERSION}.")
    return content


def create_network(name: str, **arguments: Any) -> nn.Module:
    """A network by its name: a classifier of involution.models, a detector or a segmenter."""
    kinds = {
        "detection": ("fasterrcnn_", "maskrcnn_", "retinanet_"),
        "segmentation": ("semantic_fpn_", "upernet_"),
    }
    for kind, prefixes in kinds.items():
        if name.startswith(prefixes):
            package = import_module(f"involution.{kind}")
            if name not in package.__all__:
                raise ValueError(f"There is no network {name!r} in {package.__name__}.")
            return getattr(package, name)(**arguments)
    return create_model(name, **arguments)


def load_model(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """The trained network of a checkpoint, in evaluation mode on the CPU, and what the checkpoint says of it.

    Returns:
        The network, with the moving average of the weights where the run kept one, and the entries that the module
        describes, with the number of epochs done as ``epoch``.

    Raises:
        CheckpointError: the file cannot be read (:func:`read_checkpoint`), or does not fit the network it names.
    """
    content = read_checkpoint(path)
    info = {**content["involution"], "epoch": content["epoch"] + 1}
    try:
        model = create_network(info["model"]["name"], **info["model"]["arguments"])
        model.load_state_dict(content["state_dict"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} does not fit the network that it names: {error}") from error
    return model.eval(), info
