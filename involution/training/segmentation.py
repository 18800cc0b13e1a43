"""A class for each pixel."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .images import DataError
from .libraries import Figure, torchmetrics
from .loading import Batch
from .pixels import IGNORED
from .run import save_figure
from .task import Task

EXAMPLES = 4  # images in the picture


class Segmentation(Task):
    """A class for each pixel.

    ``val_miou`` is the mean over the classes of intersection over union, of all test images together; classes that are
    neither there nor found do not count.

    Args:
        data: what the data is (``ImageData.description``).
        auxiliary: weight of the loss of an auxiliary head, where the network has one.
        class_weights: weights of the loss in training, one for each class, in their order; all 1 unless given. A class
            that covers almost everything hides the others' part of the loss.

    Raises:
        DataError: there are not as many weights as classes, or one is negative.
    """

    monitor = ("val_miou", "max")
    class_weights: Tensor

    def __init__(
        self,
        data: dict[str, Any],
        network: str = "semantic_fpn_rednet_tiny",
        auxiliary: float = 0.4,
        class_weights: list[float] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(data, network, **common)
        self.auxiliary = auxiliary
        count = len(data["classes"])
        weights = torch.tensor([1.0] * count if class_weights is None else class_weights, dtype=torch.float32)
        if len(weights) != count or weights.min() < 0:
            raise DataError(
                f"class_weights must have a number of at least 0 for each of the {count} classes, not "
                f"{class_weights}."
            )
        self.register_buffer("class_weights", weights, persistent=False)
        options: dict[str, Any] = {"ignore_index": IGNORED, "validate_args": False}
        kind = torchmetrics.classification.MulticlassConfusionMatrix
        tests = {"confusion": kind(len(data["classes"]), **options), "loss": torchmetrics.MeanMetric()}
        self.tests: Any = nn.ModuleDict(tests)
        self.examples: list[Any] = []

    def forward(self, images: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        """The network's scores ``(B, classes, H, W)``, ``"out"`` and perhaps ``"aux"``, in float32."""
        return {
            name: scores.float()
            for name, scores in self.network(images.to(memory_format=self.memory_format)).items()
        }

    def loss(self, batch: Batch) -> Tensor:
        scores = self(batch.images)
        losses = {
            name: cross_entropy(each, batch.targets, self.class_weights) for name, each in scores.items()
        }
        return losses["out"] + self.auxiliary * losses.get("aux", 0)

    def measure(self, batch: Batch) -> None:
        scores = self(batch.images)["out"]
        self.tests["loss"].update(cross_entropy(scores, batch.targets), batch.targets.ne(IGNORED).sum())
        self.tests["confusion"].update(scores.argmax(1), batch.targets)
        if len(self.examples) < EXAMPLES:
            self.examples += zip(batch.images, batch.targets, scores.argmax(1), strict=True)

    def scores(self) -> dict[str, Tensor]:
        loss, counts = self.tests["loss"].compute(), self.tests["confusion"].compute().double()
        for metric in self.tests.values():
            metric.reset()
        self.drawn, self.examples = self.examples[:EXAMPLES], []
        if not counts.any():
            raise DataError("No test image can be read, or none has a class.")
        right = counts.diagonal()
        # NaN where a class is neither there nor found.
        self.ious = right / (counts.sum(0) + counts.sum(1) - right)
        accuracy = right.sum() / counts.sum()
        return {"val_loss": loss, "val_miou": self.ious.nanmean(), "val_pixel_accuracy": accuracy}

    def report(self, folder: Path) -> str:
        figure = Figure(figsize=(12, 3 * len(self.drawn)), layout="constrained")
        mean, std = (torch.tensor(self.data["input"][name])[:, None, None] for name in ("mean", "std"))
        rows = figure.subplots(len(self.drawn), 4, squeeze=False)
        for row, (image, truth, found) in zip(rows, self.drawn, strict=True):
            known = (truth != IGNORED).cpu()
            picture = (image.cpu() * std + mean).clamp(0, 1).permute(1, 2, 0)
            truth, found = truth.cpu(), found.cpu()
            shown = {"image": picture, "truth": truth.where(known, torch.nan), "found": found}
            shown["errors"] = (truth != found) & known
            for axes, (name, values) in zip(row, shown.items(), strict=True):
                colours, most = ("gray", 1) if name == "errors" else ("tab20", len(self.ious))
                axes.imshow(values.numpy(), colours, vmin=0, vmax=most, interpolation="nearest")
                axes.set(title=name, xticks=[], yticks=[])
        save_figure(figure, folder / "examples.png")
        lines = [f"examples: {folder / 'examples.png'}", "Intersection over union:"]
        classes = zip(self.data["classes"], self.ious.tolist(), strict=True)
        return "\n".join([*lines, *(f"  {name[:24]:24} {iou:.3f}" for name, iou in classes)])


def cross_entropy(scores: Tensor, classes: Tensor, weights: Tensor | None = None) -> Tensor:
    """The mean over the pixels that have a class, by the classes' weights; 0 where none has."""
    total = F.cross_entropy(scores, classes, weights, ignore_index=IGNORED, reduction="sum")
    known = classes.ne(IGNORED)  # a product with it, because to select by it would wait for a GPU
    weight = known if weights is None else known * weights[classes.where(known, 0)]
    return total / weight.sum().clamp(min=torch.finfo(total.dtype).tiny)
