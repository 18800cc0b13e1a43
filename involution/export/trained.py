"""From the checkpoint of a training run to a file to deploy."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._version import __version__
from .comparison import BATCH
from .deployable import Deployable
from .formats import FORMATS, export_model

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def deployable(
    checkpoint: str | os.PathLike[str], dtype: str = "float32"
) -> tuple[Deployable, dict[str, Any]]:
    """The model of a checkpoint with its normalisation inside, in ``eval()`` and on the CPU, and what is known of it.

    Args:
        checkpoint (str or os.PathLike): A checkpoint of ``involution.train``.
        dtype (str): What it computes in. Default: ``"float32"``

    Returns:
        The model, and the rest of the checkpoint as :func:`involution.training.load_model` returns it.

    Raises:
        ValueError: the dtype is unknown, or the file is not a checkpoint of ``involution.train`` (the message says
            why).
    """
    from ..training import load_model

    if dtype not in DTYPES:
        raise ValueError(f"The dtype must be one of {', '.join(DTYPES)}, not {dtype!r}.")
    model, info = load_model(Path(checkpoint))
    return Deployable(model, info["input"]["mean"], info["input"]["std"], DTYPES[dtype]).eval(), info


def export_checkpoint(
    checkpoint: str | os.PathLike[str],
    format: str = "pt2",
    output: str | os.PathLike[str] | None = None,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    opset_version: int | None = None,
) -> Path:
    """Writes a file to deploy, of the checkpoint of a training run.

    The file takes images ``(B, channels, H, W)`` of float32 from 0 to 1, of any batch and size, with the
    normalisation of the training inside, and returns one float32 score for each class. Its metadata
    (:func:`involution.export.load`) are text: ``classes``, one name on each line, in the order of the
    scores; ``channels`` and ``size`` (``"HxW"``) of the images of the training; ``model``; and ``involution``, the
    version that wrote the file.

    Args:
        checkpoint (str or os.PathLike): A checkpoint of ``involution.train``.
        format (str): ``"pt2"``, ``"aoti"`` or ``"onnx"``. Default: ``"pt2"``
        output (str or os.PathLike, optional): The file to write, by default beside the checkpoint, with its name
            and the format's suffix.
        dtype (str): What the model computes in: ``"float32"``, ``"bfloat16"`` or ``"float16"``. Default: ``"float32"``
        device (str): ``"cpu"`` or ``"cuda"``, where a ``pt2`` or ``aoti`` file runs; an ``onnx`` file is made on the
            CPU. Default: ``"cpu"``
        opset_version (int, optional): Opset version of an ONNX file; see :func:`involution.export.onnx.export`.

    Returns:
        The file's path.

    Raises:
        ValueError: an argument is out of range, or the file is not a checkpoint.
        ImportError: a package that the format needs is missing; the message says how to install it.
        ExportError: the format cannot hold this model, or something that it needs on this machine is missing.
    """
    path = default_output(checkpoint, format) if output is None else Path(output)
    model, info = deployable(checkpoint, dtype)
    if format == "onnx" and device != "cpu":
        raise ValueError(f"An ONNX file belongs to no device; leave out device, which is {device!r}.")
    model.to(device)
    channels, size = info["input"]["channels"], info["input"]["size"]
    metadata = {
        "classes": "\n".join(map(str, info["classes"])),
        "channels": str(channels),
        "size": "x".join(map(str, size)),
        "model": info["model"]["name"],
        "involution": __version__,
    }
    example = torch.rand(2, channels, *size, device=device)
    return export_model(model, example, path, format, metadata=metadata, opset_version=opset_version)


def default_output(checkpoint: str | os.PathLike[str], format: str) -> Path:
    """``run/best.ckpt`` becomes ``run/best.pt2``, ``run/best.aoti.pt2`` or ``run/best.onnx``."""
    if format not in FORMATS:
        raise ValueError(f"The format must be one of {', '.join(FORMATS)}, not {format!r}.")
    suffix = {"pt2": ".pt2", "aoti": ".aoti.pt2", "onnx": ".onnx"}[format]
    return Path(checkpoint).with_suffix(suffix)


def evaluation_images(
    info: dict[str, Any], data_path: str | os.PathLike[str] | None = None
) -> tuple[int, Iterator[tuple[Tensor, Tensor]]]:
    """The test images of the data that a checkpoint was trained on, as a deployed file takes them.

    Args:
        info (dict): What :func:`deployable` returned.
        data_path (str or os.PathLike, optional): Where the data is now, if it moved.

    Returns:
        How many batches there are, and the batches: images ``(B, channels, H, W)`` from 0 to 1, and labels ``(B,)``.

    Raises:
        CheckpointError: the data is of a kind that this library does not have.
        DataError: the data is not where it should be, or has other classes.
        ImportError: a package that reads the data is missing.
    """
    from .. import training

    changes = {"batch_size": BATCH, **({} if data_path is None else {"path": str(data_path)})}
    data = training.data_of(info, **changes)
    channels = info["input"]["channels"]
    data.mean, data.std = [0.0] * channels, [1.0] * channels  # the file's own normalisation does the rest
    data.setup("validate")
    loader = data.val_dataloader()
    return len(loader), ((batch.images, batch.targets) for batch in loader)
