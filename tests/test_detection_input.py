"""Detectors refuse what torchvision would train on in silence, by image and object."""

from __future__ import annotations

import math

import pytest
import torch

detection = pytest.importorskip("involution.detection", exc_type=ImportError)

from detection_cases import KINDS, batch, tiny  # noqa: E402
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor  # noqa: E402

from involution.detection import InvolutionRPNHead, check_targets  # noqa: E402
from involution.models import rednet_tiny  # noqa: E402

GOOD = {"boxes": torch.tensor([[4.0, 5, 20, 30], [1, 1, 9, 9]]), "labels": torch.tensor([1, 4])}
OUT = r"image 1, \[.*\], reaches out of the image of 32x48"


def first(*box: float) -> torch.Tensor:
    """Boxes of which the first is given."""
    return torch.tensor([box, (1, 1, 9, 9)])


# What is in the place of a good target's boxes, labels or masks, and what is said of it.
BAD = [
    (
        "labels",
        torch.tensor([1, 0]),
        ValueError,
        "object 1 of image 1 is 0, but labels are from 1 to 4; 0 is",
    ),
    ("labels", torch.tensor([5, 1]), ValueError, "object 0 of image 1 is 5, but labels are from 1 to 4"),
    ("labels", torch.tensor([1, 2, 3]), ValueError, r"image 1 has 2 boxes, .* but their shape is \(3,\)"),
    ("labels", torch.tensor([1, 2]).int(), TypeError, "labels of image 1 must be int64"),
    ("boxes", first(4.0, 5, 99, 30), ValueError, f"Box 0 of {OUT}"),
    ("boxes", first(-9.0, 5, 20, 30), ValueError, f"Box 0 of {OUT}"),
    ("boxes", GOOD["boxes"] + torch.tensor([[0], [90]]), ValueError, f"Box 1 of {OUT}"),
    (
        "boxes",
        torch.tensor([[0.1, 0.1, 0.5, 0.9], [0, 0, 1, 1]]),
        ValueError,
        "boxes of image 1 .*normalised",
    ),
    ("boxes", first(20.0, 10, 8, 30), ValueError, "Box 0 of image 1.*no area.*width, height"),
    ("boxes", first(4.0, 5, math.nan, 30), ValueError, "Box 0 of image 1.* is not finite"),
    ("boxes", first(4, 5, 20, 30), TypeError, "boxes of image 1 must be of a floating type"),
    (
        "boxes",
        torch.zeros(2, 5),
        ValueError,
        r"boxes of image 1 must be \(N, 4\), but their shape is \(2, 5\)",
    ),
    ("boxes", None, TypeError, "target of image 1 must have a tensor 'boxes'"),
    ("masks", torch.zeros(2, 32, 47), ValueError, r"masks of image 1 must be \(2, 32, 48\), .*\(2, 32, 47\)"),
]


@pytest.mark.parametrize(("key", "value", "error", "message"), BAD)
def test_bad_targets(key, value, error, message):
    images = [torch.rand(3, 32, 48), torch.rand(3, 32, 48)]
    for names in (None, ["a.png", "street.png"]):
        with pytest.raises(error, match=message.replace("image 1", "street.png", 1) if names else message):
            check_targets(images, [GOOD, {**GOOD, key: value}], 5, names=names)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.rand(3, 32, 48) * 255, "must have values from 0 to 1.* Divide by 255"),
        (torch.randn(3, 32, 48) * 2, "must have values from 0 to 1, without normalisation"),
        (torch.full((3, 32, 48), math.nan), "must have values from 0 to 1.* from nan to nan"),
        (torch.rand(1, 32, 48), "has 1 channels, but the detector takes 3.* grey"),
        (torch.rand(32, 48), r"must be \(channels, height, width\), but its shape is \(32, 48\)"),
        (torch.rand(3, 0, 48), "must be"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_bad_images(kind, image, message):
    target = {**GOOD, "masks": torch.ones(2, 32, 48, dtype=torch.uint8)}
    with pytest.raises(ValueError, match=f"image 1 {message}"):
        tiny(kind)([torch.rand(3, 32, 48), image], [target, target])


def test_detectors_check_what_they_are_given():
    images, targets = batch()
    model = tiny("maskrcnn")
    with pytest.raises(ValueError, match="There are no images"):
        model.eval()([])
    model.train()
    with pytest.raises(ValueError, match="a target for each of the 2 images, but there are 1"):
        model(images, targets[:1])
    with pytest.raises(ValueError, match="a target for each of the 2 images, but there are none"):
        model(images)
    with pytest.raises(ValueError, match="target of image 1 must have a tensor 'masks'"):
        model(images, [targets[0], {key: targets[1][key] for key in ("boxes", "labels")}])
    high = [{**targets[0], "labels": torch.tensor([1, 6])}, targets[1]]
    with pytest.raises(ValueError, match="object 1 of image 0 is 6, but labels are from 1 to 4"):
        model(images, high)
    model.roi_heads.box_predictor = FastRCNNPredictor(256, 3)  # whose number of classes counts
    with pytest.raises(ValueError, match="labels are from 1 to 2"):
        model(images, targets)
    model.checks = False
    assert "loss_classifier" in tiny()(images, targets)


@pytest.mark.parametrize("argument", ["neck", "head"])
def test_bad_arguments(argument):
    said = f'{argument} must be "convolution" or "involution", not \'conv\''
    for kind in KINDS:
        with pytest.raises(ValueError, match=said):
            tiny(kind, **{argument: "conv"})
        with pytest.raises(ValueError, match="num_classes must be at least 2"):
            tiny(kind, classes=1)
    with pytest.raises(ValueError, match="features_only=True"):
        detection.RedNetFPN(rednet_tiny())
    assert InvolutionRPNHead(16, 3)([torch.zeros(1, 16, 5, 1)])[1][0].shape == (1, 12, 5, 1)
