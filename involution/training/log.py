"""The log of a run: a CSV file, and one for TensorBoard where it is asked for."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from .checkpoint import write_atomically

Row = dict[str, float]  # the numbers of an epoch
COLUMNS = (
    "epoch",
    "learning_rate",
    "train_loss",
    "train_accuracy",
    "test_loss",
    "test_accuracy",
    "gradient_norm",
    "skipped_steps",
    "skipped_images",
    "seconds",
)


def write_csv(path: Path, history: list[Row]) -> None:
    """Writes all epochs' numbers, so that the file is right whatever was in it when a run was killed.

    Args:
        path: the file, replaced atomically.
        history: a row for each epoch, with the ``COLUMNS``.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_atomically(path, lambda file: file.write(text.getvalue().encode()))


def require_tensorboard() -> None:
    """Finds out before a long run whether TensorBoard is there.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "The option 'tensorboard' needs TensorBoard, which is not installed. Install it with: "
            "pip install -e '.[train]'"
        ) from error


class TensorBoard:
    """Writes each epoch's numbers for TensorBoard.

    Args:
        folder: where its files go.
        epochs_done: what an interrupted run wrote of later epochs is forgotten.

    Raises:
        ImportError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, epochs_done: int) -> None:
        require_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(folder), purge_step=epochs_done + 1)

    def write(self, row: Row) -> None:
        """Adds an epoch.

        Args:
            row: its numbers.
        """
        for name in COLUMNS[1:]:
            part, _, rest = name.partition("_")
            tag = f"{part}/{rest}" if part in ("train", "test") else name
            self.writer.add_scalar(tag, row[name], int(row["epoch"]))
        self.writer.flush()

    def close(self) -> None:
        """Closes the file."""
        self.writer.close()
