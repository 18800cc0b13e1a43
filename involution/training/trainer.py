"""A run from beginning, or from where it was interrupted, to end."""

from __future__ import annotations

import itertools
import math
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import runs
from .checkpoint import read_checkpoint, save_checkpoint
from .config import Config, ConfigError, from_mapping
from .data import REPLACEMENTS, Batch, TestOrder, TrainingOrder, load_data, make_loader, readable
from .distributed import Processes, processes, processor_threads
from .evaluation import evaluate_model
from .images import DataError
from .log import Row, TensorBoard, require_tensorboard, write_csv
from .plot import draw_curves, require_matplotlib
from .progress import Progress, duration
from .state import State
from .step import Stepper

# What may be another after an interruption, because it leaves the curve alone.
CHANGEABLE = ("data_path", "device", "workers", "tensorboard", "plot")


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Attributes:
        path: its folder.
        accuracy: on the test images, after the last epoch.
        best_accuracy: the highest of any epoch; chosen by the test images, so it flatters.
        history: the numbers of each epoch.
    """

    path: Path
    accuracy: float
    best_accuracy: float
    history: list[Row]


def train(
    config: Config | Mapping[str, Any] | None = None,
    *,
    resume: str | Path | None = None,
    progress: bool = True,
) -> Result:
    """Trains a model, or goes on with a run that was interrupted.

    Under ``torchrun``, every process calls this, and they train together.

    Args:
        config: the options; the defaults train a small RedNet on the digits. With ``resume``, only those that are
            changed: ``data_path``, ``device``, ``workers``, ``tensorboard`` and ``plot`` can be.
        resume: folder of the run to go on with. It goes on after the last epoch that was finished, and gives the
            losses that it would have given without the interruption.
        progress: whether to print how far it has come.

    Raises:
        ConfigError: an option is not allowed.
        DataError: the data is not there, or not what it should be.
        BadImageError: an image cannot be read, and is not to be skipped.
        CheckpointError: the checkpoint to go on from is damaged.
        NonFiniteError: the loss or its gradient is not finite.
        ImportError: a library is missing; the message says how to install it.
    """
    if resume is None:
        chosen = config if isinstance(config, Config) else from_mapping(config or {})
    else:
        chosen = _resumed_config(resume, config or {})
    with processor_threads(chosen), processes(chosen.device) as group:
        return _Run(chosen, resume is not None, group, progress).train()


def _resumed_config(resume: str | Path, changes: Config | Mapping[str, Any]) -> Config:
    if isinstance(changes, Config):
        raise ConfigError("With 'resume', give only the options that change, as a dictionary.")
    path, config = runs.find_run(resume)
    for name in changes:
        if name not in CHANGEABLE:
            raise ConfigError(
                f"The option {name!r} cannot change when a run goes on, because its curve would; only "
                f"{', '.join(CHANGEABLE)} can."
            )
    return config.changed(**changes, output=str(path))


class _Run:
    """Everything a run needs, made in the order in which it can fail: what is quick to find out comes first."""

    def __init__(self, config: Config, resume: bool, group: Processes, progress: bool) -> None:
        self.config, self.group = config, group
        self.talks = progress and group.main
        if config.plot:
            require_matplotlib()
        if config.tensorboard:
            require_tensorboard()
        if config.sync_batch_norm and group.device.type != "cuda":
            raise ConfigError("The option 'sync_batch_norm' is for CUDA: torch has no such norm for the CPU.")
        if config.deterministic:
            torch.use_deterministic_algorithms(True)
        elif group.device.type == "cuda":
            torch.backends.cudnn.benchmark = True

        self.data = data = load_data(config)
        self.order = TrainingOrder(
            len(data.train), config.batch_size, config.accumulate, group.rank, group.size, config.seed
        )
        test_order = TestOrder(len(data.test), config.batch_size, group.rank, group.size)
        pin = group.device.type == "cuda"
        self.loader = make_loader(data.train, data.train_transform, self.order, config, True, pin)
        self.test_loader = make_loader(data.test, data.test_transform, test_order, config, False, pin)

        self.state = State(config, data, self.order.steps, group)
        if resume:
            self.path = Path(str(config.output))
            # Interrupted in its first epoch, a run has no checkpoint, and begins again.
            if (self.path / runs.LAST).exists():
                self.state.restore(read_checkpoint(self.path / runs.LAST))
        else:
            self.path = Path(group.broadcast(str(runs.create_run(config)) if group.main else None))
        self.step = self._stepper()

    def _stepper(self) -> Stepper:
        config, state = self.config, self.state
        runner = self.group.wrap(state.model)
        if config.compile:
            runner = torch.compile(runner)  # type: ignore[assignment]
        return Stepper(
            state.model,
            runner,
            state.optimizer,
            state.schedule,
            state.precision,
            self.group,
            state.ema,
            config.label_smoothing,
            config.clip_grad_norm,
            config.skip_non_finite,
            config.channels_last,
        )

    def train(self) -> Result:
        """The epochs that are left."""
        began, state, epochs = time.monotonic(), self.state, self.config.epochs
        self._introduce()
        board = None
        if self.config.tensorboard and self.group.main:
            board = TensorBoard(self.path / runs.TENSORBOARD, state.epoch)
        while state.epoch < epochs:
            row = self._one_epoch()
            state.epoch += 1
            state.history.append(row)
            self._save()
            if board is not None:
                board.write(row)
            self._say(
                f"epoch {state.epoch:{len(str(epochs))}}/{epochs}  "
                f"train loss {row['train_loss']:.4f}  test loss {row['test_loss']:.4f}  "
                f"test accuracy {100 * row['test_accuracy']:6.2f}%  {row['seconds']:.1f} s"
            )
        if board is not None:
            board.close()
        accuracy = [row["test_accuracy"] for row in state.history]
        if self.config.plot and self.group.main:
            draw_curves(state.history, self.path / runs.CURVES, f"{self.config.model} on {self.config.data}")
        self.group.wait()
        if self.talks:
            files = ", ".join(sorted(entry.name for entry in self.path.iterdir()))
            took = duration(time.monotonic() - began)
            self._say(f"Test accuracy {100 * accuracy[-1]:.2f}% after {took}. In {self.path}: {files}")
        return Result(self.path, accuracy[-1], max(accuracy), state.history)

    def _introduce(self) -> None:
        parameters = sum(parameter.numel() for parameter in self.state.model.parameters())
        self._say(
            f"{self.config.model} with {parameters:,} parameters on {self.config.data}: {len(self.data.train)} images "
            f"to train and {len(self.data.test)} to test on, of {len(self.data.classes)} classes; "
            f"{self.group.size} process(es) on {self.group.device}, {self.config.precision}; run {self.path}"
        )
        if self.state.epoch:
            self._say(f"going on after epoch {self.state.epoch}")

    def _say(self, text: str) -> None:
        if self.talks:
            print(text, flush=True)

    def _save(self) -> None:
        content = self.state.content(str(self.path))
        if self.group.main:
            history = self.state.history
            if all(history[-1]["test_accuracy"] > row["test_accuracy"] for row in history[:-1]):
                save_checkpoint(self.path / runs.BEST, content)
            write_csv(self.path / runs.LOG, history)
            save_checkpoint(self.path / runs.LAST, content)  # last: what is not in it will be done again
        self.group.wait()  # who goes on from a checkpoint must find this one

    def _one_epoch(self) -> Row:
        began, title = time.monotonic(), f"epoch {self.state.epoch + 1}"
        skipped: dict[str, str] = {}
        row = self._steps(title, skipped)
        self.state.share_statistics()
        scores = evaluate_model(
            self.state.evaluated,
            self.test_loader,
            len(self.data.classes),
            self.state.precision,
            self.group,
            self.config.on_bad_image,
            self.config.channels_last,
            self.talks,
        )
        for part in self.group.gather(skipped):
            skipped.update(part)
        skipped.update(scores.skipped)
        if skipped and self.group.main:
            first = next(iter(skipped.values()))
            warnings.warn(
                f"{len(skipped)} image(s) were skipped in {title}; the first: {first}", stacklevel=2
            )
        return {
            **row,
            "test_loss": scores.loss,
            "test_accuracy": scores.accuracy,
            "skipped_images": len(skipped),
            "seconds": time.monotonic() - began,
        }

    def _steps(self, title: str, skipped: dict[str, str]) -> Row:
        """The steps of an epoch, and what is known after them."""
        self.state.model.train()
        self.order.epoch = self.state.epoch
        batches = readable(self.loader, self.config.on_bad_image, skipped)
        bar = Progress(f"{title}/{self.config.epochs}", self.order.steps, enabled=self.talks)
        loss = correct = images = norms = 0.0
        left_out = counted = 0
        try:
            for number in range(1, self.order.steps + 1):
                mine = [self._whole(batch) for batch in itertools.islice(batches, self.config.accumulate)]
                result = self.step(mine, f"{title}, step {number}")
                if result.taken:
                    loss, correct = loss + result.loss, correct + result.correct
                    images += result.images
                    if math.isfinite(result.gradient_norm):  # float16's scaler leaves out steps of its own
                        norms, counted = norms + result.gradient_norm, counted + 1
                else:
                    left_out += 1
                bar.step(f"loss {loss / max(images, 1):.4f}")
            next(batches, None)  # lets the loader notice that the epoch is over
        finally:
            bar.close()
        totals = torch.tensor([loss, correct, images], dtype=torch.float64, device=self.group.device)
        loss, correct, images = self.group.sum(totals).tolist()
        return {
            "epoch": self.state.epoch + 1,
            "learning_rate": self.state.schedule.rate,
            "train_loss": loss / images if images else math.nan,
            "train_accuracy": correct / images if images else math.nan,
            "gradient_norm": norms / counted if counted else math.nan,
            "skipped_steps": left_out,
        }

    def _whole(self, batch: Batch) -> Batch:
        if len(batch.labels) < self.order.piece:
            raise DataError(
                f"{REPLACEMENTS} images in a row cannot be read; the first: {batch.bad[0].reason}"
            )
        return batch
