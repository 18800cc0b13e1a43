"""The parts of RedNet: stem, bottleneck, and the depth that is dropped at random."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import Involution2d
from ..layers._shared import RELU

Norm = Callable[[int], nn.Module]

# How a map becomes a vector, by timm's names; with "" it stays a map.
POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "avg": lambda x: x.mean((2, 3)),
    "max": lambda x: x.amax((2, 3)),
    "avgmax": lambda x: (x.mean((2, 3)) + x.amax((2, 3))) / 2,
    "catavgmax": lambda x: torch.cat((x.mean((2, 3)), x.amax((2, 3))), 1),
    "": lambda x: x,
}


class DropPath(nn.Module):
    """Leaves out a residual branch at random, for each sample on its own, in training.

    What remains is divided by the probability of staying, so that the expectation is kept (Huang et al., "Deep
    Networks with Stochastic Depth", ECCV 2016, in the form that divides in training).

    Args:
        probability (float): Probability to be left out, at least 0 and less than 1.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        if not 0 <= probability < 1:
            raise ValueError(f"The probability to drop a path must be in [0, 1), not {probability!r}.")
        self.probability = float(probability)

    def forward(self, input: Tensor) -> Tensor:
        """``(B, ...)`` with some of its samples zero, in training; the input itself otherwise."""
        if not self.training or self.probability == 0:
            return input
        keep = 1 - self.probability
        mask = input.new_empty((input.shape[0],) + (1,) * (input.dim() - 1)).bernoulli_(keep)
        return input * mask.div_(keep)

    def extra_repr(self) -> str:
        """The probability."""
        return f"{self.probability:g}"


def convolution(
    inputs: int, outputs: int, kernel_size: int, stride: int, factory: dict[str, Any]
) -> nn.Conv2d:
    """A convolution that keeps the size but for its stride, without a bias, because a norm follows."""
    padding = kernel_size // 2
    return nn.Conv2d(inputs, outputs, kernel_size, stride, padding, bias=False, **factory)


class Stem(nn.Module):
    """The first layers: convolution, involution, convolution, each with norm and ReLU, and a max pool.

    Args:
        in_channels (int): Channels of the image.
        channels (int): Channels of the result; half as many before the last convolution.
        kernel_size (int): Kernel size of the involution.
        downsampling (bool): Whether the first convolution and the max pool have stride 2. Without it there is no pool,
            and the size is kept.
        group_channels (int): Channels that share a kernel.
        norm (Norm): Makes a normalisation from its number of channels.
        factory (dict): Device and dtype of the parameters.

    Shape:
        ``(B, in_channels, H, W)`` to ``(B, channels, ceil(ceil(H / 2) / 2), ceil(ceil(W / 2) / 2))``, or to the same
        height and width.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel_size: int,
        downsampling: bool,
        group_channels: int,
        norm: Norm,
        factory: dict[str, Any],
    ) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = convolution(in_channels, half, 3, 2 if downsampling else 1, factory)
        self.norm1 = norm(half)
        self.involution = Involution2d(
            half, kernel_size, group_channels=group_channels, norm_layer=norm, **factory
        )
        self.norm2 = norm(half)
        self.relu2 = RELU()  # a module, because fuse() moves it into the involution
        self.conv2 = convolution(half, channels, 3, 1, factory)
        self.norm3 = norm(channels)
        self.pool = nn.MaxPool2d(3, 2, 1) if downsampling else None

    def forward(self, input: Tensor) -> Tensor:
        """Runs the stem."""
        x = F.relu(self.norm1(self.conv1(input)))
        x = self.relu2(self.norm2(self.involution(x)))
        x = F.relu(self.norm3(self.conv2(x)))
        return x if self.pool is None else self.pool(x)

    def resize_involution(self, kernel_size: int) -> None:
        """Replaces the involution by a fresh one of another kernel size."""
        old, norm = self.involution, self.involution.norm
        assert norm is not None
        weight = old.span.weight
        self.involution = Involution2d(
            old.channels,
            kernel_size,
            fused=old.fused,
            groups=old.groups,
            reduction_ratio=old.channels // old.reduce.out_channels,
            norm_layer=lambda _: copy.deepcopy(norm),
            device=weight.device,
            dtype=weight.dtype,
        )
        self.involution.train(old.training)
        for parameter, replaced in zip(self.involution.parameters(), old.parameters(), strict=True):
            parameter.requires_grad_(replaced.requires_grad)


class Shortcut(nn.Sequential):
    """What brings a block's input to the channels and size of its output: a 1x1 convolution and its norm."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm, factory: dict[str, Any]) -> None:
        super().__init__()
        self.conv = convolution(inputs, outputs, 1, stride, factory)
        self.norm = norm(outputs)


class ConvNormAct(nn.Sequential):
    """A convolution that keeps the size, batch norm and ReLU: what the heads behind a RedNet are made of."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = convolution(inputs, outputs, kernel_size, 1, {})
        self.norm = nn.BatchNorm2d(outputs)
        self.act = RELU()


class Bottleneck(nn.Module):
    """A residual block: 1x1 convolution, involution, 1x1 convolution (Li et al., CVPR 2021, section 4.1).

    Args:
        inputs (int): Channels of the input.
        width (int): Channels of the involution.
        outputs (int): Channels of the output.
        stride (int): Stride of the involution and of the shortcut.
        dilation (int): Dilation of the involution.
        kernel_size (int): Kernel size of the involution.
        group_channels (int): Channels that share a kernel.
        drop_path (float): Probability to leave out the branch, in training.
        norm (Norm): Makes a normalisation from its number of channels.
        factory (dict): Device and dtype of the parameters.

    Attributes:
        shortcut: convolution and norm, where the size or the channels change, or None.

    Shape:
        ``(B, inputs, H, W)`` to ``(B, outputs, ceil(H / stride), ceil(W / stride))``.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        outputs: int,
        *,
        stride: int,
        dilation: int,
        kernel_size: int,
        group_channels: int,
        drop_path: float,
        norm: Norm,
        factory: dict[str, Any],
    ) -> None:
        super().__init__()
        self.conv1 = convolution(inputs, width, 1, 1, factory)
        self.norm1 = norm(width)
        self.involution = Involution2d(
            width,
            kernel_size,
            stride,
            dilation=dilation,
            group_channels=group_channels,
            norm_layer=norm,
            **factory,
        )
        self.norm2 = norm(width)
        self.relu2 = RELU()  # a module, because fuse() moves it into the involution
        self.conv2 = convolution(width, outputs, 1, 1, factory)
        self.norm3 = norm(outputs)
        self.drop_path = DropPath(drop_path) if drop_path else None
        changes = stride != 1 or inputs != outputs
        self.shortcut = Shortcut(inputs, outputs, stride, norm, factory) if changes else None

    def forward(self, input: Tensor) -> Tensor:
        """Runs the block."""
        x = F.relu(self.norm1(self.conv1(input)))
        x = self.relu2(self.norm2(self.involution(x)))
        x = self.norm3(self.conv2(x))
        if self.drop_path is not None:
            x = self.drop_path(x)
        x = x + (input if self.shortcut is None else self.shortcut(input))
        return F.relu(x, inplace=True)  # no module's output, which hooks may have seen


@torch.no_grad()
def initialise(model: nn.Module) -> None:
    """The paper's initialisation, for every module inside ``model``.

    Convolutions start from Kaiming's normal distribution over the fan-out, biases from zero, norms from one and
    zero, but the last norm of every block from zero, so that a block is its shortcut at first; linear layers start
    from a normal distribution of standard deviation 0.01, as in the official training code.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            module.bias.zero_()
    for module in model.modules():
        weight = getattr(module.norm3, "weight", None) if isinstance(module, Bottleneck) else None
        if weight is not None:
            weight.zero_()


def initialise_unit_gain(layer: Involution2d, relu: bool = False) -> None:
    """Starts an involution that no norm follows so that its output is as large as its input.

    Behind norm and ReLU the ``R`` numbers that a kernel is made of have a mean square of 1/2, so with a standard
    deviation of ``sqrt(2 / (K * K * R))`` of ``span`` the sum over ``K * K`` points keeps the mean square. The paper's
    initialisation, in which a norm follows, doubles the numbers with every layer.

    Args:
        layer (Involution2d): The involution.
        relu (bool): Whether a ReLU follows, which halves the mean square: then the variance is twice as large. Default:
            False
    """
    points, reduced = math.prod(layer.kernel_size), layer.span.in_channels
    nn.init.normal_(layer.span.weight, std=math.sqrt((4 if relu else 2) / (points * reduced)))
