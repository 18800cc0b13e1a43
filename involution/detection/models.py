"""Faster R-CNN, Mask R-CNN and RetinaNet with RedNet: torchvision's detectors, with the official networks' parts."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.models import detection as torchvision_detection
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
from torchvision.models.detection.rpn import RPNHead

from ..layers._shared import check_count
from .backbone import RedNetFPN, rednet_fpn_backbone
from .heads import (
    Anchors,
    Float32BoxCoder,
    InvolutionMaskHeads,
    InvolutionRPNHead,
    RoIAlignPyramid,
    box_predictor,
    in_float32,
    mask_predictor,
    retina_head,
)
from .official import NAMES
from .targets import check_images, check_targets

__all__ = ["FasterRCNN", "MaskRCNN", "RetinaNet"]

Targets = Sequence[dict[str, Tensor]]


class _Detector(nn.Module):
    """What our detectors have beside torchvision's.

    Attributes:
        checks: whether :func:`check_targets` runs in training. A GPU waits for it, as for torchvision's own check.
    """

    checks = True
    official_names = NAMES
    # torchvision's parts, whose types it does not tell
    transform: Any
    backbone: Any
    rpn: Any
    roi_heads: Any
    head: Any
    box_coder: Any
    # with the background; None if a predictor of the user's does not tell
    _num_classes: Callable[[], int | None]

    def forward(self, images: Sequence[Tensor], targets: Targets | None = None) -> Any:
        """As torchvision's: the losses in training, otherwise boxes, labels and scores of each image."""
        if self.training and self.checks:
            has_masks = getattr(getattr(self, "roi_heads", None), "mask_predictor", None) is not None
            check_targets(
                images, targets, self._num_classes(), channels=len(self.transform.image_mean), masks=has_masks
            )
        elif len(images) == 0:
            check_images(images)
        return super().forward(images, targets)


class FasterRCNN(_Detector, torchvision_detection.FasterRCNN):
    """torchvision's Faster R-CNN around a RedNet, with the official anchors, RoIAlign and, if chosen, involution head.

    Args:
        backbone (RedNetFPN): What :func:`rednet_fpn_backbone` returns.
        num_classes (int, optional): With the background, which is class 0; None where a ``box_predictor`` is given.
        head (str): ``"convolution"`` or ``"involution"``: the 3x3 layer of the region proposal network. Default:
            ``"involution"``
        anchor_scale (float): An anchor's side is this times its level's stride. Default: 8.0
        representation_size (int): Features of a region. Default: 1024
        **arguments: torchvision's, such as ``min_size`` or ``box_score_thresh``. The defaults are torchvision's; the
            official recipe has ``rpn_post_nms_top_n_train=1000``.

    Raises:
        ValueError: ``head`` is unknown, or an argument is out of range.
    """

    def __init__(
        self,
        backbone: RedNetFPN,
        num_classes: int | None = None,
        *,
        head: str = "involution",
        anchor_scale: float = 8.0,
        representation_size: int = 1024,
        **arguments: Any,
    ) -> None:
        channels = backbone.out_channels
        anchors = arguments.get("rpn_anchor_generator") or Anchors(backbone.strides, (anchor_scale,))
        pool = arguments.get("box_roi_pool") or RoIAlignPyramid(_pooled(backbone), 7)
        make_head = InvolutionRPNHead if _kind(head) == "involution" else RPNHead
        parts = {
            "rpn_anchor_generator": anchors,
            "rpn_head": in_float32(make_head(channels, anchors.num_anchors_per_location()[0])),
            "box_roi_pool": pool,
            "box_head": TwoMLPHead(channels * pool.output_size[0] ** 2, representation_size),
        }
        if num_classes is not None:
            num_classes = check_count(num_classes, "num_classes", least=2)
            parts["box_predictor"] = box_predictor(representation_size, num_classes)
        super().__init__(backbone, **{**parts, **arguments})
        for part in (self.rpn, self.roi_heads):
            part.box_coder = Float32BoxCoder(part.box_coder.weights)

    def _num_classes(self) -> int | None:
        return getattr(getattr(self.roi_heads.box_predictor, "cls_score", None), "out_features", None)


class MaskRCNN(FasterRCNN, torchvision_detection.MaskRCNN):
    """torchvision's Mask R-CNN around a RedNet; arguments are :class:`FasterRCNN`'s.

    ``head`` is also the kind of the four layers before the predictor of masks.
    """

    def __init__(
        self,
        backbone: RedNetFPN,
        num_classes: int | None = None,
        *,
        head: str = "involution",
        **arguments: Any,
    ) -> None:
        channels = backbone.out_channels
        parts: dict[str, Any] = {
            "mask_roi_pool": RoIAlignPyramid(_pooled(backbone), 14),
            "mask_head": InvolutionMaskHeads(channels)
            if _kind(head) == "involution"
            else MaskRCNNHeads(channels, (channels,) * 4, 1),
        }
        if num_classes is not None:
            parts["mask_predictor"] = mask_predictor(channels, num_classes)
        super().__init__(backbone, num_classes, head=head, **{**parts, **arguments})


class RetinaNet(_Detector, torchvision_detection.RetinaNet):
    """torchvision's RetinaNet around a RedNet, with the official anchors, and labels as of the other detectors.

    torchvision's takes labels for numbers of its outputs; here an object's label is from 1, as in R-CNN, and
    ``num_classes`` counts the background, which has no output.

    Args:
        backbone (RedNetFPN): What :func:`rednet_fpn_backbone` returns with ``extra="convolution"`` and without the
            finest map.
        num_classes (int): With the background.
        head (str): ``"convolution"``, as published, or ``"involution"``: the four layers before each predictor.
            Default: ``"convolution"``
        anchor_scale (float): The smallest anchor's side is this times its level's stride, and there are two more of ``2
            ** (1/3)`` and ``2 ** (2/3)`` times that. Default: 4.0
        **arguments: torchvision's, such as ``min_size`` or ``score_thresh``.

    Raises:
        ValueError: ``head`` is unknown, or an argument is out of range.
    """

    def __init__(
        self,
        backbone: RedNetFPN,
        num_classes: int,
        *,
        head: str = "convolution",
        anchor_scale: float = 4.0,
        **arguments: Any,
    ) -> None:
        outputs = check_count(num_classes, "num_classes", least=2) - 1
        anchors = arguments.pop("anchor_generator", None)
        if anchors is None:
            anchors = Anchors(backbone.strides, [anchor_scale * 2 ** (step / 3) for step in range(3)])
        heads = retina_head(
            backbone.out_channels, anchors.num_anchors_per_location()[0], outputs, _kind(head)
        )
        super().__init__(backbone, outputs, anchor_generator=anchors, head=heads, **arguments)
        self.box_coder = Float32BoxCoder(self.box_coder.weights)

    def _num_classes(self) -> int | None:
        return self.head.classification_head.num_classes + 1

    def compute_loss(
        self, targets: Targets, head_outputs: dict[str, Tensor], anchors: list[Tensor]
    ) -> dict[str, Tensor]:
        """The losses."""
        shifted = [{**target, "labels": target["labels"] - 1} for target in targets]
        return super().compute_loss(shifted, head_outputs, anchors)

    def postprocess_detections(
        self,
        head_outputs: dict[str, list[Tensor]],
        anchors: list[list[Tensor]],
        image_shapes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """The detections of each image."""
        detections = super().postprocess_detections(head_outputs, anchors, image_shapes)
        return [{**each, "labels": each["labels"] + 1} for each in detections]


def _kind(head: str) -> str:
    if head not in ("convolution", "involution"):
        raise ValueError(f'head must be "convolution" or "involution", not {head!r}.')
    return head


def _pooled(backbone: RedNetFPN) -> list[int]:
    """Strides of the levels that regions are read from: all but the extra ones."""
    return backbone.strides[: len(backbone.body.feature_channels)]


# ---- by name ----

# rednet_tiny is for images of about 128 pixels.
_TINY_BODY: dict[str, Any] = {"blocks": (1, 2, 2), "stem": "imagenet", "out_channels": 64}
_TINY = {"min_size": 128, "max_size": 256}
_TINY_BOXES = {"anchor_scale": 4.0, "representation_size": 256}


def _builder(kind: Callable[..., _Detector], size: str) -> Callable[..., Any]:
    """The function that builds one network."""
    retina, tiny = kind is RetinaNet, size == "_tiny"
    settings: dict[str, Any] = {**_TINY, **({} if retina else _TINY_BOXES)} if tiny else {}

    def build(
        num_classes: int,
        *,
        neck: str = "involution",
        trainable_backbone_layers: int | None = None,
        weights_backbone: str | os.PathLike[str] | None = None,
        **arguments: Any,
    ) -> _Detector:
        backbone = rednet_fpn_backbone(
            f"rednet{size}",
            neck=neck,
            returned_layers=range(2 if retina else 1, 4 if tiny else 5),
            extra="convolution" if retina else "pool",
            weights=weights_backbone,
            trainable_layers=trainable_backbone_layers,
            **(_TINY_BODY if tiny else {}),
        )
        return kind(backbone, num_classes, **{**settings, **arguments})

    name = kind.__name__
    build.__name__ = build.__qualname__ = f"{name.lower()}_rednet{size}_fpn"
    build.__doc__ = f"""A {name} with rednet{size} and a feature pyramid.

    Args:
        num_classes (int): With the background, which is class 0.
        neck (str): ``"convolution"`` or ``"involution"``: the layer behind each level of the pyramid. Default:
            ``"involution"``
        trainable_backbone_layers (int, optional): As ``trainable_layers`` of :func:`rednet_fpn_backbone`.
        weights_backbone (str or os.PathLike, optional): A file of a classifier or backbone, as its ``weights``.
        **arguments: Those of :class:`{name}`, such as ``head``.
    """
    return build


BUILDERS = {
    build.__name__: build
    for kind in (FasterRCNN, MaskRCNN, RetinaNet)
    for build in (_builder(kind, size) for size in ("26", "38", "50", "101", "152", "_tiny"))
}
