"""Segmenters as mmseg has them, in plain PyTorch: its names, and around the official RedNet.

Made from the facts of the published networks, for tests alone, and independent of the package.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from official_rednet import ConvNorm, Neck, OfficialRedNet
from torch import Tensor, nn


def resize(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)


class Double(nn.Module):
    """Bilinear interpolation to twice the size, written out: 3/4 of the nearer neighbour, 1/4 of the other."""

    def forward(self, x: Tensor) -> Tensor:
        for axis in (2, 3):
            last = x.shape[axis] - 1
            before = torch.cat([x.narrow(axis, 0, 1), x.narrow(axis, 0, last)], axis)
            behind = torch.cat([x.narrow(axis, 1, last), x.narrow(axis, last, 1)], axis)
            both = torch.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * behind], axis + 1)
            x = both.flatten(axis, axis + 1)
        return x


class FPNHead(nn.Module):
    """Of strides 4, 8, 16 and 32."""

    def __init__(self, inputs: int, channels: int, classes: int):
        super().__init__()
        self.scale_heads = nn.ModuleList()
        for level in range(4):
            chain: list[nn.Module] = []
            for number in range(max(1, level)):
                chain.append(ConvNorm(channels if number else inputs, channels, 3))
                if level:
                    chain.append(Double())
            self.scale_heads.append(nn.Sequential(*chain))
        self.conv_seg = nn.Conv2d(channels, classes, 1)

    def forward(self, levels: list[Tensor]) -> Tensor:
        total = self.scale_heads[0](levels[0])
        for chain, x in zip(list(self.scale_heads)[1:], levels[1:], strict=True):
            total = total + resize(chain(x), total)
        return self.conv_seg(total)


class UPerHead(nn.Module):
    def __init__(self, widths: Sequence[int], channels: int, classes: int):
        super().__init__()
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(size), ConvNorm(widths[-1], channels, 1))
            for size in (1, 2, 3, 6)
        )
        self.bottleneck = ConvNorm(widths[-1] + 4 * channels, channels, 3)
        self.lateral_convs = nn.ModuleList(ConvNorm(width, channels, 1) for width in widths[:-1])
        self.fpn_convs = nn.ModuleList(ConvNorm(channels, channels, 3) for _ in widths[:-1])
        self.fpn_bottleneck = ConvNorm(len(widths) * channels, channels, 3)
        self.conv_seg = nn.Conv2d(channels, classes, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        last = maps[-1]
        pooled = [resize(pool(last), last) for pool in self.psp_modules]
        inner = [lateral(x) for lateral, x in zip(self.lateral_convs, maps[:-1], strict=True)]
        inner.append(self.bottleneck(torch.cat([last, *pooled], 1)))
        for i in range(len(inner) - 1, 0, -1):
            inner[i - 1] = inner[i - 1] + resize(inner[i], inner[i - 1])
        outputs = [convolution(x) for convolution, x in zip(self.fpn_convs, inner[:-1], strict=True)]
        outputs.append(inner[-1])
        return self.conv_seg(self.fpn_bottleneck(torch.cat([resize(x, outputs[0]) for x in outputs], 1)))


class FCNHead(nn.Module):
    def __init__(self, inputs: int, channels: int, classes: int):
        super().__init__()
        self.convs = nn.Sequential(ConvNorm(inputs, channels, 3))
        self.conv_seg = nn.Conv2d(channels, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_seg(self.convs(x))


class OfficialSegmenter(nn.Module):
    """``kind`` is a neck's, for Semantic FPN, or ``"upernet"``. Without dropout; returns both heads' scores."""

    def __init__(self, kind: str, blocks, widths, stem_size: int, channels: int, classes: int):
        super().__init__()
        self.backbone = OfficialRedNet(blocks, widths, stem_size)
        widths = [4 * width for width in widths]
        if kind == "upernet":
            self.decode_head = UPerHead(widths, channels, classes)
            self.auxiliary_head = FCNHead(widths[-2], channels, classes)
        else:
            self.neck = Neck(widths, 2 * channels, kind)
            self.decode_head = FPNHead(2 * channels, channels, classes)

    def score(self, maps: list[Tensor]) -> list[Tensor]:
        scores = [self.decode_head(self.neck(maps) if hasattr(self, "neck") else maps)]
        if hasattr(self, "auxiliary_head"):
            scores.append(self.auxiliary_head(maps[-2]))
        return scores

    def forward(self, x: Tensor) -> list[Tensor]:
        return [resize(scores, x) for scores in self.score(self.backbone(x))]
