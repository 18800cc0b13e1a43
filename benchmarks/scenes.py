"""The networks for the built-in scenes, with involutions and with 3x3 convolutions in their place: scores and time.

    python -m benchmarks.scenes                                        all six runs, an hour of two cores
    python -m benchmarks.scenes --tasks detection --layers involution

Each is what ``python -m involution.train --task TASK`` does, then tested by ``involution.evaluate``. With convolutions,
the stem, the blocks, the pyramid and a Faster R-CNN's head have dense 3x3 convolutions, as ResNet has. Time is the
processor's, of the training with its tests. A run replaces its line in benchmarks/results/DEVICE-scenes.csv, or those
of --output.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

from involution.evaluate import evaluate
from involution.models import blocks
from involution.train import quiet, train

from . import environment, results

TASKS = ("detection", "instance", "segmentation")
LAYERS = ("involution", "convolution")


def dense(channels: int, kernel_size: int, stride: int = 1, *, dilation: int = 1, **_: Any) -> nn.Conv2d:
    """A 3x3 convolution for an involution; a norm follows in both."""
    return nn.Conv2d(channels, channels, 3, stride, dilation, dilation, bias=False)


def run(task: str, layers: str, more: Sequence[str] = ()) -> dict[str, Any]:
    """Trains and tests one network."""
    kinds = ["neck", "head"] if task == "detection" else ["neck"]
    replaced = mock.patch.object(
        blocks, "Involution2d", blocks.Involution2d if layers == "involution" else dense
    )
    with tempfile.TemporaryDirectory() as folder, replaced:
        arguments = [f"--task={task}", f"--output={folder}/run", *more]
        arguments += [f"--model.network_arguments.{kind}={layers}" for kind in kinds]
        began = time.process_time()
        trainer = train(arguments)
        seconds = time.process_time() - began
        result = evaluate(f"{folder}/run", accelerator="cpu")
    network: Any = trainer.lightning_module
    parameters = sum(parameter.numel() for parameter in network.network.parameters())
    scores = {name.removeprefix("val_"): value for name, value in result.metrics.items()}
    about = {"task": task, "layers": layers, "epochs": trainer.max_epochs, "parameters": parameters}
    return {**about, "cpu_seconds": seconds, "scores": scores}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser("python -m benchmarks.scenes", description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=LAYERS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path)
    parser.add_argument("more", nargs="*", help="options of involution.train, behind --")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    quiet()
    document: dict[str, Any] = {
        "benchmark": "scenes",
        "environment": environment.describe(torch.device("cpu")),
        "options": {"more": options.more},
        "results": [],
    }
    path = options.output or results.default_path(document, False)
    kept = results.load(path, "scenes")["results"] if path.exists() else []
    for task in options.tasks:
        for layers in options.layers:
            row = run(task, layers, [*options.more, f"--threads={options.threads}"])
            print(row, flush=True)
            kept = [each for each in kept if (each["task"], each["layers"]) != (task, layers)] + [row]
            document["results"] = sorted(kept, key=lambda each: (TASKS.index(each["task"]), each["layers"]))
            results.save(document, path)


if __name__ == "__main__":
    main()
