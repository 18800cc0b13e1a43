"""The involution layer of the paper, in one, two and three dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _arguments, autograd
from ._shared import AVERAGE_POOLS, RELU, ActivationLayer, NormLayer, check_map, pad_argument, per_axis_text
from .kernel_branch import KernelBranch, KernelNormalizer, factory_arguments


class _Involution(KernelBranch):
    """Everything about the layers but the number of axes; :class:`Involution2d` documents it."""

    def __init__(
        self,
        channels: int,
        kernel_size: int | Sequence[int] = 7,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = "same",
        dilation: int | Sequence[int] = 1,
        group_channels: int = 16,
        reduction_ratio: int = 4,
        *,
        groups: int | None = None,
        out_channels: int | None = None,
        norm_layer: NormLayer = "batch",
        activation_layer: ActivationLayer = RELU,
        kernel_normalizer: KernelNormalizer = None,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            channels,
            kernel_size,
            group_channels,
            reduction_ratio,
            groups,
            out_channels,
            norm_layer,
            activation_layer,
            kernel_normalizer,
            bias,
            factory_arguments(device, dtype),
        )
        self.stride = _arguments.per_axis(stride, self.axes, "stride", 1)
        # Without the stride, because conv's "same", which the operation follows, refuses one.
        window = _arguments.complete_window(self.axes, self.kernel_size, 1, padding, dilation)
        same = _arguments.complete_window(self.axes, self.kernel_size, 1, "same", dilation)
        self.padding = padding if isinstance(padding, str) else window.padding
        self.dilation = window.dilation
        self.pool = None
        if max(self.stride) > 1:
            pool: Any = AVERAGE_POOLS[self.axes]
            # What remains of a block at the end is averaged alone, so that every size has its ceil(In / stride).
            self.pool = pool(self.stride, self.stride, ceil_mode=True, count_include_pad=False)
        self._window = window._replace(stride=self.stride)
        self._centres = pad_argument(
            [ours - centred for ours, centred in zip(window.padding, same.padding, strict=True)],
            [ours - centred for ours, centred in zip(window.padding_end, same.padding_end, strict=True)],
        )

    def forward(self, input: Tensor) -> Tensor:
        """Runs the layer.

        Args:
            input: ``(B, channels, *In)``.

        Returns:
            ``(B, out_channels, *Out)``.

        Raises:
            ValueError: ``input`` has the wrong shape, or the kernel is larger than the padded input.
            RuntimeError: from the convolutions, for a dtype or device that is not the parameters'.
        """
        check_map(input, "input", self.channels, self.axes)
        centres = input
        if self._centres is not None:
            _arguments.output_size(input.shape[2:], self._window, "input")  # before cropping fails on it
            centres = F.pad(input, self._centres)
        kernels = self.kernels(centres if self.pool is None else self.pool(centres))
        # The kernels fix the output size, so an odd zero of the padding, at the end, needs no mention.
        window = (self.stride, self._window.padding, self.dilation)
        return autograd.involve(self.values(input, kernels), kernels, *window)

    def extra_repr(self) -> str:
        """The arguments, for printing."""
        parts = self._repr_parts()
        for name in ("stride", "dilation"):
            if max(getattr(self, name)) > 1:
                parts.append(f"{name}={per_axis_text(getattr(self, name))}")
        if self.padding != "same":
            parts.append(f"padding={self.padding!r}")
        return ", ".join(parts)


class Involution1d(_Involution):
    """Involution of sequences with kernels made from them; arguments and formula are :class:`Involution2d`'s.

    Shape:
        ``(B, channels, L)`` to ``(B, out_channels, Lout)``.

    Example:
        >>> Involution1d(64, kernel_size=7, stride=2)(torch.randn(2, 64, 101)).shape
        torch.Size([2, 64, 51])
    """

    axes = 1


class Involution2d(_Involution):
    """Involution with kernels made from its input: what takes the place of a convolution.

    ::

        kernels = normalise(span(activation(norm(reduce(pool(input))))))             (B, G, KH, KW, Hout, Wout)
        output  = involution2d(project(input), kernels, stride, padding, dilation)   (B, out_channels, Hout, Wout)

    ``pool`` is an average pool of size ``stride`` and takes part only with a stride, ``project`` only where
    ``out_channels`` is not ``channels``. Source: Li et al., "Involution: Inverting the Inherence of Convolution
    for Visual Recognition", CVPR 2021, section 3; the defaults are RedNet's. As there, the kernels are not
    normalised by default: clip gradients in training.

    ``padding="same"`` pads ``dilation*(K - 1)`` zeros along each axis, half of them in front and the odd one at
    the end, so that the window of output ``o`` is centred at input ``o*stride`` and ``Out = ceil(In / stride)``,
    whether the stride divides the size or not. For odd kernels without dilation that is the paper's padding,
    ``(K - 1) // 2`` on both sides. The kernel of output ``o`` is made from the mean of the ``stride`` positions
    that begin at its window's centre, or of as many of them as there are. Any other padding gives the output size
    that it gives a convolution, and moves kernels and windows together: the kernel branch then sees the input
    cropped, or extended by zeros, so that it begins at the first window's centre.

    Args:
        channels: channels of the input.
        kernel_size: an integer or one per axis; odd or even.
        stride: positions from one window to the next; an integer or one per axis.
        padding: zeros on both sides, an integer or one per axis; ``"same"`` as above, ``"valid"`` is 0.
        dilation: positions from one kernel point to the next; an integer or one per axis.
        group_channels: how many output channels share a kernel; where there are fewer, all of them do.
        reduction_ratio: the kernel branch narrows to ``channels // reduction_ratio`` channels, at least one.
        groups: the number of groups ``G``, instead of ``group_channels``.
        out_channels: channels of the output; by default ``channels``.
        norm_layer: makes the kernel branch's normalisation from its number of channels; ``"batch"`` is batch
            normalisation, None leaves it out, and ``reduce`` then has a bias.
        activation_layer: makes the kernel branch's activation; None leaves it out.
        kernel_normalizer: None, ``"softmax"`` over the points of a kernel (as in CARAFE and DynamicConv), or a
            callable, which takes ``(B, G, KH*KW, Hout, Wout)`` and keeps the shape.
        bias: whether ``span`` has one: the part of the kernels that all positions share.
        device: where the parameters are made.
        dtype: their type.

    Attributes:
        reduce: 1x1 convolution to the kernel branch's channels.
        norm: the normalisation, or None.
        activation: the activation, or None.
        span: 1x1 convolution to ``G * KH * KW`` channels, in this order, row-major.
        project: 1x1 convolution to ``out_channels``, or None.
        pool: the average pool, or None.

    Shape:
        ``(B, channels, H, W)`` to ``(B, out_channels, Hout, Wout)``, in the memory format of the input and, outside
        of autocast, its dtype.

    Raises:
        ValueError: an argument is out of range; the message says which.
        TypeError: an argument has the wrong type.

    Example:
        >>> Involution2d(64, kernel_size=7, stride=2)(torch.randn(2, 64, 56, 55)).shape
        torch.Size([2, 64, 28, 28])
    """

    axes = 2


class Involution3d(_Involution):
    """Involution of volumes with kernels made from them; arguments and formula are :class:`Involution2d`'s.

    Shape:
        ``(B, channels, D, H, W)`` to ``(B, out_channels, Dout, Hout, Wout)``.

    Example:
        >>> Involution3d(32, kernel_size=(1, 3, 3), stride=(1, 2, 2))(torch.randn(2, 32, 4, 9, 8)).shape
        torch.Size([2, 32, 4, 5, 4])
    """

    axes = 3
