"""The names of mmdetection's detectors, which the official checkpoints have, and ours; and its order of classes.

There the background is the last class and has no box and no mask. torchvision has it first, with a row for each, which
nothing reads: it is zero in what is read from a file, and left out of what is written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..models.official import OfficialNames, involution_names
from ..models.rednet import RedNet

_BOX, _MASK = "roi_heads.box_predictor", "roi_heads.mask_predictor"
_CLASSIFICATION, _REGRESSION = "head.classification_head", "head.regression_head"
_SCORES = f"{_BOX}.cls_score"
# Our layers with rows for the background, first, and how many.
_BACKGROUND = {f"{_BOX}.bbox_pred": 4, f"{_MASK}.mask_fcn_logits": 1}


class DetectorNames(OfficialNames):
    """The names, and what is not a name: where the background is, and the number of a pyramid's extra level."""

    def from_official(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state_dict as ours; raises ValueError where a name is not an official one."""
        ours = OfficialNames.from_official(self._with_extra_levels(state), state)
        return {name: _background_first(name, tensor) for name, tensor in ours.items()}

    def to_official(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state_dict as the official ones; raises ValueError where a name is not one of ours."""
        moved = {name: _background_last(name, tensor) for name, tensor in state.items()}
        return OfficialNames.to_official(self._with_extra_levels(state), moved)

    def _with_extra_levels(self, state: Mapping[str, Tensor]) -> DetectorNames:
        """Officially, a pyramid's extra levels are counted on: ``fpn_convs.4`` of three maps is ``extra.1``."""
        levels = _levels(state)
        names = {f"neck.fpn_convs.{levels + i}.conv": f"backbone.fpn.extra.{i}" for i in range(2)}
        return replace(self, parts={**names, **self.parts})  # before the pattern that they fit, too


NAMES = DetectorNames(
    "detector",
    "backbone.body",
    {
        "neck.lateral_convs.{}.conv": "backbone.fpn.lateral.{}",
        "neck.fpn_convs.{}.conv": "backbone.fpn.output.{}",
        **involution_names("neck.fpn_convs.{}", "backbone.fpn.output.{}"),
        "rpn_head.rpn_conv": "rpn.head.conv.0.0",
        **involution_names("rpn_head.rpn_conv", "rpn.head.conv.0.0"),
        "rpn_head.rpn_cls": "rpn.head.cls_logits",
        "rpn_head.rpn_reg": "rpn.head.bbox_pred",
        "roi_head.bbox_head.shared_fcs.0": "roi_heads.box_head.fc6",
        "roi_head.bbox_head.shared_fcs.1": "roi_heads.box_head.fc7",
        "roi_head.bbox_head.fc_cls": _SCORES,
        "roi_head.bbox_head.fc_reg": f"{_BOX}.bbox_pred",
        "roi_head.mask_head.convs.{}.conv": "roi_heads.mask_head.{}.0",
        **involution_names("roi_head.mask_head.convs.{}.0", "roi_heads.mask_head.{}.0"),
        "roi_head.mask_head.upsample": f"{_MASK}.conv5_mask",
        "roi_head.mask_head.conv_logits": f"{_MASK}.mask_fcn_logits",
        "bbox_head.cls_convs.{}.conv": f"{_CLASSIFICATION}.conv.{{}}.0",
        "bbox_head.reg_convs.{}.conv": f"{_REGRESSION}.conv.{{}}.0",
        "bbox_head.retina_cls": f"{_CLASSIFICATION}.cls_logits",
        "bbox_head.retina_reg": f"{_REGRESSION}.bbox_reg",
    },
    classifiers=(_SCORES, *_BACKGROUND, f"{_CLASSIFICATION}.cls_logits"),
)


def build(state: Mapping[str, Tensor], found: dict[str, Any], **arguments: Any) -> Any:
    """The detector that tensors with our names are of.

    Args:
        state (mapping of str to Tensor): The tensors.
        found (dict): Arguments of its RedNet.
        **arguments: Further ones of the detector's class.

    Raises:
        KeyError: a tensor is missing.
    """
    from .backbone import RedNetFPN
    from .models import FasterRCNN, MaskRCNN, RetinaNet

    def kind(involution: str) -> str:
        return "involution" if f"{involution}.reduce.weight" in state else "convolution"

    stages = len(found["blocks"])
    body = RedNet(**found, features_only=True, out_indices=range(stages - _levels(state), stages))
    backbone = RedNetFPN(
        body,
        state["backbone.fpn.lateral.0.weight"].shape[0],
        neck=kind("backbone.fpn.output.0"),
        extra="convolution" if "backbone.fpn.extra.0.weight" in state else "pool",
    )
    if f"{_REGRESSION}.bbox_reg.weight" in state:
        anchors = state[f"{_REGRESSION}.bbox_reg.weight"].shape[0] // 4
        classes = state[f"{_CLASSIFICATION}.cls_logits.weight"].shape[0] // anchors
        return RetinaNet(backbone, classes + 1, **arguments)
    detector = MaskRCNN if f"{_MASK}.mask_fcn_logits.weight" in state else FasterRCNN
    sizes = {"head": kind("rpn.head.conv.0.0"), "representation_size": state[f"{_SCORES}.weight"].shape[1]}
    return detector(backbone, state[f"{_SCORES}.weight"].shape[0], **{**sizes, **arguments})


def _levels(state: Mapping[str, Tensor]) -> int:
    """How many maps go into the pyramid, by either kind of names."""
    lateral = re.compile(r"(neck\.lateral_convs\.\d+\.conv|backbone\.fpn\.lateral\.\d+)\.weight")
    return sum(lateral.fullmatch(name) is not None for name in state)


def _background_first(name: str, tensor: Tensor) -> Tensor:
    module = name.rpartition(".")[0]
    if module == _SCORES:
        return torch.cat([tensor[-1:], tensor[:-1]])
    if module in _BACKGROUND:
        return torch.cat([tensor.new_zeros(_BACKGROUND[module], *tensor.shape[1:]), tensor])
    return tensor


def _background_last(name: str, tensor: Tensor) -> Tensor:
    module = name.rpartition(".")[0]
    if module == _SCORES:
        return torch.cat([tensor[1:], tensor[:1]])
    return tensor[_BACKGROUND[module] :].clone() if module in _BACKGROUND else tensor
