"""Objects in images: boxes and, with a Mask R-CNN, masks; measured as COCO does."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoint import write_atomically
from .coco import annotations, coco_scores, recorded
from .libraries import Figure, torchvision
from .loading import Batch
from .run import save_figure
from .task import Task

EXAMPLES = 8  # images in the picture
LEAST = 0.5  # score of what is drawn there
LOGGED = {"map": 0, "map_50": 1, "map_75": 2, "mar_100": 8}  # of COCO's twelve numbers, by their position
COLOURS = "red orange gold lime cyan deepskyblue blue magenta pink brown".split()  # by label
KINDS = {"bbox": "val_", "segm": "val_segm_"}


class Detection(Task):
    """Boxes of objects and, with a Mask R-CNN, masks.

    ``train_loss`` is the sum of the detector's losses. ``val_map`` is COCO's mean average precision of boxes,
    ``val_segm_map`` that of masks.
    """

    monitor = ("val_map", "max")

    def __init__(
        self, data: dict[str, Any], network: str = "fasterrcnn_rednet_tiny_fpn", **common: Any
    ) -> None:
        super().__init__(data, network, **common)
        self.seen: list[Any] = []  # truth and detections of each image of the test so far
        self.examples: list[Any] = []

    def sizes(self) -> dict[str, Any]:
        return {"num_classes": len(self.data["classes"]) + 1}  # with the background

    def loss(self, batch: Batch) -> Tensor:
        parts = self.network(batch.images, batch.targets)
        named = {f"loss_{name.removeprefix('loss_')}": part.detach() for name, part in parts.items()}
        self.log_dict(named, prog_bar=True)
        return torch.stack([*parts.values()]).sum()

    def measure(self, batch: Batch) -> None:
        for image, target, found in zip(batch.images, batch.targets, self.network(batch.images), strict=True):
            self.seen.append([recorded(each, image, target["image_id"]) for each in (target, found)])
            if len(self.examples) < EXAMPLES:
                kept = found["scores"] >= LEAST
                self.examples.append((image, target, {name: value[kept] for name, value in found.items()}))

    def scores(self) -> dict[str, Tensor]:
        parts: list[Any] = [self.seen]
        if self.trainer.world_size > 1:
            parts = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(parts, self.seen)
        pairs = sorted((pair for part in parts for pair in part), key=lambda pair: pair[0]["image_id"])
        self.truth, self.found = ([pair[i] for pair in pairs] for i in (0, 1))
        self.drawn, self.seen, self.examples = self.examples, [], []
        kinds = KINDS if pairs and all("masks" in each for each in pairs[0]) else ["bbox"]
        ids = self.data["category_ids"]
        self.tests = {kind: coco_scores(self.truth, self.found, ids, kind) for kind in kinds}
        result: dict[str, Tensor] = {}
        for kind, (numbers, *_) in self.tests.items():
            result |= {
                KINDS[kind] + name: torch.tensor(numbers[position]) for name, position in LOGGED.items()
            }
        return result

    def report(self, folder: Path) -> str:
        lines = [f"{len(self.truth)} images with {sum(len(each['boxes']) for each in self.truth)} objects"]
        for kind, (_, by_class, table) in self.tests.items():
            lines += [f"COCO's scores, {kind}:", table]
            lines += [f"  {n[:24]:24} {p:.3f}" for n, p in zip(self.data["classes"], by_class, strict=True)]
        results = annotations(self.found, self.data["category_ids"])
        for each in results:  # what result files do not have
            del each["id"], each["area"], each["iscrowd"]
        write_atomically(folder / "detections.json", lambda file: file.write(json.dumps(results).encode()))
        figure = Figure(figsize=(16, 8.5), layout="constrained")
        places = figure.subplots(2, EXAMPLES // 2).flat
        for axes, (image, target, found) in zip(places, self.drawn, strict=False):
            picture = draw_objects(image, target, found, self.data["classes"])
            axes.imshow(picture.permute(1, 2, 0).numpy())
        for axes in figure.axes:
            axes.axis("off")
        save_figure(figure, folder / "examples.png")
        return "\n".join(
            [*lines, f"Results: {folder / 'detections.json'}; examples: {folder / 'examples.png'}"]
        )


def draw_objects(
    image: Tensor, target: dict[str, Any], found: dict[str, Tensor], classes: list[str]
) -> Tensor:
    """An image ``(3, H, W)`` uint8 with what was found, in colours with class and score, and, thin in white, the truth.

    Small images are drawn larger, so that the letters fit.
    """
    utils, zoom = torchvision.utils, max(1, 512 // max(image.shape[-2:]))

    def enlarged(part: Tensor) -> Tensor:
        return part.repeat_interleave(zoom, -1).repeat_interleave(zoom, -2)

    picture = (enlarged(image) * 255).round().to(torch.uint8)
    picture = utils.draw_bounding_boxes(picture, target["boxes"] * zoom, colors="white")
    if not len(found["labels"]):
        return picture
    colours = [COLOURS[label % len(COLOURS)] for label in found["labels"].tolist()]
    if "masks" in found:
        picture = utils.draw_segmentation_masks(picture, enlarged(found["masks"][:, 0]) > 0.5, 0.5, colours)
    pairs = zip(found["labels"].tolist(), found["scores"].tolist(), strict=True)
    names = [f"{classes[label - 1]} {score:.2f}" for label, score in pairs]
    return utils.draw_bounding_boxes(picture, found["boxes"] * zoom, names, colours, width=3)
