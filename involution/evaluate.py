"""Evaluates a checkpoint: ``python -m involution.evaluate``, which without arguments takes the newest run.

``python -m involution.evaluate --help`` lists the options; :func:`evaluate` is the same as a function.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from . import training
from .train import EXPECTED_ERRORS, quiet
from .training.checkpoint import CheckpointError, load_model
from .training.libraries import jsonargparse, lightning
from .training.run import LAST, newest_run


class Evaluation(NamedTuple):
    """How a checkpoint does: scores, those that training recorded, and the task, which has what they are made of."""

    checkpoint: Path
    metrics: dict[str, float]
    recorded: dict[str, float]
    task: Any


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
    return Evaluation(path, dict(metrics), info["metrics"], task)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command, with the process's arguments unless others are given; an expected error ends it by a sentence."""
    about = "Tests a checkpoint on the test images of its data; prints the scores, and draws a picture."
    parser = jsonargparse.ArgumentParser("python -m involution.evaluate", description=about)
    parser.add_argument("--config", action="config", help="YAML file with these options")
    about = "file or folder of a run; by default the newest in runs/"
    parser.add_argument("checkpoint", nargs="?", help=about)
    parser.add_function_arguments(evaluate, skip={"checkpoint"})
    parser.add_argument(
        "--output", type=str | None, help="folder for the picture; the checkpoint's by default"
    )
    options = parser.parse_args(arguments)
    output, _ = options.pop("output"), options.pop("config")
    quiet()
    try:
        result = evaluate(**options)
        print(f"{result.checkpoint}: {result.task.report(Path(output or result.checkpoint.parent))}")
        for name, value in result.metrics.items():
            before = result.recorded.get(name)
            print(f"{name:20} {value:.4f}", "as training recorded" if value == before else f"was {before}")
    except EXPECTED_ERRORS as error:
        sys.exit(f"error: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
