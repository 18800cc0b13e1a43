"""A convolution, and an involution that refines its features."""

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
    """A ``torch.nn.Conv2d`` that can also return the kernel points of its weight.

    A weight may only be read in its own module's forward: hooks, sharding and offloading may load it for the call and
    remove it afterwards, and a parametrisation makes a new one for each call.
    """

    def forward(self, input: Tensor, kernel_points: bool = False) -> Any:
        """The features; with ``kernel_points`` a pair of them and what :func:`kernel_decompose` gives, copied."""
        weight = self.weight
        features = self._conv_forward(input, weight, self.bias)
        return (features, kernel_decompose(weight).clone()) if kernel_points else features


class InvolutionLayer(NotScriptable, nn.Module):
    """Applies a 2D convolution and adds an involution of the result, with kernels made by attention.

    ::

        features = conv(input)                                          (B, out_channels, Hout, Wout)
        weights  = attention(features, kernel_decompose(conv.weight))   (B, G, KH, KW, Hout, Wout)
        output   = features + involution2d(value(features), weights, padding="same")

    The shape is the convolution's: along each axis ``Out = floor((In + 2*padding - K) / stride) + 1``. The
    convolution's weight is also the attention's learned prior over kernel points. A kernel of one point has a weight
    of 1 after the softmax, so that ``attention`` has nothing to learn.

    Source: the involution is that of Li et al., "Involution: Inverting the Inherence of Convolution for Visual
    Recognition", CVPR 2021, section 3. The kernels are those of :class:`AttentionModule`.

    Args:
        in_channels (int): Channels of the input.
        out_channels (int): Channels of the output.
        kernel_size (int or tuple of int): Size of the convolution's kernel and of the attention's window, odd or even.
        stride (int or tuple of int): Stride of the convolution. Default: 1
        padding (int, tuple of int or str): Padding of the convolution; ``"same"``, for a stride of 1, or ``"valid"``.
            Default: 0
        groups (int, optional): How many kernels each position has; the channels of a group share one. It divides both
            ``out_channels`` and ``max(1, out_channels // 2)``. Default: as many as leave at least 16 channels in each
            group, or 1 if none do
        device (torch.device or str, optional): Where the parameters are made. Default: torch's default device
        dtype (torch.dtype, optional): Type of the parameters. Default: torch's default dtype

    Attributes:
        conv (KernelPointConv2d): The convolution. The layer calls it with ``kernel_points=True`` and gets a pair of
            the features and the kernel points of the weight that made them. Hooks on it see the pair.
        attention (AttentionModule): Makes the kernels.
        value (nn.Conv2d): 1x1 convolution whose result the kernels are applied to.

    Raises:
        ValueError: If an argument is out of range; the message says which.
        TypeError: If an argument has the wrong type.

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
            input (Tensor): ``(B, in_channels, H, W)``.

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
