"""What the tests of training run in processes of their own.

``python training_processes.py kill DATA FOLDER`` is killed within an epoch; ``... share DATA FOLDER 2`` trains in
so many processes, which Lightning starts.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from training_cases import NETWORK, words

from involution.models import create_model
from involution.train import train
from involution.training import Classification, task

# What makes a run hard to continue exactly.
INTERRUPTED = {
    "checkpoint_every": 1,
    "data_on_bad_image": "skip",
    "data_workers": 1,
    "trainer_callbacks": [{"class_path": "EMAWeightAveraging", "init_args": {"decay": 0.8}}],
}


def kill(data: Path, folder: Path) -> None:
    """Trains until it is killed, before the optimiser's third step of the second epoch."""
    step = Classification.on_before_optimizer_step

    def until(self, optimizer):
        if self.global_step == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        step(self, optimizer)

    Classification.on_before_optimizer_step = until
    train(words(data, folder, **INTERRUPTED))


def share(data: Path, folder: Path, size: str, patch: pytest.MonkeyPatch | None = None) -> None:
    """Trains in ``size`` processes, without batch norm and dropout, which see each image alone."""

    def create(name: str, **arguments) -> nn.Module:
        return create_model(name, **arguments, norm_layer=lambda channels: nn.GroupNorm(1, channels))

    (patch or pytest.MonkeyPatch()).setattr(task, "create_network", create)
    plain = {name: value for name, value in NETWORK.items() if not name.startswith("drop")}
    options = {"model_network_arguments": plain, "checkpoint_every": 3, "trainer_devices": int(size)}
    options["model_optimizer"] = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5}}
    train(words(data, folder / size, **options, **({"trainer_strategy": "ddp"} if size != "1" else {})))


if __name__ == "__main__":
    torch.set_num_threads(1)
    name, data, folder, *more = sys.argv[1:]
    {"kill": kill, "share": share}[name](Path(data), Path(folder), *more)
