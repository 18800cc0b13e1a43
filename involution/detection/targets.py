"""What a detector is given to train on, checked: torchvision trains on most mistakes without a word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["check_images", "check_targets"]

_ROOM = 1.0  # pixels that a box may reach over the image's border: annotations are rounded


def check_images(
    images: Sequence[Tensor], channels: int | None = None, names: Sequence[str] | None = None
) -> None:
    """Raises where images are not what a detector takes: ``(channels, H, W)``, from 0 to 1.

    Args:
        images (sequence of Tensor): The images; those of integers are left to the detector, which refuses them.
        channels (int, optional): How many the detector takes; None for any number.
        names (sequence of str, optional): What the images are called in messages; by default ``image 0``, ``image 1``,
            ...

    Raises:
        ValueError: there are no images, or one has another shape, or values that are not finite or far from 0..1.
    """
    if len(images) == 0:
        raise ValueError("There are no images: the list is empty.")
    for number, image in enumerate(images):
        name = _name(names, number)
        if image.dim() != 3 or 0 in image.shape:
            raise ValueError(
                f"{name} must be (channels, height, width), but its shape is {tuple(image.shape)}."
            )
        if channels is not None and image.shape[0] != channels:
            grey = " Repeat the channel of a grey image." if image.shape[0] == 1 else ""
            raise ValueError(
                f"{name} has {image.shape[0]} channels, but the detector takes {channels}.{grey}"
            )
        if image.is_floating_point():
            least, most = torch.stack(torch.aminmax(image.detach())).tolist()
            if not (least >= -0.5 and most <= 1.5):  # false for NaN, too
                hint = " Divide by 255." if least >= 0 and 2 < most <= 255 else ""
                raise ValueError(
                    f"{name} must have values from 0 to 1, without normalisation, which the detector does itself, but "
                    f"they are from {least:g} to {most:g}.{hint}"
                )


def check_targets(
    images: Sequence[Tensor],
    targets: Sequence[Mapping[str, Any]] | None,
    num_classes: int | None = None,
    *,
    channels: int | None = None,
    masks: bool = False,
    names: Sequence[str] | None = None,
) -> None:
    """Raises where images and targets are not what a detector trains on, and names the image and the object.

    The detectors of this package call it in training. Call it for each item of a data set to learn of a mistake before.

    Args:
        images (sequence of Tensor): As for :func:`check_images`.
        targets (sequence, optional): For each image ``boxes (N, 4)`` as ``(x1, y1, x2, y2)`` in pixels, float, and
            ``labels (N,)``, int64, from 1; perhaps ``masks (N, H, W)``. ``N`` may be 0.
        num_classes (int, optional): With the background, which is 0, so that labels are below it; None for any.
        channels (int, optional): As for :func:`check_images`.
        masks (bool): Whether there must be masks. Default: False
        names (sequence of str, optional): As for :func:`check_images`.

    Raises:
        ValueError: something is missing, of another shape or number, not finite, or out of range.
        TypeError: something is not a tensor, or boxes or labels are of another kind of number.
    """
    check_images(images, channels, names)
    if targets is None or len(targets) != len(images):
        count = "none" if targets is None else len(targets)
        raise ValueError(
            f"There must be a target for each of the {len(images)} images, but there are {count}."
        )
    for number, (image, target) in enumerate(zip(images, targets, strict=True)):
        name, (height, width) = _name(names, number), image.shape[1:]
        for key in ("boxes", "labels", *(["masks"] if masks else [])):
            if not isinstance(target.get(key), Tensor):
                raise (TypeError if key in target else ValueError)(
                    f"The target of {name} must have a tensor {key!r}, but has {sorted(target)}."
                )
        boxes = target["boxes"].detach().cpu()
        _check_boxes(boxes, height, width, name)
        _check_labels(target["labels"].cpu(), len(boxes), num_classes, name)
        if "masks" in target and target["masks"].shape != (len(boxes), height, width):
            raise ValueError(
                f"The masks of {name} must be ({len(boxes)}, {height}, {width}), one for each box and of the image's "
                f"size, but their shape is {tuple(target['masks'].shape)}."
            )


def _check_boxes(boxes: Tensor, height: int, width: int, name: str) -> None:
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ValueError(f"The boxes of {name} must be (N, 4), but their shape is {tuple(boxes.shape)}.")
    if not boxes.is_floating_point():
        raise TypeError(f"The boxes of {name} must be of a floating type, not {boxes.dtype}.")
    if len(boxes) and boxes.max() <= 1 and min(height, width) > 2:
        raise ValueError(
            f"All boxes of {name} lie within 0..1, such as {boxes[0].tolist()}, in an image of {height}x{width} "
            "pixels. Are they normalised? They must be in pixels."
        )
    first, last = boxes[:, :2], boxes[:, 2:]
    out = (first < -_ROOM) | (last > torch.tensor([width, height]) + _ROOM)
    for wrong, what in (
        (~boxes.isfinite(), "is not finite."),
        (last <= first, "has no area. Boxes are (x1, y1, x2, y2); are these (x, y, width, height)?"),
        (out, f"reaches out of the image of {height}x{width} pixels. Boxes are (x1, y1, x2, y2), in pixels."),
    ):
        if wrong.any():
            index = int(wrong.any(1).nonzero()[0])
            raise ValueError(f"Box {index} of {name}, {boxes[index].tolist()}, {what}")


def _check_labels(labels: Tensor, boxes: int, num_classes: int | None, name: str) -> None:
    if labels.shape != (boxes,):
        raise ValueError(
            f"{name} has {boxes} boxes, so that its labels must be ({boxes},), but their shape is "
            f"{tuple(labels.shape)}."
        )
    if labels.dtype != torch.int64:
        raise TypeError(f"The labels of {name} must be int64, not {labels.dtype}.")
    most = torch.iinfo(torch.int64).max if num_classes is None else num_classes - 1
    wrong = (labels < 1) | (labels > most)
    if wrong.any():
        index = int(wrong.nonzero()[0])
        raise ValueError(
            f"The label of object {index} of {name} is {int(labels[index])}, but labels are from 1"
            f"{'' if num_classes is None else f' to {most}'}; 0 is the background."
        )


def _name(names: Sequence[str] | None, number: int) -> str:
    return f"image {number}" if names is None else str(names[number])
