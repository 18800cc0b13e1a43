"""The layer: a convolution whose features are refined by kernels made from themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import _arguments
from ..functional import involution2d
from ._shared import NotScriptable, check_count, check_map
from .attention import AttentionModule, kernel_decompose


class KernelPointConv2d(nn.Conv2d):
    """A ``torch.nn.Conv2d`` that, if asked, also gives the kernel points it has computed with.

    A weight is only to be read inside of its own module's forward: hooks, sharding and offloading may bring it for
    the call and take it away afterwards, and a parametrisation makes it anew each time.
    """

    def forward(self, input: Tensor, kernel_points: bool = False) -> Any:
        """The features; with ``kernel_points`` a pair of them and what :func:`kernel_decompose` gives, copied."""
        weight = self.weight
        features = self._conv_forward(input, weight, self.bias)
        return (features, kernel_decompose(weight).clone()) if kernel_points else features


class InvolutionLayer(NotScriptable, nn.Module):
    """A convolution, plus an involution of its features by kernels made of these and of its weight.

    ::

        features = conv(input)                                          (B, out_channels, Hout, Wout)
        weights  = attention(features, kernel_decompose(conv.weight))   (B, G, KH, KW, Hout, Wout)
        output   = features + involution2d(value(features), weights, padding="same")

    ``conv`` alone fixes the shape: along each axis ``Out = floor((In + 2*padding - K) / stride) + 1``.
    Its weight also takes part as the attention's learned prior over kernel points. With a kernel of one point
    the softmax leaves a weight of 1, so ``attention`` has nothing to learn.

    Source: involution with a kernel shared across the channels of a group is that of Li et al., "Involution:
    Inverting the Inherence of Convolution for Visual Recognition", CVPR 2021, section 3; for the kernel see
    :class:`AttentionModule`.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: of the convolution and of the attention's neighbourhood, an integer or one per axis;
            odd or even.
        stride: of the convolution, an integer or one per axis.
        padding: of the convolution, an integer, one per axis, ``"same"`` (stride 1) or ``"valid"``.
        groups: how many kernels each position has; channels of a group share one. A divisor of both
            ``out_channels`` and ``max(1, out_channels // 2)``. By default as many as leave at
            least 16 channels in each group, and one where that is impossible.
        device: where the parameters are made.
        dtype: their type.

    Attributes:
        conv: the convolution. The layer calls it with ``kernel_points=True``, upon which it returns a pair, the
            features and the kernel points of the weight that made them; hooks on it see the pair.
        attention: the :class:`AttentionModule`.
        value: 1x1 convolution that makes the values that are weighed.

    Raises:
        ValueError: an argument is out of range; the message says which.
        TypeError: an argument has the wrong type.

    Example:
        >>> InvolutionLayer(3, 64, 3)(torch.randn(1, 3, 224, 224)).shape
        torch.Size([1, 64, 222, 222])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        *,
        groups: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels = check_count(in_channels, "in_channels")
        self.out_channels = out_channels = check_count(out_channels, "out_channels")
        sizes = _arguments.per_axis(kernel_size, 2, "kernel_size", 1)
        window = _arguments.complete_window(2, sizes, stride, padding, 1)
        self.kernel_size = (sizes[0], sizes[1])
        self.stride = (window.stride[0], window.stride[1])
        self.padding = padding if isinstance(padding, str) else (window.padding[0], window.padding[1])

        self.conv = KernelPointConv2d(
            in_channels, out_channels, self.kernel_size, self.stride, self.padding, device=device, dtype=dtype
        )
        self.attention = AttentionModule(out_channels, self.kernel_size, groups, device=device, dtype=dtype)
        self.value = nn.Conv2d(out_channels, out_channels, 1, device=device, dtype=dtype)
        self.groups = self.attention.groups

    def forward(self, input: Tensor) -> Tensor:
        """Runs the layer.

        Args:
            input: ``(B, in_channels, H, W)``.

        Returns:
            ``(B, out_channels, Hout, Wout)``, in the memory format of ``input``.

        Raises:
            ValueError: ``input`` has the wrong shape.
            RuntimeError: from the convolution, which refuses a kernel larger than the padded input, and a
                dtype or device that is not the parameters'.
        """
        check_map(input, "input", self.in_channels)
        features, points = self.conv(input, kernel_points=True)
        weights = self.attention(features, points)
        return features + involution2d(self.value(features), weights, padding="same")

    def extra_repr(self) -> str:
        """The arguments, for printing."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding!r}, groups={self.groups}"
        )
