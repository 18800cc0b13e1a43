"""Pictures of a run: its curves, and a confusion matrix."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from torch import Tensor

from .checkpoint import write_atomically
from .log import Row


def require_matplotlib() -> None:
    """Finds out before a long run whether there will be a picture after it.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "Pictures need matplotlib, which is not installed. Install it with: pip install -e '.[train]', or do "
            "without by --no-plot."
        ) from error


def _figure(width: float, height: float) -> Any:
    """A figure that needs no display and changes nothing global."""
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: Path) -> None:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    write_atomically(path, lambda file: file.write(content.getvalue()))


def draw_curves(history: list[Row], path: Path, title: str) -> None:
    """Loss, accuracy and learning rate over the epochs.

    Args:
        history: a row for each epoch.
        path: the PNG file.
        title: of the picture.
    """
    figure = _figure(12, 3.6)
    loss, accuracy, rate = figure.subplots(1, 3)
    epochs = [row["epoch"] for row in history]
    for part, colour in (("train", "#8d99ae"), ("test", "#d62828")):
        loss.plot(epochs, [row[f"{part}_loss"] for row in history], color=colour, label=part, marker=".")
        percent = [100 * row[f"{part}_accuracy"] for row in history]
        accuracy.plot(epochs, percent, color=colour, label=part, marker=".")
    last = 100 * history[-1]["test_accuracy"]
    accuracy.set(title=f"accuracy in %: {last:.2f} at the end", xlabel="epoch")
    loss.set(title="loss", xlabel="epoch")
    rate.plot(epochs, [row["learning_rate"] for row in history], color="#003049", marker=".")
    rate.set(title="learning rate at the epoch's end", xlabel="epoch", ylim=(0, None))
    for axes in (loss, accuracy):
        axes.legend()
    for axes in (loss, accuracy, rate):
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    _save(figure, path)


def draw_confusion(confusion: Tensor, classes: list[str], path: Path, title: str) -> None:
    """How often each class was taken for each, as shares of the true class's images.

    Args:
        confusion: ``(N, N)`` counts, true classes by row.
        classes: their names.
        path: the PNG file.
        title: of the picture.
    """
    count = len(classes)
    side = min(12.0, 3 + 0.45 * count)
    figure = _figure(side + 1, side)
    axes = figure.subplots()
    shares = confusion.double() / confusion.sum(1, keepdim=True).clamp_min(1)
    picture = axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(picture, ax=axes, label="share of the true class's images", shrink=0.8)
    axes.set(xlabel="predicted class", ylabel="true class", title=title)
    if count <= 30:
        axes.set_xticks(range(count), classes, rotation=90 if max(map(len, classes)) > 2 else 0)
        axes.set_yticks(range(count), classes)
        for i, j in confusion.nonzero().tolist():
            colour = "white" if shares[i, j] > 0.5 else "black"
            axes.text(j, i, int(confusion[i, j]), ha="center", va="center", color=colour, fontsize=8)
    _save(figure, path)
