"""Images of one class each."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .images import DataError
from .libraries import Figure, torchmetrics
from .loading import Batch
from .run import save_figure
from .task import Task


class Classification(Task):
    """One class for each image.

    Args:
        data: what the data is (``ImageData.description``).
        label_smoothing: share of each label that goes to all classes (Szegedy et al., CVPR 2016, section 7).
    """

    monitor = ("val_accuracy", "max")

    def __init__(self, data: dict[str, Any], label_smoothing: float = 0.1, **common: Any) -> None:
        super().__init__(data, **common)
        self.label_smoothing = label_smoothing
        self.means["train_accuracy"] = torchmetrics.MeanMetric()
        kinds = torchmetrics.classification
        options: dict[str, Any] = {"num_classes": len(data["classes"]), "validate_args": False}
        accuracy = kinds.MulticlassAccuracy(average="micro", **options)
        confusion = kinds.MulticlassConfusionMatrix(**options)
        tests = {"accuracy": accuracy, "confusion": confusion, "loss": torchmetrics.MeanMetric()}
        self.tests: Any = nn.ModuleDict(tests)

    def forward(self, images: Tensor) -> Tensor:
        """Scores of images ``(B, C, H, W)``, in float32 at least, which a loss needs."""
        scores = self.network(images.to(memory_format=self.memory_format))
        return scores.to(torch.promote_types(scores.dtype, torch.float32))

    def loss(self, batch: Batch) -> Tensor:
        scores = self(batch.images)
        self.means["train_accuracy"].update((scores.argmax(1) == batch.targets).float())
        return F.cross_entropy(scores, batch.targets, label_smoothing=self.label_smoothing)

    def measure(self, batch: Batch) -> None:
        scores = self(batch.images)
        self.tests["loss"].update(F.cross_entropy(scores, batch.targets, reduction="none"))
        self.tests["accuracy"].update(scores, batch.targets)
        self.tests["confusion"].update(scores, batch.targets)

    def scores(self) -> dict[str, Tensor]:
        found = {f"val_{name}": metric.compute() for name, metric in self.tests.items()}
        for metric in self.tests.values():
            metric.reset()
        self.skipped = int(self.means["skipped_images"].compute())  # here, where all processes are
        self.confusion: Tensor = found.pop("val_confusion").cpu()  # (N, N) counts, true classes by row
        if not self.confusion.any():
            raise DataError("No test image can be read.")
        return found

    def report(self, folder: Path) -> str:
        count, path = len(self.confusion), folder / "confusion.png"
        side = min(12.0, 3 + 0.45 * count)
        figure = Figure(figsize=(side, side), layout="constrained")
        options = {"add_text": count <= 20, "labels": self.data["classes"]}
        self.tests["confusion"].plot(self.confusion, ax=figure.subplots(), **options)
        save_figure(figure, path)
        right, skipped = int(self.confusion.trace()), self.skipped
        images = f"{right} of {int(self.confusion.sum())} test images right, {skipped} skipped"
        return f"{images}. Which classes are taken for which: {path}"
