"""All that changes during a run, which is all that a checkpoint has to hold."""

from __future__ import annotations

import random
import sys
from typing import Any

import torch
from torch import nn

from ..models import create_model
from .checkpoint import random_state, set_random_state
from .config import Config, ConfigError
from .data import Data
from .distributed import Processes
from .ema import ExponentialMovingAverage
from .images import DataError
from .log import Row
from .optimizer import make_optimizer
from .precision import Precision
from .schedule import CosineSchedule


class State:
    """A model and what trains it.

    Args:
        config: the options.
        data: what it is trained on, which decides its inputs and classes.
        steps: in an epoch.
        group: the processes.

    Attributes:
        model: on its device, in training mode.
        ema: moving average of its weights, if any.
        optimizer: of its parameters.
        schedule: of the learning rate.
        precision: with the gradient scaler.
        epoch: how many are done.
        history: their numbers.

    Raises:
        ConfigError: the model cannot be built, or the device has not the precision.
    """

    def __init__(self, config: Config, data: Data, steps: int, group: Processes) -> None:
        self.config, self.data, self.group = config, data, group
        self.precision = Precision(config.precision, group.device)
        arguments = {**config.model_arguments, "num_classes": len(data.classes), "in_channels": data.channels}
        self.described: dict[str, Any] = {"name": config.model, "arguments": arguments}
        random.seed(config.seed)
        torch.manual_seed(config.seed)
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed(config.seed % 2**32)
        self.model = self._build()
        torch.manual_seed(
            config.seed + group.rank
        )  # dropout differs between the processes, the weights do not
        self.ema = (
            ExponentialMovingAverage(self.model, config.ema_decay) if config.ema_decay is not None else None
        )
        self.optimizer = make_optimizer(self.model, config)
        self.schedule = CosineSchedule(
            self.optimizer,
            config.epochs * steps,
            config.lr,
            config.min_lr,
            round(config.warmup * steps),
            config.warmup_factor,
        )
        self.epoch = 0
        self.history: list[Row] = []

    def _build(self) -> nn.Module:
        try:
            model: nn.Module = create_model(self.described["name"], **self.described["arguments"])
        except (TypeError, ValueError) as error:
            raise ConfigError(f"The model {self.described['name']!r} cannot be built: {error}") from error
        model = model.to(self.group.device)
        if self.config.channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.config.sync_batch_norm:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return model

    @property
    def evaluated(self) -> nn.Module:
        """The model that counts: with the moving average of the weights, if there is one."""
        return self.model if self.ema is None else self.ema.module

    def share_statistics(self) -> None:
        """Gives all processes the first one's running statistics of norms, which are what a checkpoint has."""
        self.group.share(self.model.buffers())
        if self.ema is not None:
            self.group.share(self.ema.module.buffers())

    def content(self, output: str) -> dict[str, Any]:
        """What a checkpoint holds. All processes must call this, as it has the random numbers of each.

        Args:
            output: the folder of the run.
        """
        scaler = self.precision.scaler
        return {
            "model": self.described,
            "state_dict": self.model.state_dict(),
            "ema_state_dict": self.ema.module.state_dict() if self.ema is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.schedule.state_dict(),
            "scaler": scaler.state_dict() if scaler.is_enabled() else None,
            "epoch": self.epoch,
            "rng": self.group.gather(random_state(self.group.device)),
            "config": self.config.changed(output=output).as_dict(),
            "classes": self.data.classes,
            "input": self.data.input,
            "metrics": {**self.history[-1], "history": self.history},
        }

    def restore(self, content: dict[str, Any]) -> None:
        """Goes back to what a checkpoint holds.

        Args:
            content: as :meth:`content` gave it.

        Raises:
            ConfigError: the number of processes is another.
            DataError: the data is not what the run began with.
        """
        if len(content["rng"]) != self.group.size:
            raise ConfigError(
                f"The run was trained by {len(content['rng'])} process(es) and goes on with as many only, not with "
                f"{self.group.size}: its curve would differ."
            )
        if content["classes"] != self.data.classes or content["input"] != self.data.input:
            raise DataError(
                f"The data is not what the run began with: it had {len(content['classes'])} classes and the input "
                f"{content['input']}, now there are {len(self.data.classes)} and {self.data.input}."
            )
        self.model.load_state_dict(content["state_dict"])
        if self.ema is not None:
            self.ema.module.load_state_dict(content["ema_state_dict"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.schedule.load_state_dict(content["scheduler"])
        if content["scaler"] is not None:
            self.precision.scaler.load_state_dict(content["scaler"])
        self.epoch = content["epoch"]
        self.history = content["metrics"]["history"]
        set_random_state(content["rng"][self.group.rank], self.group.device)
