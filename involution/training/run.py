"""What a run leaves behind beside what Lightning writes: whole checkpoints, the log, and pictures."""

import csv
import io
import itertools
import math
import os
import sys
from pathlib import Path
from typing import Any

import torch

from .checkpoint import CheckpointError, read_checkpoint, write_atomically
from .libraries import Figure, lightning

RUNS = Path("runs")
CONFIG, LAST = "config.yaml", "last.ckpt"


def new_run(name: str) -> Path:
    """The next numbered folder for a run in ``runs``."""
    return next(run for i in itertools.count(1) if not (run := RUNS / f"{name}-{i}").exists())


def newest_run(file: str) -> Path:
    """The run in ``runs`` where ``file`` was written last."""
    if found := sorted(RUNS.glob(f"*/{file}"), key=os.path.getmtime):
        return found[-1].parent
    raise CheckpointError(f"There is no run in {RUNS.absolute()}. Train one with python -m involution.train.")


class AtomicCheckpoints(lightning.plugins.TorchCheckpointIO):
    """Checkpoints that are there completely or not at all, and that are read without executing anything."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        write_atomically(Path(path), lambda file: torch.save(checkpoint, file))

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        if weights_only is False:
            raise ValueError("Checkpoints are read with weights_only=True alone.")
        return read_checkpoint(path)


class WithinEpochs(lightning.callbacks.ModelCheckpoint):
    """Checkpoints every so many steps, between whole ones; after an epoch's last there is one with the scores."""

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        if not trainer.is_last_batch and (index + 1) % trainer.accumulate_grad_batches == 0:
            super().on_train_batch_end(trainer, module, outputs, batch, index)


class History(lightning.Callback):
    """The numbers of each epoch: a line on the screen, ``log.csv``, and at the end ``curves.png``, in a folder.

    They are part of the checkpoint, so that file and picture are right whatever happened to the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[dict[str, float]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows = state["rows"]

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        metrics = trainer.callback_metrics.items()
        measured = {name: float(value) for name, value in metrics if not name.startswith("loss")}
        rate, epoch = trainer.optimizers[0].param_groups[0]["lr"], trainer.current_epoch + 1
        self.rows = [*self.rows, {"epoch": epoch, "lr": rate, **measured}]
        shown = "  ".join(f"{name} {value:.4f}" for name, value in measured.items())
        module.print(f"epoch {epoch}/{trainer.max_epochs}  {shown}", file=sys.stderr)
        if trainer.is_global_zero:
            text = io.StringIO()
            writer = csv.DictWriter(text, list(self.rows[0]), restval=math.nan, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
            write_atomically(self.folder / "log.csv", lambda file: file.write(text.getvalue().encode()))

    def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
        if isinstance(exception, KeyboardInterrupt):
            command = f"python -m involution.train --resume {self.folder}"
            module.print(f"\nInterrupted. Go on with: {command}", file=sys.stderr)

    def on_train_end(self, trainer: Any, module: Any) -> None:
        if self.rows and trainer.is_global_zero:
            draw_curves(self.rows, self.folder / "curves.png")
            module.report(self.folder)


def save_figure(figure: Any, path: Path) -> None:
    """Writes a figure of matplotlib as a PNG file."""
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=120))


def draw_curves(rows: list[dict[str, float]], path: Path) -> None:
    """Draws whatever has a training or a test value, and the learning rate, over the epochs."""
    # train_loss and val_loss share axes, and so do val_map and val_map_50.
    kinds: dict[str, list[str]] = {"lr": ["lr"]}
    for name in rows[-1]:
        if name.startswith(("train_", "val_")):
            kinds.setdefault(name.split("_")[1], []).append(name)
    figure = Figure(figsize=(4 * len(kinds), 3.6), layout="constrained")
    for axes, names in zip(figure.subplots(1, len(kinds)), kinds.values(), strict=True):
        for name in names:
            drawn = [(row["epoch"], row[name]) for row in rows if name in row]
            axes.plot(*zip(*drawn, strict=True), label=name, marker=".")
        axes.set(xlabel="epoch")
        axes.legend()
        axes.grid(alpha=0.3)
    save_figure(figure, path)
