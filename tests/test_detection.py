"""Detectors: published sizes and costs, what differs from torchvision and what does not, official names."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from elementwise_costs import ElementwiseCosts
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

detection = pytest.importorskip("involution.detection", exc_type=ImportError)

import official_detectors  # noqa: E402
from detection_cases import KINDS, batch, tiny  # noqa: E402
from torchvision.models.detection import FasterRCNN as TorchvisionFasterRCNN  # noqa: E402
from torchvision.models.detection.anchor_utils import AnchorGenerator  # noqa: E402
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor  # noqa: E402
from torchvision.models.detection.image_list import ImageList  # noqa: E402
from torchvision.ops import MultiScaleRoIAlign  # noqa: E402

from involution.detection import (  # noqa: E402
    Anchors,
    FasterRCNN,
    InvolutionMaskHeads,
    RoIAlignPyramid,
    fasterrcnn_rednet_tiny_fpn,
    rednet_fpn_backbone,
    retinanet_rednet_tiny_fpn,
)
from involution.detection.heads import retina_head  # noqa: E402
from involution.models import (  # noqa: E402
    CheckpointError,
    RedNet,
    from_checkpoint,
    load_checkpoint,
    rednet_tiny,
    save_official,
)

C, I = "convolution", "involution"  # noqa: E741
# Li et al., CVPR 2021, tables 4 and 5, and what the official code has, whose stem's involution is 7x7. torchvision's
# classifier has boxes for the background, 4 * 1025 parameters, and a mask for it, 257.
# (kind, neck, head): parameters, of which train, published millions, the stem that GFLOPs are published for, GFLOPs
# by the same rule, GFLOPs published.
PUBLISHED = {
    ("fasterrcnn", C, C): (31_737_550, 31_598_464, 31.6, 3, 177.867, 177.9),
    ("fasterrcnn", I, C): (29_647_118, 29_508_032, 29.5, 7, 135.029, 135.0),
    ("fasterrcnn", I, I): (29_124_510, 28_985_424, 29.0, 7, 91.546, 91.5),
    ("maskrcnn", C, C): (34_380_830, 34_241_744, 34.2, 3, 224.149, 224.2),
    ("maskrcnn", I, C): (32_290_398, 32_151_312, 32.2, 7, 181.311, 181.3),
    ("maskrcnn", I, I): (29_677_358, 29_538_272, 29.5, 7, 104.615, 104.6),
    ("retinanet", C, C): (27_953_186, 27_814_100, 27.8, 3, 210.097, 210.1),
    ("retinanet", I, C): (26_385_362, 26_246_276, 26.3, 7, 199.899, 199.9),
}
BACKGROUND = {"fasterrcnn": 4100, "maskrcnn": 4100 + 257, "retinanet": 0}


# ---- sizes and costs ----


@pytest.mark.parametrize(("kind", "neck", "head"), PUBLISHED)
def test_parameters(kind, neck, head):
    """As many as published, and all have official names."""
    expected, trained, millions, *_ = PUBLISHED[kind, neck, head]
    with torch.device("meta"):
        build = getattr(detection, f"{kind}_rednet50_fpn")
        model = build(81, neck=neck, head=head, trainable_backbone_layers=3)
    assert isinstance(model, KINDS[kind])
    assert sum(p.numel() for p in model.parameters()) - BACKGROUND[kind] == expected
    counted = sum(p.numel() for p in model.parameters() if p.requires_grad) - BACKGROUND[kind]
    assert counted == trained
    assert abs(counted / 1e6 - millions) < 0.1  # published with one digit, some cut off and some rounded

    state = model.state_dict()
    official = model.official_names.to_official(state)
    parts = {"backbone", "neck", *(["bbox_head"] if kind == "retinanet" else ["rpn_head", "roi_head"])}
    assert len(official) == len(state) and {name.split(".")[0] for name in official} == parts
    again = model.official_names.from_official(official)
    assert {name: tensor.shape for name, tensor in again.items()} == {n: t.shape for n, t in state.items()}


@pytest.mark.parametrize(("kind", "neck", "head"), PUBLISHED)
def test_multiply_adds(kind, neck, head):
    """At 800x1280 with 1000 regions and 100 masks."""
    *_, stem, expected, published = PUBLISHED[kind, neck, head]
    retina = kind == "retinanet"
    with torch.device("meta"):
        levels = {"returned_layers": (2, 3, 4), "extra": "convolution"} if retina else {}
        backbone = rednet_fpn_backbone("rednet50", neck=neck, stem_kernel_size=stem, **levels)
        model = KINDS[kind](backbone, 81, head=head).eval()
        shapes = (1, 3, 800, 1280), (1000, 256, 7, 7), (100, 256, 14, 14)
        image, boxes, masks = (torch.empty(shape) for shape in shapes)
    with (
        torch.no_grad(),
        FlopCounterMode(display=False) as counter,
        ElementwiseCosts("clamp_min_", biased=("convolution", "addmm")) as others,
    ):
        levels = list(model.backbone(image).values())
        if retina:
            model.head(levels)
        else:
            model.rpn.head(levels)
            model.roi_heads.box_predictor(model.roi_heads.box_head(boxes))
        if kind == "maskrcnn":
            features = model.roi_heads.mask_head(masks)
            if head == I:  # the counter of the time did not know the classes of the other's last layers
                model.roi_heads.mask_predictor(features)
    counted = (counter.get_total_flops() / 2 + others.count) / 1e9
    assert counted == pytest.approx(expected, abs=0.05)
    assert abs(counted - published) < 0.1  # of one digit, some cut off and some rounded


@pytest.mark.parametrize("depth", [26, 38, 101, 152])
@pytest.mark.parametrize("kind", KINDS)
def test_every_depth(kind, depth):
    with torch.device("meta"):
        model = getattr(detection, f"{kind}_rednet{depth}_fpn")(3)
    assert sum(map(len, model.backbone.body.stages)) == (depth - 2) // 3


# ---- where torchvision differs ----


def test_anchors():
    """Fixed strides, and the formula's sizes, in mmdetection's order: ratio after ratio, scale after scale."""
    image = ImageList(torch.empty(1, 3, 800, 1344), [(800, 1333)])
    strides = (4, 8, 16, 32, 64)
    maps = [torch.empty(1, 1, math.ceil(800 / s), math.ceil(1344 / s), dtype=torch.bfloat16) for s in strides]
    found = Anchors(strides)(image, maps)[0]
    assert found.dtype == torch.float32 and len(found) == 3 * sum(m.shape[2] * m.shape[3] for m in maps)
    last = found[-3 * maps[-1].shape[2] * maps[-1].shape[3] :].reshape(*maps[-1].shape[2:], 3, 4)
    centres = (last[..., :2] + last[..., 2:]) / 2
    assert torch.equal(centres[5, 7], torch.tensor([[7 * 64.0, 5 * 64.0]] * 3))
    cell = found[:3]
    for row, ratio in zip(cell, (0.5, 1.0, 2.0), strict=True):
        width, height = 32 / math.sqrt(ratio), 32 * math.sqrt(ratio)
        torch.testing.assert_close(row, torch.tensor([-width, -height, width, height]) / 2)

    nine = retinanet_rednet_tiny_fpn(2).anchor_generator.cell_anchors[0]
    sizes = [(32 * 2 ** (step / 3), math.sqrt(ratio)) for ratio in (0.5, 1.0, 2.0) for step in range(3)]
    expected = [(size / root, size * root) for size, root in sizes]
    torch.testing.assert_close(nine[:, 2:] - nine[:, :2], torch.tensor(expected), atol=1e-4, rtol=0)


def test_regions_without_alignment_are_torchvision_s():
    torch.manual_seed(0)
    maps = {str(level): torch.randn(2, 8, 64 >> level, 96 >> level) for level in range(3)}
    corners = torch.rand(40, 2) * 200
    boxes = [torch.cat([corners, corners + 1 + 300 * torch.rand(40, 2)], 1), torch.zeros(0, 4)]
    ours = RoIAlignPyramid((4, 8, 16), 7, 2, aligned=False, canonical_scale=112)
    theirs = MultiScaleRoIAlign(["0", "1", "2"], 7, 2, canonical_scale=112)
    shapes = [(256, 384), (256, 384)]
    assert ours.levels(boxes[0]).unique().tolist() == [0, 1, 2]
    torch.testing.assert_close(ours(maps, boxes, shapes), theirs(maps, boxes, shapes))
    assert ours(maps, [boxes[1], boxes[1]], shapes).shape == (0, 8, 7, 7)
    aligned = RoIAlignPyramid((4, 8, 16), 7)
    constant = {name: torch.arange(float(m.shape[3])).expand_as(m) for name, m in maps.items()}
    # The mean over columns 2 to 9 of a map whose value is the column's number, whose centre is half a position on.
    inside = aligned(constant, [torch.tensor([[8.0, 8, 36, 36]]), boxes[1]], shapes)
    torch.testing.assert_close(inside.mean(), torch.tensor((8 + 36) / 2 / 4 - 0.5))


def test_equals_torchvision_s_own():
    """With convolutions, and torchvision's anchors and RoIAlign: the same losses and the same detections."""
    torch.manual_seed(0)
    body = {"blocks": (1, 1), "widths": (16, 32), "strides": (1, 2), "stem": "imagenet"}
    backbone = rednet_fpn_backbone("rednet_tiny", out_channels=16, returned_layers=(1, 2), **body)

    def parts() -> dict[str, Any]:
        anchors = AnchorGenerator(((16,), (32,), (64,)), ((0.5, 1.0, 2.0),) * 3)
        made = {"rpn_anchor_generator": anchors, "box_roi_pool": MultiScaleRoIAlign(["0", "1"], 7, 2)}
        return {**made, "min_size": 64, "box_score_thresh": 0.0}

    theirs = TorchvisionFasterRCNN(backbone, 5, **parts())
    ours = FasterRCNN(copy.deepcopy(backbone), 5, head=C, representation_size=1024, **parts())
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images, targets = batch()
    losses = []
    for model in (ours, theirs):
        torch.manual_seed(1)
        losses.append(model(images, targets))
    assert losses[0].keys() == losses[1].keys()
    assert all(torch.equal(losses[0][name], losses[1][name]) for name in losses[0])
    for one, other in zip(ours.eval()(images), theirs.eval()(images), strict=True):
        assert len(one["boxes"]) and all(torch.equal(one[name], other[name]) for name in other)


def test_extra_levels_have_no_activation():
    backbone = rednet_fpn_backbone(
        "rednet_tiny", stem="imagenet", returned_layers=(2, 3), extra="convolution"
    )
    x = torch.randn(1, 3, 65, 97)
    levels = backbone.eval()(x)
    p6, p7 = backbone.fpn.extra
    torch.testing.assert_close(levels["p7"], p7(p6(backbone.body(x)[-1])))
    assert list(levels) == ["0", "1", "p6", "p7"] and backbone.strides == [8, 16, 32, 64]
    assert [math.ceil(97 / stride) for stride in backbone.strides] == [m.shape[3] for m in levels.values()]


def test_layers_without_norm_keep_the_size():
    """Four in a row, where the layer's own initialisation, which expects a norm behind it, multiplies."""
    torch.manual_seed(0)
    x = torch.randn(4, 64, 28, 28)
    four = InvolutionMaskHeads(64)
    assert 0.3 < four(x).square().mean() < 3
    for layer in four:
        layer[0].reset_parameters()
    assert four(x).square().mean() > 9
    empty = InvolutionMaskHeads(64)(torch.zeros(0, 64, 14, 14, requires_grad=True))
    empty.sum().backward()
    assert empty.shape == (0, 64, 14, 14)


@pytest.mark.parametrize("kind", KINDS)
def test_steps(kind):
    """Losses of a network at its start are those of a guess, every parameter trains, an image may have no object."""
    model = tiny(kind)
    images, targets = batch()
    losses = model(images, targets)
    classifier = losses["classification" if kind == "retinanet" else "loss_classifier"]
    assert classifier < 1.2 * math.log(5) and all(loss < 2.5 for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    for result, image in zip(model.eval()(images), images, strict=True):
        assert result["boxes"].shape == (len(result["labels"]), 4)
        if kind == "maskrcnn":
            assert result["masks"].shape == (len(result["labels"]), 1, *image.shape[1:])


@pytest.mark.parametrize("channels", [64, 256])
@pytest.mark.parametrize("head", [C, I])
def test_the_towers_of_a_retinanet_pass_on_what_they_get(head, channels):
    torch.manual_seed(0)
    x = torch.randn(2, channels, 12, 12).relu()
    built = retina_head(channels, 9, 4, head)
    with torch.no_grad():
        for part in (built.classification_head, built.regression_head):
            assert 0.4 < part.conv(x).square().mean().sqrt() / x.square().mean().sqrt() < 2.5


def test_labels_of_a_retinanet_begin_at_one():
    model = tiny("retinanet", score_thresh=0.5)
    with torch.no_grad():
        model.head.classification_head.cls_logits.bias.view(9, 4)[:, 3] = 5
    assert model.eval()(batch()[0])[0]["labels"].unique().tolist() == [4]
    logits, boxes = (
        torch.tensor([[[-20.0, -20, -20, 20]]]),
        torch.tensor([[0.0, 0, 10, 10]]),
    )  # certain of class 4
    outputs = {"cls_logits": logits, "bbox_regression": torch.zeros(1, 1, 4)}
    targets = [[{"boxes": boxes, "labels": torch.tensor([label])}] for label in (4, 1)]
    right, wrong = (model.compute_loss(each, outputs, [boxes])["classification"] for each in targets)
    assert right < 1e-3 < 1 < wrong


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_under_autocast(kind):
    """float32, also where the predictor is the user's own."""
    model = tiny(kind, **({"score_thresh": 0.0} if kind == "retinanet" else {"box_score_thresh": 0.0})).eval()
    if kind != "retinanet":
        model.roi_heads.box_predictor = FastRCNNPredictor(256, 5)
    with torch.autocast("cpu", torch.bfloat16):
        result = model(batch()[0])[0]
    assert result["boxes"].dtype == torch.float32 and result["scores"].is_floating_point()
    fine = result["boxes"][(result["boxes"] > 1).all(1)]
    assert len(fine) and not torch.equal(fine, fine.bfloat16().float())


# ---- weights and what trains ----


def fixed_stages(body: nn.Module) -> set[str]:
    fixed = {".".join(name.split(".")[:2]) for name, p in body.named_parameters() if not p.requires_grad}
    return {name for name in fixed if not name.startswith("stem.")}


def test_frozen_layers(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "classifier.pth"
    save_official(rednet_tiny(blocks=(1, 2, 2), stem="imagenet"), path)
    model = fasterrcnn_rednet_tiny_fpn(3, weights_backbone=path)
    body = model.backbone.body
    assert body.stem.involution.kernel_size == (3, 3)  # as in the file
    assert fixed_stages(body) == {"stages.0"}  # two of three train by default
    norms = [module for module in body.stages[1:].modules() if isinstance(module, nn.BatchNorm2d)]
    model.train()
    assert not any(norm.training for norm in norms) and all(norm.weight.requires_grad for norm in norms)
    assert all(norm.training for norm in fasterrcnn_rednet_tiny_fpn(3).train().backbone.body.stages.modules())
    with torch.device("meta"):
        layers = detection.fasterrcnn_rednet50_fpn(3, trainable_backbone_layers=3).backbone.body
    assert fixed_stages(layers) == {"stages.0"}
    for wrong in (-1, 5):
        with pytest.raises(ValueError, match=f"trainable_layers must be from 0 to 4, .* not {wrong}"):
            fasterrcnn_rednet_tiny_fpn(3, trainable_backbone_layers=wrong)


TOLD_APART = [("fasterrcnn", C, C), ("fasterrcnn", I, I), ("maskrcnn", I, C), ("maskrcnn", C, I)]
TOLD_APART += [("retinanet", C, C), ("retinanet", I, C)]


@pytest.mark.parametrize(("kind", "neck", "head"), TOLD_APART)
def test_official_checkpoints(kind, neck, head, tmp_path):
    """Told by its names, built, loaded; the same features and outputs of all heads; and written back, the same file."""
    theirs = official_detectors.detector(kind, neck, head, classes=4)
    path = tmp_path / "official.pth"
    torch.save({"meta": {}, "state_dict": theirs.state_dict()}, path)
    ours = from_checkpoint(path, min_size=64).eval()
    assert type(ours) is KINDS[kind] and ours.transform.min_size == (64,)
    theirs, ours = theirs.double(), ours.double()  # for heads without norms multiply rounding errors
    shapes = (1, 3, 64, 96), (5, 32, 7, 7), (3, 32, 14, 14)
    x, boxes, masks = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    with torch.no_grad():
        levels = theirs(x)
        close = lambda one, other: torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)  # noqa: E731
        close(list(ours.backbone(x).values()), levels)
        if kind == "retinanet":
            maps = zip(
                *map(theirs.bbox_head, levels), strict=True
            )  # with four classes as many scores as codes
            flat = [torch.cat([x.permute(0, 2, 3, 1).reshape(1, -1, 4) for x in each], 1) for each in maps]
            found = ours.head(levels)
            close([found["cls_logits"], found["bbox_regression"]], flat)
        else:
            close(ours.rpn.head(levels), tuple(map(list, zip(*map(theirs.rpn_head, levels), strict=True))))
            scores, codes = ours.roi_heads.box_predictor(ours.roi_heads.box_head(boxes))
            expected, expected_codes = theirs.roi_head.bbox_head(boxes)
            close(scores, expected[:, [4, 0, 1, 2, 3]])
            close(codes[:, 4:], expected_codes)
            assert not codes[:, :4].any()
        if kind == "maskrcnn":
            logits = ours.roi_heads.mask_predictor(ours.roi_heads.mask_head(masks))
            close(logits[:, 1:], theirs.roi_head.mask_head(masks))
    back = tmp_path / "back.pth"
    save_official(ours.float(), back)
    state, again = theirs.float().state_dict(), torch.load(back, weights_only=True)["state_dict"]
    assert again.keys() == state.keys() and all(torch.equal(again[name], state[name]) for name in state)
    backbone = RedNet(official_detectors.BLOCKS, widths=official_detectors.WIDTHS, features_only=True)
    report = load_checkpoint(backbone, path)
    assert len(report.left_out) == sum(not name.startswith("backbone.") for name in state)

    before = copy.deepcopy(ours.state_dict())
    del state[next(name for name in state if name.startswith("neck."))]
    torch.save({"state_dict": {name: 2 * tensor for name, tensor in state.items()}}, path)
    with pytest.raises(CheckpointError, match=r"lacks backbone\.fpn\.lateral\.0\.weight"):
        load_checkpoint(ours, path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in ours.state_dict().items())


def test_what_has_no_official_name(tmp_path):
    with pytest.raises(ValueError, match=r"head\.classification_head\.conv\.0\.0\.reduce\.weight"):
        save_official(tiny("retinanet", head=I), tmp_path / "never.pth")
    assert not list(tmp_path.iterdir())
