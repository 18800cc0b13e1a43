"""Evaluates a checkpoint: ``python -m involution.evaluate``, which without arguments takes the newest run.

``python -m involution.evaluate --help`` lists the options; :func:`evaluate` is the same as a function.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .training import EXPECTED_ERRORS, newest_run
from .training.checkpoint import CheckpointError, load_model
from .training.config import from_mapping
from .training.data import TestOrder, load_data, make_loader
from .training.distributed import Processes, choose_device, processor_threads
from .training.evaluation import evaluate_model
from .training.images import DataError
from .training.plot import draw_confusion, require_matplotlib
from .training.precision import Precision
from .training.runs import LAST

__all__ = ["Evaluation", "confusion_table", "evaluate", "main"]

SHOWN = 20  # the most classes whose confusion matrix is printed


@dataclass(frozen=True)
class Evaluation:
    """How a checkpoint does on the test images.

    Attributes:
        checkpoint: the file.
        accuracy: share of images whose class was found.
        loss: mean cross entropy.
        confusion: ``(N, N)``, how many images of each true class (row) were taken for each class (column).
        classes: their names.
        skipped: images that could not be read, and why.
        recorded: the accuracy that training wrote into the checkpoint.
    """

    checkpoint: Path
    accuracy: float
    loss: float
    confusion: Tensor
    classes: list[str]
    skipped: dict[str, str]
    recorded: float


def evaluate(
    checkpoint: str | Path | None = None,
    *,
    device: str = "auto",
    data_path: str | None = None,
    batch_size: int | None = None,
    precision: str | None = None,
    workers: int | None = None,
    on_bad_image: str | None = None,
    progress: bool = True,
) -> Evaluation:
    """Evaluates a checkpoint on the test images of its data, with the moving average of the weights if it has one.

    On the machine that trained it by one process, with the options it was trained with, the accuracy is exactly the
    one that the checkpoint records.

    Args:
        checkpoint: a file, or the folder of a run, whose last checkpoint is taken; by default the newest run in
            ``runs``.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        data_path: where the data is now; by default where it was.
        batch_size: images at a time; by default as in training.
        precision: ``"float32"``, ``"bfloat16"`` or ``"float16"``; by default as in training.
        workers: processes that load images; by default as in training.
        on_bad_image: ``"stop"`` or ``"skip"``; by default as in training.
        progress: whether to show how far it has come.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, or does not fit.
        ConfigError: an option is not allowed.
        DataError: the data is not there, or has other classes.
        BadImageError: an image cannot be read, and is not to be skipped.
    """
    path = Path(checkpoint) if checkpoint is not None else newest_run()
    path = path / LAST if path.is_dir() else path
    model, info = load_model(path)
    given: dict[str, Any] = {
        "data_path": data_path,
        "batch_size": batch_size,
        "precision": precision,
        "workers": workers,
        "on_bad_image": on_bad_image,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    config = from_mapping({**info["config"], **changes, "device": device}, f"the checkpoint {path}")
    # As in training, whatever the data's own statistics are where it is now.
    config = config.changed(mean=info["input"]["mean"], std=info["input"]["std"])
    data = load_data(config)
    if data.classes != info["classes"]:
        raise DataError(
            f"The data has the {len(data.classes)} classes {', '.join(data.classes)[:200]}, but the checkpoint was "
            f"trained on the {len(info['classes'])} classes {', '.join(info['classes'])[:200]}."
        )
    group = Processes(0, 1, choose_device(config.device))
    model = model.to(group.device)
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    order = TestOrder(len(data.test), config.batch_size)
    loader = make_loader(data.test, data.test_transform, order, config, False, group.device.type == "cuda")
    with processor_threads(config):
        scores = evaluate_model(
            model,
            loader,
            len(data.classes),
            Precision(config.precision, group.device),
            group,
            config.on_bad_image,
            config.channels_last,
            progress,
        )
    recorded = info["metrics"].get("test_accuracy")
    if not isinstance(recorded, float):
        raise CheckpointError(f"The checkpoint {path} records no test accuracy.")
    return Evaluation(
        path, scores.accuracy, scores.loss, scores.confusion, data.classes, scores.skipped, recorded
    )


def confusion_table(confusion: Tensor, classes: list[str]) -> str:
    """A confusion matrix as text: true classes by row, with the share that was found at the end.

    Args:
        confusion: ``(N, N)`` counts.
        classes: their names.
    """
    names = [name[:12] for name in classes]
    width = max(len(str(int(confusion.max()))), *map(len, names), 3) + 1
    side = max(map(len, names))
    lines = [" " * side + "".join(f"{name:>{width}}" for name in names) + "   found"]
    for name, row in zip(names, confusion.tolist(), strict=True):
        label = names.index(name)
        cells = "".join(f"{count or '.':>{width}}" for count in row)
        found = f"{100 * row[label] / sum(row):6.1f}%" if sum(row) else "      -"
        lines.append(f"{name:>{side}}{cells} {found}")
    return "\n".join(lines)


def worst_confusions(confusion: Tensor, classes: list[str], count: int = 10) -> str:
    """The pairs of classes that are confused most, as text.

    Args:
        confusion: ``(N, N)`` counts.
        classes: their names.
        count: at most how many pairs.
    """
    errors = confusion.clone().fill_diagonal_(0)
    order = errors.flatten().argsort(descending=True, stable=True)[:count].tolist()
    pairs = [divmod(index, len(classes)) for index in order]
    lines = [
        f"  {int(errors[i, j]):5}  {classes[i]} taken for {classes[j]}" for i, j in pairs if errors[i, j]
    ]
    return "Confused most:\n" + "\n".join(lines) if lines else "No class is taken for another."


def report(result: Evaluation) -> str:
    """What the command prints.

    Args:
        result: of :func:`evaluate`.
    """
    count = int(result.confusion.sum())
    right = int(result.confusion.trace())
    same = (
        "as training recorded"
        if result.accuracy == result.recorded
        else f"training recorded {result.recorded:.6f}"
    )
    lines = [
        f"{result.checkpoint}: {right} of {count} test images right, accuracy {100 * result.accuracy:.2f}% ({same}), "
        f"loss {result.loss:.4f}"
    ]
    if result.skipped:
        lines.append(
            f"{len(result.skipped)} image(s) skipped; the first: {next(iter(result.skipped.values()))}"
        )
    if len(result.classes) <= SHOWN:
        lines += [
            "Confusion matrix: true classes by row, predicted ones by column",
            confusion_table(result.confusion, result.classes),
        ]
    lines.append(worst_confusions(result.confusion, result.classes))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command.

    Args:
        arguments: of the command line; those of the process unless given.

    Returns:
        The exit status, 0.

    Raises:
        SystemExit: with a message, where something that can be expected went wrong.
    """
    parser = argparse.ArgumentParser(
        "python -m involution.evaluate", description="Evaluates a checkpoint on its test images."
    )
    parser.add_argument(
        "checkpoint", nargs="?", help="file or folder of a run; by default the newest in runs/"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute")
    parser.add_argument("--data-path", help="where the data is now")
    parser.add_argument("--batch-size", type=int, help="images at a time")
    parser.add_argument(
        "--precision", choices=("float32", "bfloat16", "float16"), help="as in training unless given"
    )
    parser.add_argument("--workers", type=int, help="processes that load images")
    parser.add_argument("--on-bad-image", choices=("stop", "skip"), help="as in training unless given")
    parser.add_argument(
        "--picture", help="PNG file of the confusion matrix; beside the checkpoint unless given"
    )
    parser.add_argument("--no-plot", action="store_true", help="draw no picture")
    options = vars(parser.parse_args(arguments))
    picture, plot = options.pop("picture"), not options.pop("no_plot")
    try:
        if plot:
            require_matplotlib()
        result = evaluate(**options)
        print(report(result))
        if plot:
            path = Path(picture) if picture else result.checkpoint.with_name("confusion.png")
            draw_confusion(result.confusion, result.classes, path, f"accuracy {100 * result.accuracy:.2f}%")
            print(f"Picture: {path}")
    except EXPECTED_ERRORS as error:
        sys.exit(f"error: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
