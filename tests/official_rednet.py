"""A RedNet as the official repository has it, in plain PyTorch: its names, and its operator written as unfold.

Made from the facts of the paper and of the published checkpoints, for tests alone, and independent of the package.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvNorm(nn.Module):
    """A convolution with a norm and ReLU behind it, or neither and a bias."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1, norm: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=not norm)
        if norm:
            self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return F.relu(self.bn(x)) if hasattr(self, "bn") else x


class Involution(nn.Module):
    """The official layer."""

    def __init__(self, channels: int, size: int, stride: int):
        super().__init__()
        self.size, self.stride, self.groups = size, stride, channels // 16
        self.conv1 = ConvNorm(channels, channels // 4, 1)
        self.conv2 = ConvNorm(channels // 4, size * size * self.groups, 1, norm=False)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.avg_pool2d(x, self.stride, self.stride) if self.stride > 1 else x
        weight = self.conv2(self.conv1(pooled))
        batch, _, height, width = weight.shape
        weight = weight.reshape(batch, self.groups, 1, self.size**2, height, width)
        columns = F.unfold(x, self.size, 1, (self.size - 1) // 2, self.stride)
        columns = columns.reshape(batch, self.groups, 16, self.size**2, height, width)
        return (weight * columns).sum(3).reshape(batch, -1, height, width)


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = Involution(width, 7, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)

    def forward(self, x: Tensor) -> Tensor:
        identity = self.downsample(x) if hasattr(self, "downsample") else x
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + identity)


class OfficialRedNet(nn.Module):
    """The backbone; its features are the four stages' maps."""

    def __init__(self, blocks: Sequence[int], widths: Sequence[int], stem_size: int):
        super().__init__()
        self.stem = nn.Sequential(
            ConvNorm(3, 32, 3, 2),
            Involution(32, stem_size, 1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            ConvNorm(32, 64, 3),
        )
        inputs = 64
        for stage, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            chain = []
            for number in range(count):
                stride = 2 if stage and not number else 1
                block = Bottleneck(inputs, width, stride)
                if not number:
                    shortcut = nn.Conv2d(inputs, 4 * width, 1, stride, bias=False)
                    block.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(4 * width))
                chain.append(block)
                inputs = 4 * width
            self.add_module(f"layer{stage + 1}", nn.Sequential(*chain))
        self.stages = len(blocks)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.max_pool2d(self.stem(x), 3, 2, 1)
        maps = []
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
            maps.append(x)
        return maps


class Neck(nn.Module):
    """A feature pyramid with mmdetection's names, of involutions or convolutions, and perhaps two more levels."""

    def __init__(self, widths: Sequence[int], channels: int, kind: str, more: bool = False):
        super().__init__()
        self.lateral_convs = nn.ModuleList(ConvNorm(width, channels, 1, norm=False) for width in widths)
        self.fpn_convs = nn.ModuleList(
            Involution(channels, 7, 1)
            if kind == "involution"
            else ConvNorm(channels, channels, 3, norm=False)
            for _ in widths
        )
        if more:
            self.fpn_convs += [
                ConvNorm(inputs, channels, 3, 2, norm=False) for inputs in (widths[-1], channels)
            ]

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        inner = [lateral(x) for lateral, x in zip(self.lateral_convs, maps, strict=True)]
        for i in range(len(inner) - 1, 0, -1):
            inner[i - 1] = inner[i - 1] + F.interpolate(inner[i], inner[i - 1].shape[2:], mode="nearest")
        levels = [convolution(x) for convolution, x in zip(self.fpn_convs, inner, strict=False)]
        x = maps[-1]
        for convolution in self.fpn_convs[len(maps) :]:
            levels.append(x := convolution(x))
        return levels


class OfficialClassifier(nn.Module):
    """Backbone and head with the names of a published classifier."""

    def __init__(self, blocks: Sequence[int], widths: Sequence[int], stem_size: int = 3, classes: int = 1000):
        super().__init__()
        self.backbone = OfficialRedNet(blocks, widths, stem_size)
        self.head = nn.Module()
        self.head.fc = nn.Linear(4 * widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head.fc(self.backbone(x)[-1].mean((2, 3)))


def randomise(model: nn.Module) -> nn.Module:
    """Norms that are neither one nor zero, so that a mistaken one shows."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
                module.running_mean.uniform_(-0.5, 0.5)
                module.running_var.uniform_(0.5, 1.5)
    return model
