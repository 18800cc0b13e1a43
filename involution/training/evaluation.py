"""How well a model does on the test images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from .data import readable
from .distributed import Processes
from .images import DataError
from .precision import Precision, at_least_float32
from .progress import Progress


@dataclass(frozen=True)
class Scores:
    """What an evaluation found.

    Attributes:
        loss: mean cross entropy, without label smoothing.
        accuracy: share of images whose class was found.
        confusion: ``(N, N)``, how many images of each true class (row) were taken for each class (column).
        skipped: images that could not be read, and why.
    """

    loss: float
    accuracy: float
    confusion: Tensor
    skipped: dict[str, str]


@torch.no_grad()
def evaluate_model(
    model: nn.Module,
    loader: DataLoader,
    classes: int,
    precision: Precision,
    processes: Processes,
    on_bad_image: str = "stop",
    channels_last: bool = False,
    progress: bool = True,
) -> Scores:
    """Runs a model in evaluation mode over a loader's images, and leaves it as it was.

    Args:
        model: scores classes, ``(B, C, H, W)`` to ``(B, classes)``.
        loader: this process's share of the images.
        classes: how many there are.
        precision: mixed precision.
        processes: who evaluates together; all get the same result.
        on_bad_image: ``"stop"`` or ``"skip"``.
        channels_last: whether the images are stored so.
        progress: whether to show how far it has come.

    Raises:
        BadImageError: an image cannot be read, and is not to be skipped.
        DataError: no image can be read.
    """
    device = processes.device
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    confusion = torch.zeros(classes * classes, dtype=torch.long, device=device)
    loss = torch.zeros((), dtype=torch.float64, device=device)
    skipped: dict[str, str] = {}
    training = model.training
    model.eval()
    bar = Progress("test", len(loader), enabled=progress and processes.main)
    try:
        for batch in readable(loader, on_bad_image, skipped):
            if len(batch.labels):
                images = batch.images.to(device, memory_format=memory_format, non_blocking=True)
                labels = batch.labels.to(device, non_blocking=True)
                with precision.autocast():
                    scores = at_least_float32(model(images))
                loss += F.cross_entropy(scores, labels, reduction="sum")
                confusion += torch.bincount(labels * classes + scores.argmax(1), minlength=classes * classes)
            bar.step()
    finally:
        bar.close()
        model.train(training)
    processes.sum(confusion)
    processes.sum(loss)
    for other in processes.gather(skipped):
        skipped.update(other)
    matrix = confusion.view(classes, classes).cpu()
    count = int(matrix.sum())
    if not count:
        raise DataError(f"No test image can be read; {len(skipped)} were skipped.")
    return Scores(float(loss) / count, int(matrix.trace()) / count, matrix, skipped)
