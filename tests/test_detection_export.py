"""Whole detectors as files: the boxes of the model in Python at sizes that they were not exported with, or none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from exported_files import through_a_file
from torch import Tensor, nn

detection = pytest.importorskip("involution.detection", exc_type=ImportError)

from detection_cases import KINDS  # noqa: E402

from involution.detection import DeployableDetector, paste_masks  # noqa: E402

EACH_KIND = pytest.mark.parametrize("kind", KINDS)


def detector(kind: str) -> Any:
    """A network of three involutions or more whose random weights find a few dozen objects in noise."""
    torch.manual_seed(0)
    retina = kind == "retinanet"
    backbone = detection.rednet_fpn_backbone(
        "rednet_tiny",
        out_channels=16,
        returned_layers=(2,) if retina else (1, 2),
        extra="convolution" if retina else "pool",
        blocks=(1, 1),
        widths=(16, 16),
        strides=(1, 2),
        stem="imagenet",
        neck="convolution" if retina else "involution",
    )
    threshold = {"fasterrcnn": 0.6, "maskrcnn": 0.45, "retinanet": 0.17}[kind]
    settings = {"min_size": 64, "max_size": 1000, "anchor_scale": 4.0}
    settings |= {"score_thresh" if retina else "box_score_thresh": threshold}
    model = KINDS[kind](backbone, 4, **settings, **({} if retina else {"representation_size": 32}))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the first batch's statistics
    target = {"boxes": torch.tensor([[8.0, 8, 40, 40]]), "labels": torch.tensor([1])}
    target["masks"] = torch.ones(1, 64, 96, dtype=torch.uint8)
    with torch.no_grad():
        model([torch.rand(3, 64, 96)] * 2, [target] * 2)
        if retina:
            torch.manual_seed(3)  # whatever the start of the head has drawn
            for module in model.head.modules():
                if isinstance(module, nn.Conv2d):
                    module.weight.normal_(std=0.11)
        else:
            model.roi_heads.box_predictor.cls_score.weight.normal_(std=0.5)
            model.roi_heads.box_predictor.bbox_pred.weight.normal_(std=0.5)
        if (
            kind == "maskrcnn"
        ):  # four involutions raise numbers to a high power, and with them rounding errors
            for layer in model.roi_heads.mask_head:
                layer[0].span.weight *= 0.4
            model.roi_heads.mask_predictor.mask_fcn_logits.weight.normal_(std=1)
    return model.eval()


def same(one: tuple[Tensor, ...], other: tuple[Tensor, ...], tolerance: float) -> int:
    """Compares boxes, scores, labels and perhaps masks; how many there are.

    A mask is sampled where its box is: a box that is off by a pixel's fiftieth moves what is read by that much.
    """
    assert [each.shape for each in one] == [each.shape for each in other]
    torch.testing.assert_close(one[0], other[0], atol=tolerance, rtol=0)
    for index, (first, second) in enumerate(zip(one[1:], other[1:], strict=True)):
        of_masks = max(1e-4, 0.02 * tolerance)
        torch.testing.assert_close(first, second, atol=of_masks if index == 2 else 1e-4, rtol=0)
    return len(one[0])


@EACH_KIND
def test_equals_the_detector(kind):
    """Where this does not resize; and after :meth:`resize` where it does."""
    model = detector(kind)
    deployable, found = DeployableDetector(model), 0
    with torch.no_grad():
        for size in ((64, 96), (64, 64), (97, 64)):
            image = torch.rand(3, *size)
            expected = model([image])[0]
            boxes, *others = deployable(image[None])
            if kind == "maskrcnn":
                others[-1] = paste_masks(others[-1], boxes, *size)
            found += same((boxes, *others), tuple(expected[name] for name in deployable.export_outputs), 1e-4)
        assert found > 10
        image = torch.rand(3, 40, 70)
        resized = deployable.resize(image)
        assert resized.shape == (1, 3, 64, 112)
        boxes = deployable(resized)[0] * torch.tensor([70 / 112, 40 / 64] * 2)
        torch.testing.assert_close(boxes, model([image])[0]["boxes"], atol=1e-4, rtol=1e-4)


# What a Faster R-CNN computes, a Mask R-CNN computes in front of its masks. Inductor takes a minute for it.
@pytest.mark.parametrize(
    ("kind", "format"),
    [(kind, format) for kind in ("maskrcnn", "retinanet") for format in ("pt2", "onnx")]
    + [("maskrcnn", "aoti")],
)
def test_files(kind, format, tmp_path: Path):
    deployable = DeployableDetector(detector(kind))
    run = through_a_file(deployable, torch.rand(1, 3, 64, 96), tmp_path, format)
    found = []
    torch.manual_seed(1)
    with torch.no_grad():
        for size in ((64, 96), (128, 65), (70, 201), (9, 5)):
            image = torch.rand(1, 3, *size)
            found.append(same(run(image), deployable(image), 0.05))
    assert sorted(found)[0] == 0 < sorted(found)[1]  # nothing in one of the images, something in the others
