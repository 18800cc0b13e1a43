"""Detectors as mmdetection has them, in plain PyTorch: its names, and what its heads compute.

Made from the published configurations and names, for tests alone, and independent of the package.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from official_rednet import ConvNorm, Involution, Neck, OfficialRedNet, randomise
from torch import Tensor, nn

BLOCKS, WIDTHS, CHANNELS, FEATURES = (1, 2, 1, 1), (32, 16, 16, 32), 32, 24


def layer(kind: str = "convolution") -> nn.Module:
    if kind == "involution":
        return Involution(CHANNELS, 7, 1)
    return ConvNorm(CHANNELS, CHANNELS, 3, norm=False)


class RPNHead(nn.Module):
    def __init__(self, kind: str):
        super().__init__()
        self.rpn_conv = layer(kind) if kind == "involution" else layer(kind).conv
        self.rpn_cls = nn.Conv2d(CHANNELS, 3, 1)
        self.rpn_reg = nn.Conv2d(CHANNELS, 12, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.rpn_conv(x))
        return self.rpn_cls(x), self.rpn_reg(x)


class BoxHead(nn.Module):
    def __init__(self, classes: int):
        super().__init__()
        self.shared_fcs = nn.ModuleList([nn.Linear(CHANNELS * 49, FEATURES), nn.Linear(FEATURES, FEATURES)])
        self.fc_cls = nn.Linear(FEATURES, classes + 1)
        self.fc_reg = nn.Linear(FEATURES, 4 * classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.flatten(1)
        for linear in self.shared_fcs:
            x = F.relu(linear(x))
        return self.fc_cls(x), self.fc_reg(x)


class MaskHead(nn.Module):
    def __init__(self, kind: str, classes: int):
        super().__init__()
        four = [layer(kind) for _ in range(4)]
        self.convs = nn.ModuleList([nn.Sequential(each) for each in four] if kind == "involution" else four)
        self.upsample = nn.ConvTranspose2d(CHANNELS, CHANNELS, 2, 2)
        self.conv_logits = nn.Conv2d(CHANNELS, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        for each in self.convs:
            x = F.relu(each(x))
        return self.conv_logits(F.relu(self.upsample(x)))


class RetinaHead(nn.Module):
    def __init__(self, classes: int):
        super().__init__()
        self.cls_convs = nn.ModuleList(layer() for _ in range(4))
        self.reg_convs = nn.ModuleList(layer() for _ in range(4))
        self.retina_cls = nn.Conv2d(CHANNELS, 9 * classes, 3, 1, 1)
        self.retina_reg = nn.Conv2d(CHANNELS, 36, 3, 1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, boxes = x, x
        for one, other in zip(self.cls_convs, self.reg_convs, strict=True):
            scores, boxes = F.relu(one(scores)), F.relu(other(boxes))
        return self.retina_cls(scores), self.retina_reg(boxes)


class OfficialDetector(nn.Module):
    """Of a kind, ``"fasterrcnn"``, ``"maskrcnn"`` or ``"retinanet"``; its features are the pyramid's levels."""

    def __init__(self, kind: str, neck: str, head: str, classes: int):
        super().__init__()
        retina = kind == "retinanet"
        self.start = 1 if retina else 0
        self.backbone = OfficialRedNet(BLOCKS, WIDTHS, 7)
        self.neck = Neck([4 * width for width in WIDTHS[self.start :]], CHANNELS, neck, more=retina)
        if retina:
            self.bbox_head = RetinaHead(classes)
            return
        self.rpn_head = RPNHead(head)
        self.roi_head = nn.Module()
        self.roi_head.bbox_head = BoxHead(classes)
        if kind == "maskrcnn":
            self.roi_head.mask_head = MaskHead(head, classes)

    def forward(self, x: Tensor) -> list[Tensor]:
        levels = self.neck(self.backbone(x)[self.start :])
        return levels if self.start else [*levels, F.max_pool2d(levels[-1], 1, 2)]


def detector(kind: str, neck: str, head: str, classes: int) -> OfficialDetector:
    torch.manual_seed(0)
    return randomise(OfficialDetector(kind, neck, head, classes)).eval()
