"""Heads that make scores of classes at every position from a network's maps.

They are those of mmseg, with which the official segmenters were trained: convolutions without bias, batch norm, ReLU,
dropout of whole channels before the classifier, and bilinear interpolation with ``align_corners=False``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers._shared import check_count
from ..models.blocks import ConvNormAct, initialise

__all__ = ["FCNHead", "SemanticFPNHead", "UPerHead"]


class _Head(nn.Module):
    """Dropout of channels and a classifier, a 1x1 convolution."""

    def __init__(self, channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        channels = check_count(channels, "channels")
        self.num_classes = check_count(num_classes, "num_classes")
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def reset_parameters(self) -> None:
        """Starts anew: as RedNet's convolutions, but scores near zero, so that the first loss is ``log(classes)``."""
        initialise(self)
        nn.init.normal_(self.classifier.weight, std=0.01)

    def classify(self, map: Tensor) -> Tensor:
        """``(B, channels, H, W)`` to ``(B, num_classes, H, W)``."""
        return self.classifier(self.dropout(map))


class SemanticFPNHead(_Head):
    """The head of Semantic FPN: every level of a pyramid brought to the finest one's size, and their sum.

    A level of stride ``s`` goes ``log2(s / strides[0])`` times, at least once, through a 3x3 convolution; behind each,
    where ``s`` is not the finest, it is interpolated to twice the size (Kirillov et al., "Panoptic Feature Pyramid
    Networks", CVPR 2019, section 3.1, with batch norm).

    Args:
        in_channels (int): Channels of every level.
        strides (sequence of int): Pixels of the image for one position of each level, from the finest: powers of two
            times the first.
        num_classes (int): How many scores a position gets.
        channels (int): Channels of the sum. Default: 128
        dropout (float): Probability to zero a channel before the classifier, in training. Default: 0.1

    Shape:
        A list of ``(B, in_channels, H[i], W[i])`` to ``(B, num_classes, H[0], W[0])``.
    """

    def __init__(
        self,
        in_channels: int,
        strides: Sequence[int],
        num_classes: int,
        channels: int = 128,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(channels, num_classes, dropout)
        self.scales = nn.ModuleList()
        for stride in strides:
            doublings = (stride // strides[0]).bit_length() - 1
            if strides[0] << max(0, doublings) != stride:
                raise ValueError(
                    f"strides must be powers of two times the first, but they are {tuple(strides)}."
                )
            scale = nn.Sequential()
            for number in range(max(1, doublings)):
                scale.append(ConvNormAct(channels if number else in_channels, channels, 3))
                if doublings:
                    scale.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
            self.scales.append(scale)
        self.reset_parameters()

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Scores at the finest level's positions."""
        first, *others = [scale(level) for scale, level in zip(self.scales, levels, strict=True)]
        for other in others:
            first = first + resize(other, first.shape[2:])
        return self.classify(first)


class UPerHead(_Head):
    """The head of UPerNet: pooled averages of the last map, a top-down path, and all levels together.

    ::

        inner[-1] = bottleneck(maps[-1], averages over 1x1, 2x2, 3x3 and 6x6 windows of it, each through 1x1)
        inner[i]  = lateral[i](maps[i]) + resize(inner[i + 1])
        scores    = classifier(fusion(output[0](inner[0]), ..., inner[-1])), all at the finest map's size

    Source: Xiao et al., "Unified Perceptual Parsing for Scene Understanding", ECCV 2018, figure 4. In training, the
    batch norm behind the 1x1 average needs at least two images.

    Args:
        in_channels (sequence of int): Channels of the maps, from the finest.
        num_classes (int): How many scores a position gets.
        channels (int): Channels of every level. Default: 512
        pool_sizes (sequence of int): Windows along each axis of every average. Default: ``(1, 2, 3, 6)``
        dropout (float): Probability to zero a channel before the classifier, in training. Default: 0.1

    Shape:
        A list of ``(B, in_channels[i], H[i], W[i])`` to ``(B, num_classes, H[0], W[0])``.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        channels: int = 512,
        pool_sizes: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1,
    ) -> None:
        super().__init__(channels, num_classes, dropout)
        *others, last = in_channels
        self.pools = nn.ModuleList(
            nn.Sequential(WindowAverages(size), ConvNormAct(last, channels, 1)) for size in pool_sizes
        )
        self.bottleneck = ConvNormAct(last + len(pool_sizes) * channels, channels, 3)
        self.lateral = nn.ModuleList(ConvNormAct(inputs, channels, 1) for inputs in others)
        self.output = nn.ModuleList(ConvNormAct(channels, channels, 3) for _ in others)
        self.fusion = ConvNormAct(len(in_channels) * channels, channels, 3)
        self.reset_parameters()

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Scores at the finest map's positions."""
        *others, last = maps
        pooled = [resize(pool(last), last.shape[2:]) for pool in self.pools]
        inner = [lateral(each) for lateral, each in zip(self.lateral, others, strict=True)]
        inner.append(self.bottleneck(torch.cat([last, *pooled], 1)))
        for level in range(len(inner) - 2, -1, -1):
            inner[level] = inner[level] + resize(inner[level + 1], inner[level].shape[2:])
        levels = [output(each) for output, each in zip(self.output, inner[:-1], strict=True)] + inner[-1:]
        size = levels[0].shape[2:]
        return self.classify(
            self.fusion(torch.cat([levels[0], *(resize(each, size) for each in levels[1:])], 1))
        )


class FCNHead(_Head):
    """A 3x3 convolution and a classifier on one map: the auxiliary head, for the loss alone.

    Args:
        in_channels (int): Channels of the map.
        num_classes (int): How many scores a position gets.
        channels (int): Channels of the convolution. Default: 256
        dropout (float): Probability to zero a channel before the classifier, in training. Default: 0.1

    Shape:
        ``(B, in_channels, H, W)`` to ``(B, num_classes, H, W)``.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        channels: int = 256,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(channels, num_classes, dropout)
        self.convs = nn.Sequential(ConvNormAct(in_channels, channels, 3))
        self.reset_parameters()

    def forward(self, map: Tensor) -> Tensor:
        """Scores at the map's positions."""
        return self.classify(self.convs(map))


class WindowAverages(nn.Module):
    """``nn.AdaptiveAvgPool2d(windows)`` as two matrix products, which files to deploy can hold for every size.

    The exporter to ONNX writes the example's windows into the file, and AOTInductor wants to know them.

    Args:
        windows (int): How many windows there are along each axis. Window ``i`` of a map of length ``n`` begins at
            ``floor(i * n / windows)`` and ends before ``ceil((i + 1) * n / windows)``.

    Shape:
        ``(B, C, H, W)`` to ``(B, C, windows, windows)``.
    """

    def __init__(self, windows: int) -> None:
        super().__init__()
        self.windows = check_count(windows, "pool_sizes")

    def forward(self, map: Tensor) -> Tensor:
        """The averages."""
        height, width = map.shape[2:]
        # Along the last axis each, where a product with one matrix needs no batch.
        return (map @ self._weights(width, map)).mT.matmul(self._weights(height, map)).mT

    def _weights(self, length: int, like: Tensor) -> Tensor:
        """``(length, windows)``: a position's share of every window."""
        numbers = torch.arange(self.windows, device=like.device)
        first = numbers * length // self.windows
        behind = ((numbers + 1) * length + self.windows - 1) // self.windows
        positions = torch.arange(length, device=like.device)[:, None]
        return ((positions >= first) & (positions < behind)).to(like.dtype) / (behind - first)


def resize(map: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear interpolation between the centres of pixels."""
    return F.interpolate(map, size=tuple(size), mode="bilinear", align_corners=False)
