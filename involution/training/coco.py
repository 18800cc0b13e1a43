"""COCO's scores of detections, by pycocotools."""

import contextlib
import io
from typing import Any

import torch

from .libraries import pycocotools


def recorded(objects: dict[str, Any], image: torch.Tensor, image_id: int) -> dict[str, Any]:
    """The objects of an image, truth or detections, on the CPU, with masks as run lengths, which are small."""
    import numpy as np

    height, width = image.shape[-2:]
    kept = {k: v.cpu() for k, v in objects.items() if torch.is_tensor(v) and k != "masks"}
    if "masks" in objects:  # (N, H, W) or, of a detector, probabilities (N, 1, H, W)
        shapes = objects["masks"].reshape(-1, height, width).gt(0.5).to(torch.uint8).permute(1, 2, 0)
        kept["masks"] = pycocotools.mask.encode(np.asfortranarray(shapes.cpu().numpy()))
    return {**kept, "image_id": image_id, "height": height, "width": width}


def annotations(
    images: list[dict[str, Any]], category_ids: list[int], kind: str = "bbox"
) -> list[dict[str, Any]]:
    """What :func:`recorded` returned, object by object, as COCO's annotation and result files have it.

    What has no area of its own, as detections, gets its box's or, of the kind ``"segm"``, its mask's.
    """
    result: list[dict[str, Any]] = []
    for image in images:
        for index, (left, top, right, bottom) in enumerate(image["boxes"].double().tolist()):
            box = [left, top, right - left, bottom - top]
            each = {"id": len(result) + 1, "image_id": image["image_id"], "bbox": box}
            each |= {"category_id": category_ids[int(image["labels"][index]) - 1]}
            each |= {"iscrowd": int("iscrowd" in image and image["iscrowd"][index])}
            each["area"] = box[2] * box[3]
            if "scores" in image:
                each["score"] = float(image["scores"][index])
            if "masks" in image:
                run_lengths = image["masks"][index]
                each["segmentation"] = {**run_lengths, "counts": run_lengths["counts"].decode()}
                if kind == "segm":
                    each["area"] = float(pycocotools.mask.area(run_lengths))
            if "area" in image:
                each["area"] = float(image["area"][index])
            result.append(each)
    return result


def coco_file(images: list[dict[str, Any]], category_ids: list[int], kind: str = "bbox") -> dict[str, Any]:
    """The content of an annotation file, but for the names of images and categories."""
    sizes = [{"id": each["image_id"], "height": each["height"], "width": each["width"]} for each in images]
    named = [{"id": number} for number in category_ids]
    return {"images": sizes, "categories": named, "annotations": annotations(images, category_ids, kind)}


def indexed(content: dict[str, Any]) -> Any:
    """The content of an annotation file as pycocotools has it, which is not printed."""
    from pycocotools.coco import COCO

    result = COCO()
    result.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        result.createIndex()
    return result


def coco_scores(
    truth: list[dict[str, Any]], found: list[dict[str, Any]], category_ids: list[int], kind: str = "bbox"
) -> tuple[list[float], Any, str]:
    """Compares detections with the truth.

    Args:
        truth: what is in each image, from :func:`recorded`.
        found: detections of the same images.
        category_ids: the ids of the labels from 1 on.
        kind: ``"bbox"`` or ``"segm"``.

    Returns:
        COCO's twelve numbers, NaN where there is no truth to find; average precision ``(classes,)``, likewise; and
        COCO's table of the numbers.
    """
    import numpy as np
    from pycocotools.cocoeval import COCOeval

    table = io.StringIO()
    sets = [indexed(coco_file(images, category_ids, kind)) for images in (truth, found)]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(*sets, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        with contextlib.redirect_stdout(table):
            evaluation.summarize()
    numbers = [float(number) if number > -1 else float("nan") for number in evaluation.stats]
    precision = evaluation.eval["precision"][..., 0, -1]  # thresholds, recalls, classes
    missing = (precision == -1).all((0, 1))
    return numbers, np.where(missing, np.nan, precision.mean((0, 1))), table.getvalue().rstrip()
