"""Data for detectors: images with the boxes, labels and masks of the objects in them, from COCO's or VOC's files."""

import json
import math
import warnings
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

from ..detection import check_targets
from .coco import indexed
from .data import PHOTOGRAPHS, ImageData, v2
from .images import BadImageError, DataError, read_image
from .libraries import torchvision

tensors = torchvision.tv_tensors
# The order of the official classes, as of torchvision's weights.
VOC = "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant"
VOC += " sheep sofa train tvmonitor"


class ObjectData(ImageData):
    """Images to find objects in. They keep their sizes, and values from 0 to 1, because detectors normalise themselves.

    A kind of data has ``samples``, pairs of an image file and what :meth:`target` makes the image's target of.

    Args:
        masks: whether to read the objects' masks, for a Mask R-CNN.
        mirror: mirror half of the training images.
        crop: change colours and crop training images, as for SSD (Liu et al., ECCV 2016).
    """

    in_memory = False
    channels = 3
    size: tuple[int, ...] = ()
    mean, std = PHOTOGRAPHS[3]
    category_ids: list[int]  # of the classes, in result files

    def __init__(self, masks: bool = False, mirror: bool = True, crop: bool = False, **common: Any) -> None:
        super().__init__(**common)
        self.masks = masks
        cropped = [v2.RandomPhotometricDistort(), v2.RandomIoUCrop()] if crop else []
        mirrored = v2.RandomHorizontalFlip(0.5 if mirror else 0.0)
        sanitized = v2.SanitizeBoundingBoxes(labels_getter=_for_each_object)
        train = [self.read, _without_crowds, *cropped, mirrored, sanitized]
        self.changes = {"train": train, "test": [self.read]}

    def finish(self) -> list[Any]:
        return [v2.ToDtype(torch.float32, scale=True), v2.ToPureTensor()]

    @property
    def description(self) -> dict[str, Any]:
        return {**super().description, "category_ids": self.category_ids}

    @staticmethod
    def collate(pairs: list[Any]) -> tuple[list[Any], list[Any]]:
        """Lists, because images have different sizes."""
        images, targets = zip(*pairs, strict=True)
        return list(images), list(targets)

    def target(self, image: torch.Tensor, source: Any) -> dict[str, Any]:
        """What is in an image ``(3, H, W)``, as :meth:`objects` returns it."""
        raise NotImplementedError

    def read(self, file: str, source: Any) -> tuple[torch.Tensor, dict[str, Any]]:
        """The image of a file and its target, checked."""
        image = tensors.Image(read_image(file))
        target = self.target(image, source)
        try:
            check_targets([image], [target], len(self.classes) + 1, masks=self.masks, names=[file])
        except (TypeError, ValueError) as error:
            raise BadImageError(str(error)) from error
        return image, target

    @staticmethod
    def objects(
        image: torch.Tensor,
        image_id: int,
        boxes: Any,
        labels: Any,
        crowds: Any = None,
        areas: Any = None,
        masks: Any = None,
    ) -> dict[str, Any]:
        """A target of N objects: ``boxes (N, 4)`` in pixels, ``labels (N,)`` from 1, N masks ``(H, W)``.

        What is marked in ``crowds (N,)`` is not trained on, and in tests neither a miss nor, where it is found, a
        mistake. ``areas (N,)`` say how large an object is, for COCO's scores by size; by default as its box.
        """
        size = tuple(image.shape[-2:])
        boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        crowds = [False] * len(boxes) if crowds is None else crowds
        areas = torchvision.ops.box_area(boxes) if areas is None else areas
        target = {
            "image_id": image_id,
            "boxes": tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
            "labels": torch.as_tensor(labels, dtype=torch.int64),
            "iscrowd": torch.as_tensor(crowds, dtype=torch.bool),
            "area": torch.as_tensor(areas, dtype=torch.float32),
        }
        if masks is not None:
            drawn = torch.stack([*map(torch.as_tensor, masks)]) if len(boxes) else torch.zeros(0, *size)
            target["masks"] = tensors.Mask(drawn.to(torch.uint8))
        return target


def _for_each_object(inputs: Any) -> tuple[torch.Tensor, ...]:
    return tuple(inputs[1][name] for name in ("labels", "iscrowd", "area"))


def _without_crowds(image: torch.Tensor, target: dict[str, Any]) -> tuple[torch.Tensor, dict[str, Any]]:
    one = ~target["iscrowd"]
    kept = {k: tensors.wrap(v[one], like=v) if torch.is_tensor(v) else v for k, v in target.items()}
    return image, kept


class Coco(ObjectData):
    """COCO's layout: folders of images, and a JSON file for each.

    Classes are the categories by rising id. Crowds are kept for tests alone; boxes without an area are left out.

    Args:
        path: the folder of everything.
        train: the folder of training images in it.
        val: that of test images.
        annotations: their files, with ``{}`` for the name of the images' folder.
    """

    def __init__(
        self,
        path: str,
        train: str = "train2017",
        val: str = "val2017",
        annotations: str = "annotations/instances_{}.json",
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.folders = {"train": Path(path, train), "test": Path(path, val)}
        self.files = {
            part: Path(path, annotations.format(name)) for part, name in (("train", train), ("test", val))
        }
        names = {each["id"]: each["name"] for each in read_coco(self.files["test"])["categories"]}
        self.category_ids = sorted(names)
        self.classes = [names[number] for number in self.category_ids]

    def samples(self, part: str) -> Any:
        content, known = read_coco(self.files[part]), set(self.category_ids)
        if unknown := {each["id"] for each in content["categories"]} ^ known:
            files = " and ".join(map(str, self.files.values()))
            raise DataError(f"The categories {sorted(unknown)} are in one of {files} alone.")
        folder, index = self.folders[part], indexed(content)
        return [(str(folder / each["file_name"]), (each["id"], index)) for each in content["images"]]

    def target(self, image: torch.Tensor, source: Any) -> dict[str, Any]:
        image_id, index = source
        found = index.imgToAnns[image_id]
        boxes = [[x, y, x + width, y + height] for x, y, width, height in (each["bbox"] for each in found)]
        labels = [self.category_ids.index(each["category_id"]) + 1 for each in found]
        crowds = [bool(each.get("iscrowd")) for each in found]
        areas = [each.get("area", math.prod(each["bbox"][2:])) for each in found]
        masks = [_mask(index, each) for each in found] if self.masks else None
        return self.objects(image, image_id, boxes, labels, crowds, areas, masks)


def _mask(index: Any, annotation: dict[str, Any]) -> torch.Tensor:
    """The mask ``(H, W)`` uint8 of an annotation, of polygons or run lengths."""
    try:
        return torch.from_numpy(index.annToMask(annotation))
    except Exception as error:  # pycocotools raises all kinds
        raise BadImageError(
            f"Annotation {annotation['id']} has no mask that can be read: {error!r}"
        ) from error


def read_coco(file: Path) -> dict[str, Any]:
    """The content of an annotation file.

    Raises:
        DataError: it is not one, or contradicts itself; the message names what is wrong by its id.
    """
    try:
        content = json.loads(file.read_bytes())
        known = {}
        for kind in ("images", "categories", "annotations"):
            known[kind] = {each["id"]: each for each in content[kind]}
            if len(known[kind]) < len(content[kind]):
                [(twice, _)] = Counter(each["id"] for each in content[kind]).most_common(1)
                raise DataError(f"{file} has two {kind} of the id {twice}.")
        for number, each in known["annotations"].items():
            if problem := _problem(each, known["images"], known["categories"]):
                raise DataError(f"{file}: annotation {number} {problem}.")
        empty = {number for number, each in known["annotations"].items() if min(each["bbox"][2:]) <= 0}
    except DataError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file} is not a file of COCO's annotations: {type(error).__name__}: {error}"
        ) from error
    if empty:
        warnings.warn(f"{file}: {len(empty)} boxes without an area left out; one: {min(empty)}", stacklevel=2)
    content["annotations"] = [each for each in content["annotations"] if each["id"] not in empty]
    return content


def _problem(annotation: dict[str, Any], images: dict[int, Any], categories: dict[int, Any]) -> str:
    """What is wrong with an annotation, or nothing."""
    box, shape = annotation["bbox"], annotation.get("segmentation")
    if annotation["category_id"] not in categories:
        return f"has the category {annotation['category_id']}, which there is not"
    if annotation["image_id"] not in images:
        return f"is of the image {annotation['image_id']}, which there is not"
    if len(box) != 4 or not all(map(math.isfinite, box)):
        return f"has the box {box}, not four numbers"
    if isinstance(shape, list) and any(len(polygon) < 6 or len(polygon) % 2 for polygon in shape):
        return "has a polygon of fewer than three points, or of half a point"
    image = images[annotation["image_id"]]
    if isinstance(shape, dict) and [*shape["size"]] != [image["height"], image["width"]]:
        return f"has a mask of {shape['size']}, but its image is {[image['height'], image['width']]}"
    return ""


class Voc(ObjectData):
    """PASCAL VOC: ``VOCdevkit/VOC2012`` with ``JPEGImages``, ``Annotations`` and ``ImageSets/Main``; no masks.

    Objects marked as difficult are not trained on, and in tests neither a miss nor a mistake.

    Args:
        path: the folder that ``VOCdevkit`` is in.
        year: year of the challenge, from 2007 to 2012.
        train: the list of training images.
        val: that of test images.
    """

    def __init__(
        self, path: str, year: str = "2012", train: str = "train", val: str = "val", **common: Any
    ) -> None:
        super().__init__(**common)
        self.path, self.year, self.lists = path, year, {"train": train, "test": val}
        self.classes, self.category_ids = VOC.split(), list(range(1, 21))

    def samples(self, part: str) -> Any:
        try:
            files = torchvision.datasets.VOCDetection(self.path, self.year, self.lists[part])
        except (OSError, RuntimeError, ValueError) as error:
            raise DataError(f"VOC{self.year} is not in {self.path!r}: {error}") from error
        return list(zip(files.images, enumerate(files.targets), strict=True))

    def target(self, image: torch.Tensor, source: Any) -> dict[str, Any]:
        image_id, file = source
        boxes: list[list[float]] = []
        labels, crowds = [], []
        try:
            for each in ElementTree.parse(file).iter("object"):
                ends = [float(each.findtext(f"bndbox/{end}", "")) for end in ("xmin", "ymin", "xmax", "ymax")]
                labels.append(self.classes.index(each.findtext("name", "")) + 1)
                crowds.append(each.findtext("difficult") == "1")
                boxes.append([ends[0] - 1, ends[1] - 1, *ends[2:]])  # from 1, the last pixel included
        except (OSError, ValueError, ElementTree.ParseError) as error:
            raise BadImageError(f"{file}, object {len(boxes) + 1}: {error}") from error
        return self.objects(image, image_id, boxes, labels, crowds)
