"""What the tests of training run in processes of their own.

``python training_processes.py kill FOLDER DATA`` is killed twice; ``torchrun ... training_processes.py share
FOLDER DATA`` trains in several processes.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn
from training_cases import MODEL, curve, options

from involution.evaluate import evaluate
from involution.models import create_model
from involution.training import runs as run_files
from involution.training import state as state_module
from involution.training import train
from involution.training.data import Batch
from involution.training.distributed import Processes, processes
from involution.training.precision import Precision
from involution.training.schedule import CosineSchedule
from involution.training.step import Stepper


def killed(folder: Path, data: Path, when: str) -> None:
    """Trains until it is killed: in the middle of an epoch, or while a checkpoint is being written."""
    if when == "step":
        step, taken = Stepper.__call__, []

        def until(*arguments):
            taken.append(None)
            if len(taken) == 6:  # the second of the second epoch
                os.kill(os.getpid(), signal.SIGKILL)
            return step(*arguments)

        Stepper.__call__ = until
        train(options(data, folder, **INTERRUPTED), progress=False)
    else:
        replace = os.replace

        def instead(source, target):
            if Path(target).name == run_files.LAST:  # all is written but its name
                os.kill(os.getpid(), signal.SIGKILL)
            return replace(source, target)

        os.replace = instead
        train(resume=folder, progress=False)


# What makes a run hard to continue exactly.
INTERRUPTED = {"ema_decay": 0.9, "on_bad_image": "skip", "epochs": 4}


def model_without_batch_norm(name: str, **arguments) -> nn.Module:
    """Each image by itself, so that processes can agree exactly."""
    return create_model(name, **arguments, norm_layer=lambda channels: nn.GroupNorm(1, channels))


def gradients(group: Processes) -> list[torch.Tensor]:
    """The gradient of one step of 12 images in float64, in as many processes as there are, two batches each."""
    torch.manual_seed(0)
    model = model_without_batch_norm("rednet_tiny", num_classes=3, in_channels=2, **MODEL).double().eval()
    images, labels = torch.randn(12, 2, 8, 8, dtype=torch.float64), torch.arange(12) % 3
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule, precision = CosineSchedule(optimizer, 10, 0.1), Precision("float32", group.device)
    stepper = Stepper(model, group.wrap(model), optimizer, schedule, precision, group, None, 0.1)
    parts = list(zip(images.chunk(2 * group.size), labels.chunk(2 * group.size), strict=True))
    mine = parts[2 * group.rank : 2 * group.rank + 2]
    stepper.gradients([Batch(x, y, []) for x, y in mine])
    return [parameter.grad for parameter in model.parameters()]


def share(folder: Path, data: Path) -> None:
    """Writes gradients and the curve of a run, as this number of processes has them."""
    with processes("cpu") as group:
        # Each process's norms see other images; the checkpoint must be what all of them were tested with.
        tested = train(options(data, folder / "normed", epochs=1, batch_size=8), progress=False).history[0]
        if group.main:
            again = evaluate(folder / "normed", device="cpu", progress=False)
            assert (again.accuracy, round(again.loss, 5)) == (
                tested["test_accuracy"],
                round(tested["test_loss"], 5),
            )
        state_module.create_model = model_without_batch_norm
        found = gradients(group)
        everywhere = group.gather([gradient.tolist() for gradient in found])
        assert all(gradient == everywhere[0] for gradient in everywhere)
        # Dropout draws other numbers in each process, as it should.
        plain = {name: value for name, value in MODEL.items() if not name.startswith("drop")}
        shared = options(
            data, folder / "run", model_arguments=plain, accumulate=2, batch_size=8, ema_decay=0.8
        )
        result = train(shared, progress=False)
        again = train(resume=folder / "run", progress=False)
        assert curve(again.history) == curve(result.history)
        if group.main:
            torch.save({"gradients": found, "curve": curve(result.history)}, folder / f"{group.size}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    task, folder, data, *rest = sys.argv[1:]
    if task == "kill":
        killed(Path(folder), Path(data), *rest)
    else:
        share(Path(folder), Path(data))
