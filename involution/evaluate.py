"""Evaluates a checkpoint: ``python -m involution.evaluate``, which without arguments takes the newest run.

``python -m involution.evaluate --help`` lists the options; :func:`evaluate` is the same as a function.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from . import training
from .train import EXPECTED_ERRORS, quiet
from .training.checkpoint import CheckpointError, load_model, write_atomically
from .training.libraries import jsonargparse, lightning, torchmetrics
from .training.run import LAST, figure_of, newest_run

SHOWN = 20  # the most classes whose confusion matrix is printed


class Evaluation(NamedTuple):
    """How a checkpoint does: scores, those that training recorded, and counts ``(N, N)``, true classes by row."""

    checkpoint: Path
    metrics: dict[str, float]
    recorded: dict[str, float]
    confusion: Tensor
    classes: list[str]
    skipped: int  # images that could not be read


def evaluate(
    checkpoint: str | Path | None = None,
    *,
    data: dict[str, Any] | None = None,
    accelerator: str = "auto",
    precision: str | None = None,
) -> Evaluation:
    """Evaluates a checkpoint on the test images of its data, with the moving average of the weights if it has one.

    On the machine that trained it, with the options it was trained with, the scores are those it records.

    Args:
        checkpoint: a file, or the folder of a run, whose last checkpoint is taken; by default the newest in runs.
        data: arguments of the data that change, such as path; training images need not be there.
        accelerator: where to compute: auto, cpu or gpu.
        precision: such as bf16-mixed; by default as in training.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, or does not fit.
        DataError: the data is not there, has other classes, or has an image that cannot be read.
    """
    path = Path(checkpoint) if checkpoint is not None else newest_run(LAST)
    path = path / LAST if path.is_dir() else path
    network, info = load_model(path)
    if info["task"] not in training.__all__:
        raise CheckpointError(f"The task of {path} is {info['task']!r}, which is not in involution.training.")
    named = {"network": info["model"]["name"], "network_arguments": info["model"]["arguments"]}
    task = getattr(training, info["task"])(info, **named)
    task.network.load_state_dict(network.state_dict())
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    options |= {"accelerator": accelerator, "precision": precision or info["precision"]}
    trainer = lightning.Trainer(devices=1, enable_progress_bar=sys.stderr.isatty(), **options)
    metrics = trainer.validate(task, training.data_of(info, **(data or {})), verbose=False)[0]
    skipped = int(task.means["skipped_images"].compute())
    return Evaluation(path, dict(metrics), info["metrics"], task.confusion, info["classes"], skipped)


def report(result: Evaluation) -> str:
    """What the command prints."""
    right, count = int(result.confusion.trace()), int(result.confusion.sum())
    accuracy, recorded = result.metrics["val_accuracy"], result.recorded.get("val_accuracy")
    same = "as training recorded" if accuracy == recorded else f"training recorded {recorded}"
    lines = [f"{result.checkpoint}: {right} of {count} test images right, {result.skipped} skipped,"]
    lines[0] += f" accuracy {100 * accuracy:.2f}% ({same}), loss {result.metrics['val_loss']:.4f}"
    names = [name[:12] for name in result.classes]
    if len(names) <= SHOWN:
        width = max(len(str(int(result.confusion.max()))), *map(len, names), 3) + 1
        lines.append("True classes by row, predicted ones by column:")
        lines.append(" " * width + "".join(f"{name:>{width}}" for name in names))
        for name, row in zip(names, result.confusion.tolist(), strict=True):
            lines.append(f"{name:>{width}}" + "".join(f"{cell or '.':>{width}}" for cell in row))
    errors = result.confusion.clone().fill_diagonal_(0)
    for index in errors.flatten().argsort(descending=True, stable=True)[:10].tolist():
        i, j = divmod(index, len(names))
        if errors[i, j]:
            lines.append(f"{int(errors[i, j]):5} of {result.classes[i]} taken for {result.classes[j]}")
    return "\n".join(lines)


def draw_confusion(result: Evaluation, path: Path) -> None:
    """Writes a PNG file of how often each class was taken for each."""
    count = len(result.classes)
    figure = figure_of(min(12.0, 3 + 0.45 * count), min(12.0, 3 + 0.45 * count))
    metric = torchmetrics.classification.MulticlassConfusionMatrix(count)
    metric.plot(result.confusion, ax=figure.subplots(), add_text=count <= SHOWN, labels=result.classes)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=120))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command, with the process's arguments unless others are given; an expected error ends it by a sentence."""
    about = "Tests a checkpoint on the test images of its data, and draws its confusion matrix."
    parser = jsonargparse.ArgumentParser("python -m involution.evaluate", description=about)
    parser.add_argument("--config", action="config", help="YAML file with these options")
    parser.add_argument(
        "checkpoint", nargs="?", help="file or folder of a run; by default the newest in runs/"
    )
    parser.add_function_arguments(evaluate, skip={"checkpoint"})
    parser.add_argument(
        "--picture", type=str | None, help="PNG file to draw; confusion.png beside the checkpoint"
    )
    options = parser.parse_args(arguments)
    picture = options.pop("picture")
    options.pop("config")
    quiet()
    try:
        result = evaluate(**options)
        print(report(result))
        path = Path(picture) if picture else result.checkpoint.with_name("confusion.png")
        draw_confusion(result, path)
        print(f"Picture: {path}")
    except EXPECTED_ERRORS as error:
        sys.exit(f"error: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
