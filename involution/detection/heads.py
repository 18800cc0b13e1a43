"""Anchors, RoIAlign and heads as in the official detectors, in the places of torchvision's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign, roi_align

from ..layers import Involution2d
from ..models.blocks import initialise, initialise_unit_gain

__all__ = ["Anchors", "InvolutionMaskHeads", "InvolutionRPNHead", "RoIAlignPyramid"]


class Anchors(AnchorGenerator):
    """Anchors of sizes that are not rounded, at strides that do not depend on the image.

    torchvision rounds an anchor's corners to whole pixels, and takes the image's size divided by the map's for a
    stride: 61 instead of 64 for the last level of an image of 800x1344.

    Args:
        strides (sequence of int): Pixels of the image for one position, of each level.
        scales (sequence of float): An anchor's side is the stride times one of these. Default: ``(8.0,)``
        aspect_ratios (sequence of float): Height divided by width, at the same area. Default: ``(0.5, 1.0, 2.0)``

    Shape:
        One ``(N, 4)`` for each image, float32, ``(x1, y1, x2, y2)`` in pixels: level after level, row after row,
        position after position, and there ratio after ratio, with the scales of each.
    """

    def __init__(
        self,
        strides: Sequence[int],
        scales: Sequence[float] = (8.0,),
        aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
    ) -> None:
        sizes = tuple(tuple(stride * scale for scale in scales) for stride in strides)
        super().__init__(sizes, (tuple(aspect_ratios),) * len(sizes))
        self.strides = tuple(strides)

    def generate_anchors(
        self,
        scales: Sequence[float],
        aspect_ratios: Sequence[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """The anchors around the origin, ``(len(aspect_ratios) * len(scales), 4)``."""
        sizes = [
            (size / math.sqrt(ratio), size * math.sqrt(ratio)) for ratio in aspect_ratios for size in scales
        ]
        corners = [(-width / 2, -height / 2, width / 2, height / 2) for width, height in sizes]
        return torch.tensor(corners, dtype=dtype, device=device)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """The anchors of each image, which are the same for all."""
        self.set_cell_anchors(torch.float32, feature_maps[0].device)
        grids: Any = [level.shape[-2:] for level in feature_maps]
        strides: Any = [(stride, stride) for stride in self.strides]
        return [torch.cat(self.grid_anchors(grids, strides))] * len(image_list.image_sizes)


class RoIAlignPyramid(MultiScaleRoIAlign):
    """RoIAlign from the level of a pyramid that fits a region's size, at given strides.

    A region of ``w x h`` pixels is read from level ``floor(canonical_level + log2(sqrt(w * h) / canonical_scale))``,
    where level ``n`` has the stride ``2**n`` (Lin et al., CVPR 2017, equation 1). torchvision guesses the strides from
    the first batch and keeps them; here they are given.

    Args:
        strides (sequence of int): Strides of the levels that are read, from the finest, each twice the one before it.
        output_size (int): Positions along each side.
        sampling_ratio (int): Points along each side of a position that are averaged; 0 for about one for each of the
            map's. Default: 0
        aligned (bool): Whether positions are taken for squares around their centres, as officially, instead of half a
            position off, as in torchvision's detectors. Default: True

    Shape:
        Levels ``(B, C, h, w)`` by name, of which those named ``"0"``, ``"1"``, ... are read, and for each image boxes
        ``(N, 4)`` in pixels, to ``(sum of N, C, output_size, output_size)``.
    """

    def __init__(
        self,
        strides: Sequence[int],
        output_size: int,
        sampling_ratio: int = 0,
        aligned: bool = True,
        **arguments: Any,
    ) -> None:
        super().__init__([*map(str, range(len(strides)))], output_size, sampling_ratio, **arguments)
        self.strides = tuple(strides)
        self.aligned = aligned

    def levels(self, boxes: Tensor) -> Tensor:
        """The number, from 0, of the level that each of the boxes ``(N, 4)`` is read from; ``(N,)``, float32."""
        size = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
        level = torch.floor(self.canonical_level + torch.log2(size / self.canonical_scale) + 1e-6)
        return (level - math.log2(self.strides[0])).clamp(0, len(self.strides) - 1)

    def read(self, level: int, feature: Tensor, rois: Tensor) -> Tensor:
        """Regions ``(N, 5)``, the image's number and the box, of one level's map."""
        size: Any = self.output_size
        rois = rois.to(feature.dtype)
        return roi_align(
            feature, rois, size, 1 / self.strides[level], self.sampling_ratio, aligned=self.aligned
        )

    def forward(
        self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> Tensor:
        """The regions' values; ``image_shapes`` is not needed."""
        maps = [x[name] for name in self.featmap_names]
        numbers = [torch.full_like(each[:, :1], number) for number, each in enumerate(boxes)]
        regions = torch.cat(boxes)
        rois = torch.cat([torch.cat(numbers), regions], 1)
        levels = self.levels(regions)
        size = (len(regions), maps[0].shape[1], *self.output_size)
        result = torch.zeros(size, dtype=maps[0].dtype, device=maps[0].device)
        for level, feature in enumerate(maps):
            chosen = torch.where(levels == level)[0]
            result[chosen] = self.read(level, feature, rois[chosen]).to(result.dtype)
        return result


class Float32BoxCoder(BoxCoder):
    """torchvision's, but in float32, whatever autocast makes of a predictor's output.

    In bfloat16 a box at 1000 pixels would be wrong by several of them.
    """

    def decode_single(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
        """The boxes that codes and reference boxes mean."""
        return super().decode_single(rel_codes.float(), boxes)


def tower(channels: int, depth: int) -> nn.Sequential:
    """``depth`` times a 7x7 involution and a ReLU, with torchvision's names: ``0.0`` is the first involution."""
    involutions = [Involution2d(channels, 7) for _ in range(depth)]
    for involution in involutions:
        initialise_unit_gain(involution, relu=True)
    return nn.Sequential(*(nn.Sequential(involution, nn.ReLU()) for involution in involutions))


class InvolutionRPNHead(RPNHead):
    """A region proposal network's head with a 7x7 involution in the place of its 3x3 convolution.

    Source: Li et al., CVPR 2021, section 4.2.

    Args:
        in_channels (int): Channels of each level.
        num_anchors (int): Anchors at each position.

    Shape:
        Levels ``(B, in_channels, h, w)`` to scores ``(B, num_anchors, h, w)`` and box codes ``(B, 4 * num_anchors, h,
        w)`` of each.
    """

    def __init__(self, in_channels: int, num_anchors: int) -> None:
        super().__init__(in_channels, num_anchors, conv_depth=0)
        self.conv = tower(in_channels, 1)


class InvolutionMaskHeads(nn.Sequential):
    """The layers before a Mask R-CNN's predictor, with 7x7 involutions in the place of 3x3 convolutions.

    Source: Li et al., CVPR 2021, section 4.2.

    Args:
        channels (int): Channels of a region's map.
        depth (int): How many layers there are. Default: 4

    Shape:
        ``(N, channels, h, w)`` to the same. ``N`` may be 0.
    """

    def __init__(self, channels: int, depth: int = 4) -> None:
        super().__init__(*tower(channels, depth))


def box_predictor(in_channels: int, num_classes: int) -> nn.Module:
    """Torchvision's predictor of classes and boxes; at first all classes are about equally likely."""
    predictor = FastRCNNPredictor(in_channels, num_classes)
    for layer, std in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):
        nn.init.normal_(layer.weight, std=std)
        nn.init.zeros_(layer.bias)
    return in_float32(predictor)


def mask_predictor(channels: int, num_classes: int) -> nn.Module:
    """Torchvision's predictor of masks; at first nothing is likely to be in one."""
    predictor = MaskRCNNPredictor(channels, channels, num_classes)
    nn.init.normal_(predictor.mask_fcn_logits.weight, std=0.001)
    return in_float32(predictor)


def retina_head(channels: int, num_anchors: int, num_outputs: int, head: str) -> nn.Module:
    """Torchvision's head of a RetinaNet, with convolutions or involutions.

    The convolutions begin by He's rule. With torchvision's deviation of 0.01, four of 64 channels pass on a thousandth
    of what comes in, and a network does not begin to learn.
    """
    both = RetinaNetHead(channels, num_anchors, num_outputs)
    for part in (both.classification_head, both.regression_head):
        if head == "involution":
            part.conv = tower(channels, 4)
        else:
            initialise(part.conv)
    return in_float32(both)


def in_float32(module: nn.Module) -> nn.Module:
    """The module, with results in float32 under autocast too, or float64 if it computes in that."""
    module.register_forward_hook(_to_float32)
    return module


def _to_float32(_: nn.Module, __: Any, results: Any) -> Any:
    return tree_map(lambda result: result.to(torch.promote_types(result.dtype, torch.float32)), results)
