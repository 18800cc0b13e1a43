"""``python -m involution.export CHECKPOINT --format pt2 aoti onnx``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .comparison import BATCH, compare, table
from .formats import FORMATS, ExportError, Runner, load
from .trained import DTYPES, default_output, deployable, evaluation_images, export_checkpoint


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    result = argparse.ArgumentParser(
        prog="python -m involution.export",
        description="Exports the checkpoint of a training run, and compares the files with the model: accuracy on the "
        "test images of the training data, size, and time for a batch.",
        epilog="The files take float32 images from 0 to 1, of any batch and size, and return a score for each class.",
    )
    result.add_argument("checkpoint", type=Path, help="checkpoint that python -m involution.train wrote")
    result.add_argument(
        "--format",
        nargs="+",
        choices=tuple(FORMATS),
        default=["pt2"],
        help="one or several of pt2 (torch.export), aoti (AOTInductor) and onnx (default: pt2)",
    )
    result.add_argument(
        "--output",
        type=Path,
        help="file to write, if there is one format (default: the checkpoint's name with the format's suffix)",
    )
    result.add_argument(
        "--dtype",
        choices=tuple(DTYPES),
        default="float32",
        help="dtype that the model computes in (default: float32)",
    )
    result.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="device that pt2 and aoti files run on (default: cpu)",
    )
    result.add_argument(
        "--opset", type=int, help="opset version of an ONNX file (default: 18; with bfloat16 22)"
    )
    result.add_argument("--data-path", type=Path, help="folder of the training data, if it has moved")
    result.add_argument("--no-compare", action="store_true", help="write the files and do not compare them")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; the result is the exit status."""
    options = parser().parse_args(arguments)
    try:
        return run(options)
    except (ExportError, ImportError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def run(options: argparse.Namespace) -> int:
    """Does what the options say."""
    formats = list(dict.fromkeys(options.format))
    if options.output is not None and len(formats) > 1:
        raise ValueError(
            f"--output names one file, but there are {len(formats)} formats: {', '.join(formats)}."
        )
    eager, info = deployable(options.checkpoint, options.dtype)
    files: dict[str, Path] = {}
    for format in formats:
        path = options.output or default_output(options.checkpoint, format)
        print(f"Writing {path} with {FORMATS[format].title} ...", flush=True)
        device = "cpu" if format == "onnx" else options.device
        files[format] = export_checkpoint(
            options.checkpoint, format, path, dtype=options.dtype, device=device, opset_version=options.opset
        )
    if options.no_compare:
        return 0
    eager.to(options.device)

    def run_eager(images: Tensor) -> Tensor:
        with torch.no_grad():
            return eager(images.to(options.device)).cpu()

    runners: dict[str, tuple[Runner, Path | None]] = {"eager": (run_eager, None)}
    for format, path in files.items():
        runners[format] = (load(path, format)[0], path)
    batches, what = _images(info, options.data_path)
    reports = compare(runners, batches)
    place = (
        torch.cuda.get_device_name() if options.device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    )
    print(f"\n{what}, {options.dtype}, {place}:\n\n{table(reports)}")
    return 0


def _images(
    info: dict[str, Any], data_path: Path | None
) -> tuple[Iterable[tuple[Tensor, Tensor | None]], str]:
    """The test images, or random ones where they are not there; and what they are, in words."""
    from ..training import DataError

    try:
        _, batches = evaluation_images(info, data_path)
    except (DataError, ImportError) as error:
        print(f"The accuracy stays unknown, because the test images are not there: {error}", flush=True)
        shape = (BATCH, info["input"]["channels"], *info["input"]["size"])
        return [(torch.rand(shape, generator=torch.Generator().manual_seed(0)), None)], "Random images"

    return batches, f"Test images of {info['data']['name']}"


if __name__ == "__main__":
    sys.exit(main())
