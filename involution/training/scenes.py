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
from .data import ImageData
from .libraries import pycocotools, torchvision
from .objects import ObjectData, tensors
from .pixels import PixelData

DIGITS = "0123456789"
SIZE = 128  # pixels, height and width
COLOUR_DISTANCE = 0.4  # between a digit and what is behind it, of RGB from 0 to 1, so that each can be seen
OVERLAP = 0.05  # intersection over union of two boxes, at most


class Scene(NamedTuple):
    """A picture ``(H, W, 3)`` uint8 and its N digits.

    ``labels (N,)`` are from 1, for the digit 0, to 10; ``masks (N, H, W)`` bool are the pixels that can be seen.
    """

    image: Any
    labels: Any
    masks: Any


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
    boxes, masks = np.zeros((0, 4)), np.zeros((0, SIZE, SIZE), bool)
    wanted = random.integers(1, 6)
    for _ in range(20 * wanted):  # places that are taken are tried again
        if len(labels) == wanted:
            break
        index, side = int(random.integers(len(digits))), int(random.integers(24, 49))
        ink = np.asarray(Image.fromarray(digits[index]).resize((side, side), Image.Resampling.BICUBIC)) / 255
        y, x = random.integers(SIZE - side + 1, size=2)
        mask = np.zeros((SIZE, SIZE), bool)
        mask[y : y + side, x : x + side] = ink > 0.5
        box = tight_boxes(mask[None])
        if torchvision.ops.box_iou(torch.tensor(box), torch.tensor(boxes)).gt(OVERLAP).any():
            continue
        behind, colour = scene[mask].mean(0), random.random(3)
        while np.linalg.norm(colour - behind) < COLOUR_DISTANCE:
            colour = random.random(3)
        patch = scene[y : y + side, x : x + side]
        patch += ink[..., None] * (colour - patch)
        boxes, masks = np.concatenate((boxes, box)), np.concatenate((masks & ~mask, mask[None]))
        labels.append(classes[index] + 1)
    scene += random.normal(0, 0.03, scene.shape)
    return Scene(np.uint8(scene.clip(0, 1) * 255 + 0.5), np.array(labels), masks)


def tight_boxes(masks: Any) -> Any:
    """The smallest boxes ``(N, 4)``, as x and y of their first and behind their last pixel, around ``(N, H, W)``."""
    import numpy as np

    ends = []
    for hit in (masks.any(1), masks.any(2)):  # columns, rows
        ends.append((hit.argmax(1), hit.shape[1] - hit[:, ::-1].argmax(1)))
    (left, right), (top, bottom) = ends
    return np.stack((left, top, right, bottom), 1).astype(np.float64)


def _drawn(part: str, index: int) -> tuple[torch.Tensor, Scene]:
    """The image and the scene of an index: fixed in tests; in training by torch's generator.

    That generator is set by seed, epoch and index (:class:`involution.training.loading.Prepared`).
    """
    key = torch.randint(2**62, (2,)).tolist() if part == "train" else [index]
    scene = draw_scene(part, *key)
    return tensors.Image(torch.from_numpy(scene.image).permute(2, 0, 1).contiguous()), scene


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
        image, (_, labels, masks) = _drawn(file, source)
        crowds, areas, shown = [False] * len(labels), masks.sum((1, 2)), masks if self.masks else None
        return image, self.objects(image, source, tight_boxes(masks), labels, crowds, areas, shown)


class SceneMaps(_DigitScenes, PixelData):
    """The same scenes with a class for each pixel: the digit, or background."""

    def __init__(self, **common: Any) -> None:
        super().__init__(**common)
        self.classes = ["background", *DIGITS]

    def read(self, file: str, source: Any) -> tuple[torch.Tensor, torch.Tensor]:
        image, (_, labels, masks) = _drawn(file, source)
        classes = (masks * labels[:, None, None]).max(0)
        return image, tensors.Mask(torch.from_numpy(classes).to(torch.uint8))


def write_coco(folder: Path, train: int = 400, test: int = 150) -> None:
    """Writes scenes in COCO's layout: ``train2017``, ``val2017`` and ``annotations``."""
    import numpy as np
    import PIL.Image

    for part, name, count in (("train", "train2017", train), ("test", "val2017", test)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "annotations").mkdir(exist_ok=True)
        categories = [{"id": i + 1, "name": name} for i, name in enumerate(DIGITS)]
        content: dict[str, Any] = {"images": [], "annotations": [], "categories": categories}
        for index in range(count):
            scene, file = draw_scene(part, index), f"{index:06}.png"
            PIL.Image.fromarray(scene.image).save(folder / name / file)
            content["images"].append({"id": index, "file_name": file, "height": SIZE, "width": SIZE})
            for label, shape, box in zip(
                scene.labels.tolist(), scene.masks, tight_boxes(scene.masks), strict=True
            ):
                left, top, right, bottom = box.tolist()
                run_lengths = pycocotools.mask.encode(np.asfortranarray(shape.astype(np.uint8)))
                run_lengths["counts"] = run_lengths["counts"].decode()
                of = {
                    "id": len(content["annotations"]) + 1,
                    "image_id": index,
                    "category_id": label,
                    "iscrowd": 0,
                }
                of |= {"area": int(shape.sum()), "bbox": [left, top, right - left, bottom - top]}
                content["annotations"].append({**of, "segmentation": run_lengths})
        (folder / "annotations" / f"instances_{name}.json").write_text(json.dumps(content))
        print(f"{count} images in {folder / name}")


if __name__ == "__main__":
    write_coco(Path(sys.argv[1]))
