"""RedNet's parts as ``fuse`` leaves them: without norms, and with every ReLU and addition in what is in front of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..layers.convolution_relu import convolution_relu
from .blocks import Bottleneck, Stem


class FusedStem(nn.Module):
    """A :class:`Stem` whose norms are folded into its convolutions and into the involution's ``epilogue``.

    Shape:
        as that of the stem.
    """

    def __init__(self, stem: Stem) -> None:
        super().__init__()
        self.conv1 = stem.conv1
        self.involution = stem.involution
        self.conv2 = stem.conv2
        self.pool = stem.pool

    def forward(self, input: Tensor) -> Tensor:
        """Runs the stem."""
        x = self.involution(convolution_relu(self.conv1, input))
        x = convolution_relu(self.conv2, x)
        return x if self.pool is None else self.pool(x)


class FusedBottleneck(nn.Module):
    """A :class:`Bottleneck` whose norms are folded, and whose shortcut has its bias in the last convolution.

    Shape:
        as that of the block.
    """

    def __init__(self, block: Bottleneck) -> None:
        super().__init__()
        self.conv1 = block.conv1
        self.involution = block.involution
        self.conv2 = block.conv2
        self.shortcut = None if block.shortcut is None else block.shortcut.conv
        if self.shortcut is not None:
            move_bias(self.shortcut, self.conv2)

    def forward(self, input: Tensor) -> Tensor:
        """Runs the block."""
        x = self.involution(convolution_relu(self.conv1, input))
        return convolution_relu(self.conv2, x, input if self.shortcut is None else self.shortcut(input))


@torch.no_grad()
def move_bias(source: nn.Conv2d, target: nn.Conv2d) -> None:
    """Adds a convolution's bias to that of another whose result is added to its own: one pass over the map less."""
    if source.bias is None or target.bias is None:
        return
    target.bias += source.bias
    source.bias = None
