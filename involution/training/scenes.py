"""Scenes to find objects in, without a download: handwritten digits pasted on photographs, both of scikit-learn.

Pixels are real, boxes and masks exact. ``python -m involution.training.scenes FOLDER`` writes them as a COCO data set.
"""

import functools
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .._extras import needed_by
from .coco import coco_file, recorded
from .data import ImageData, v2
from .libraries import torchvision
from .objects import ObjectData, tensors
from .pixels import PixelData

DIGITS = "0123456789"
SIZE = 128  # pixels, height and width
COLOUR_DISTANCE = 0.4  # between a digit and what is behind it, of RGB from 0 to 1, so that each can be seen
OVERLAP = 0.05  # intersection over union of two boxes, at most


class Scene(NamedTuple):
    """A picture ``(3, H, W)`` uint8 and its N digits.

    ``labels (N,)`` are from 1, for the digit 0, to 10; ``masks (N, H, W)`` bool are the pixels that can be seen.
    """

    image: torch.Tensor
    labels: torch.Tensor
    masks: torch.Tensor


@functools.cache
def _material() -> dict[str, tuple[list[Any], list[Any], Any]]:
    """Photographs, digits and their labels of each part; no pixel and no digit is in both."""
    import numpy as np

    with needed_by("The scenes", "train"):
        from sklearn import datasets, model_selection
    digits = datasets.load_digits()
    images = [np.uint8(image * 255 / 16) for image in digits.images]
    pairs = model_selection.train_test_split(
        images, digits.target, test_size=0.2, random_state=0, stratify=digits.target
    )
    photographs = [picture / np.float32(255) for picture in datasets.load_sample_images().images]
    edges = [picture.shape[1] * 7 // 10 for picture in photographs]
    left = [picture[:, :edge] for picture, edge in zip(photographs, edges, strict=True)]
    right = [picture[:, edge:] for picture, edge in zip(photographs, edges, strict=True)]
    return {"train": (left, pairs[0], pairs[2]), "test": (right, pairs[1], pairs[3])}


def draw_scene(part: str, *key: int) -> Scene:
    """The scene of a part, ``"train"`` or ``"test"``, that belongs to some numbers, such as seed, epoch and index.

    It has 1 to 5 digits of 24 to 48 pixels, in colours that differ from what is behind, on a crop of a photograph that
    is mirrored half the time, under noise of standard deviation 0.03.
    """
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(key)
    photographs, digits, classes = _material()[part]
    picture = photographs[random.integers(len(photographs))]
    top, left = (random.integers(length - SIZE + 1) for length in picture.shape[:2])
    scene = picture[top : top + SIZE, left : left + SIZE]
    scene = np.array(scene[:, ::-1] if random.random() < 0.5 else scene)
    labels: list[int] = []
    boxes, masks = torch.zeros(0, 4), torch.zeros(0, SIZE, SIZE, dtype=torch.bool)
    wanted = random.integers(1, 6)
    for _ in range(20 * wanted):  # places that are taken are tried again
        if len(labels) == wanted:
            break
        index, side = int(random.integers(len(digits))), int(random.integers(24, 49))
        ink = np.asarray(Image.fromarray(digits[index]).resize((side, side), Image.Resampling.BICUBIC)) / 255
        y, x = random.integers(SIZE - side + 1, size=2)
        mask = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
        mask[0, y : y + side, x : x + side] = torch.from_numpy(ink > 0.5)
        box = tight_boxes(mask)
        if torchvision.ops.box_iou(box, boxes).gt(OVERLAP).any():
            continue
        behind, colour = scene[mask[0].numpy()].mean(0), random.random(3)
        while np.linalg.norm(colour - behind) < COLOUR_DISTANCE:
            colour = random.random(3)
        patch = scene[y : y + side, x : x + side]
        patch += ink[..., None] * (colour - patch)
        boxes, masks = torch.cat((boxes, box)), torch.cat((masks & ~mask, mask))
        labels.append(classes[index] + 1)
    scene += random.normal(0, 0.03, scene.shape)
    image = torch.from_numpy(np.uint8(scene.clip(0, 1) * 255 + 0.5))
    return Scene(image.permute(2, 0, 1).contiguous(), torch.tensor(labels), masks)


def tight_boxes(masks: torch.Tensor) -> torch.Tensor:
    """The smallest boxes ``(N, 4)``, from the first pixel to behind the last, around ``(N, H, W)``."""
    return torchvision.ops.masks_to_boxes(masks) + torch.tensor([0, 0, 1, 1])


def _drawn(part: str, index: int) -> Scene:
    """The scene of an index: fixed in tests; in training by torch's generator.

    That generator is set by seed, epoch and index (:class:`involution.training.loading.Prepared`).
    """
    return draw_scene(part, *(torch.randint(2**62, (2,)).tolist() if part == "train" else [index]))


class _DigitScenes(ImageData):
    """Scenes of digits. In training they are new in each epoch; tests are the same always.

    Args:
        train: number of training scenes in an epoch.
        test: number of test scenes.
        mirror: mirror half of the training images, which makes other signs of digits.
    """

    in_memory = True
    size: tuple[int, ...] = (SIZE, SIZE)

    def __init__(self, train: int = 400, test: int = 150, mirror: bool = False, **common: Any) -> None:
        super().__init__(mirror=mirror, **common)  # type: ignore[call-arg]  # of the class beside it
        self.counts = {"train": train, "test": test}

    def samples(self, part: str) -> Any:
        return [(part, index) for index in range(self.counts[part])]


class Scenes(_DigitScenes, ObjectData):
    """Scenes of digits, with their boxes and masks."""

    def __init__(self, **common: Any) -> None:
        super().__init__(**common)
        self.classes, self.category_ids = list(DIGITS), list(range(1, 11))

    def read(self, file: str, source: Any) -> tuple[torch.Tensor, dict[str, Any]]:
        return self.known(_drawn(file, source), source)

    def known(self, scene: Scene, image_id: int) -> tuple[torch.Tensor, dict[str, Any]]:
        """The image of a scene and its target."""
        image, labels, masks = tensors.Image(scene.image), scene.labels, scene.masks
        areas, shown = masks.sum((1, 2)), masks if self.masks else None
        return image, self.objects(image, image_id, tight_boxes(masks), labels, areas=areas, masks=shown)


class SceneMaps(_DigitScenes, PixelData):
    """The same scenes with a class for each pixel: the digit, or background."""

    def __init__(self, **common: Any) -> None:
        super().__init__(**common)
        self.classes = ["background", *DIGITS]

    def read(self, file: str, source: Any) -> tuple[torch.Tensor, torch.Tensor]:
        image, labels, masks = _drawn(file, source)
        classes = (masks * labels[:, None, None]).amax(0)
        return tensors.Image(image), tensors.Mask(classes.to(torch.uint8))


def write_coco(folder: Path, train: int = 400, test: int = 150) -> None:
    """Writes scenes in COCO's layout: ``train2017``, ``val2017`` and ``annotations``."""
    data = Scenes(masks=True)
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    for part, name, count in (("train", "train2017", train), ("test", "val2017", test)):
        (folder / name).mkdir(exist_ok=True)
        truth = []
        for index in range(count):
            image, target = data.known(draw_scene(part, index), index)
            v2.functional.to_pil_image(image).save(folder / name / f"{index:06}.png")
            truth.append(recorded(target, image, index))
        content = coco_file(truth, data.category_ids)
        for each in content["images"]:
            each["file_name"] = f"{each['id']:06}.png"
        for each in content["categories"]:
            each["name"] = data.classes[each["id"] - 1]
        (folder / "annotations" / f"instances_{name}.json").write_text(json.dumps(content))
        print(f"{count} images in {folder / name}")


if __name__ == "__main__":
    write_coco(Path(sys.argv[1]))
