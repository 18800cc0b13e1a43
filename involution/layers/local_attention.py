"""Local self-attention, made of a local correlation and an involution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from .. import _arguments, _library, _tracing
from .._docstrings import like_2d
from ._shared import CONVOLUTIONS, NotScriptable, check_count, check_map, per_axis_text, softmax_over_points
from .kernel_branch import factory_arguments


class _LocalAttention(NotScriptable, nn.Module):
    """Everything about the layers but the number of axes; :class:`LocalAttention2d` documents it."""

    axes: int

    def __init__(
        self,
        channels: int,
        kernel_size: int | Sequence[int] = 7,
        stride: int | Sequence[int] = 1,
        dilation: int | Sequence[int] = 1,
        num_heads: int | None = None,
        *,
        out_channels: int | None = None,
        relative_position_bias: bool = True,
        bias: bool = True,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.channels = channels = check_count(channels, "channels")
        self.out_channels = channels if out_channels is None else check_count(out_channels, "out_channels")
        self.kernel_size = _arguments.per_axis(kernel_size, self.axes, "kernel_size", 1)
        self.stride = _arguments.per_axis(stride, self.axes, "stride", 1)
        window = _arguments.complete_window(self.axes, self.kernel_size, 1, "same", dilation)
        self.dilation = window.dilation
        self._window = window._replace(stride=self.stride)
        if num_heads is None:
            num_heads = math.gcd(channels, max(1, channels // 32))
        self.num_heads = num_heads = check_count(num_heads, "num_heads")
        if channels % num_heads != 0:
            raise ValueError(f"num_heads must divide the {channels} channels, but it is {num_heads}.")

        factory = factory_arguments(device, dtype)
        convolution: Any = CONVOLUTIONS[self.axes]
        # A convolution of one point with a stride takes the positions at the windows' centres.
        self.query = convolution(channels, channels, 1, self.stride, bias=bias, **factory)
        self.key = convolution(channels, channels, 1, bias=bias, **factory)
        self.value = convolution(channels, channels, 1, bias=bias, **factory)
        self.project = convolution(channels, self.out_channels, 1, bias=bias, **factory)
        self.position_bias: nn.Parameter | None = None
        if relative_position_bias:
            self.position_bias = nn.Parameter(torch.empty(num_heads, *self.kernel_size, **factory))
        self.dropout = nn.Dropout(dropout) if dropout else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Starts anew: Xavier's uniform distribution for the convolutions, zero for biases and positions."""
        for module in (self.query, self.key, self.value, self.project):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if self.position_bias is not None:
            nn.init.zeros_(self.position_bias)

    def forward(self, input: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        """Runs the layer.

        Args:
            input (Tensor): ``(B, channels, *In)``.
            key_padding_mask (Tensor, optional): ``(B, *In)``, as in ``torch.nn.MultiheadAttention``: boolean, where
                True means that a position is padding, which no query attends to, as if it lay outside of the map; or
                floating-point, added to the scores of that key, where ``-inf`` means padding. What comes out at padding
                is of no use, but finite.

        Returns:
            ``(B, out_channels, *Out)`` with ``Out = ceil(In / stride)``.

        Raises:
            ValueError: ``input`` or ``key_padding_mask`` has the wrong shape, or they are on different devices.
            TypeError: ``key_padding_mask`` is neither boolean nor floating-point.
            RuntimeError: from the convolutions, for a dtype or device that is not the parameters'.
        """
        check_map(input, "input", self.channels, self.axes)
        _check_mask(key_padding_mask, input)
        query = self.query(input) * (self.channels // self.num_heads) ** -0.5
        key, value = self.key(input), self.value(input)
        # The queries fix the output size, so an odd zero of the padding, at the end, needs no mention.
        window = (self.stride, self._window.padding, self.dilation)
        scores = _library.local_correlation(query, key, self.kernel_size, self.num_heads, *window)
        weights = _weights(scores, self.position_bias, input.shape[2:], self._window, key_padding_mask)
        if self.dropout is not None:
            weights = self.dropout(weights)
        return self.project(_library.involution(_without_padding(value, key_padding_mask), weights, *window))

    def extra_repr(self) -> str:
        """The arguments, for printing."""
        parts = [str(self.channels)]
        if self.out_channels != self.channels:
            parts.append(f"out_channels={self.out_channels}")
        parts += [f"kernel_size={per_axis_text(self.kernel_size)}", f"num_heads={self.num_heads}"]
        for name in ("stride", "dilation"):
            if max(getattr(self, name)) > 1:
                parts.append(f"{name}={per_axis_text(getattr(self, name))}")
        return ", ".join(parts)


@fx.wrap
def _check_mask(mask: Tensor | None, input: Tensor) -> None:
    if mask is None:
        return
    if not isinstance(mask, Tensor) or not (mask.dtype == torch.bool or mask.is_floating_point()):
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"key_padding_mask must be a boolean or floating-point tensor, not {kind}.")
    batch, _, *space = _tracing.shape(input)
    given, expected = tuple(_tracing.shape(mask)), (batch, *space)
    if given != expected:
        raise ValueError(
            f"key_padding_mask must have shape {expected}, one element for each position of the input, but its "
            f"shape is {given}."
        )
    if mask.device != input.device:
        raise ValueError(
            f"key_padding_mask must be on the device of the input, {input.device}, but it is on {mask.device}."
        )


def _padding(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Where a mask excludes keys; a number may be too low for the dtype that the scores have."""
    return mask if mask.dtype == torch.bool else mask.to(dtype) == -math.inf


@fx.wrap
def _without_padding(value: Tensor, mask: Tensor | None) -> Tensor:
    """Zeros at padding, as outside of the map: for queries that have no other neighbours."""
    return value if mask is None else value.masked_fill(_padding(mask, value.dtype)[:, None], 0)


@fx.wrap
def _weights(
    scores: Tensor,
    position_bias: Tensor | None,
    size: Sequence[int],
    window: _arguments.Window,
    mask: Tensor | None,
) -> Tensor:
    """``(B, heads, *K, *Out)``: the softmax over the points of a neighbourhood that lie in the map."""
    axes = len(window.stride)
    if position_bias is not None:
        bias = position_bias.to(scores.dtype)
        scores = scores + bias.reshape(*bias.shape, *(1,) * axes)
    outside = _outside(scores, size, window)
    if mask is not None:
        padding = _padding(mask, scores.dtype)
        if mask.dtype != torch.bool:
            scores = scores + _neighbours(mask.masked_fill(padding, 0), scores, window)
        outside = outside | _neighbours(padding, scores, window).bool()
    # The lowest finite number, because where no point lies in the map, the softmax of -inf would be NaN.
    scores = scores.masked_fill(outside, torch.finfo(scores.dtype).min)
    points = scores.flatten(2, 1 + axes) if axes > 1 else scores
    return softmax_over_points(points).unflatten(2, window.kernel_size)


def _neighbours(map: Tensor, scores: Tensor, window: _arguments.Window) -> Tensor:
    """``(B, 1, *K, *Out)``: what a ``(B, *In)`` map holds at every point of every neighbourhood; 0 outside of it."""
    ones = scores.new_ones((scores.shape[0], 1, *scores.shape[2 + len(window.stride) :]))
    steps = (window.stride, window.padding, window.dilation)
    return _library.local_correlation(ones, map[:, None].to(scores.dtype), window.kernel_size, 1, *steps)


def _outside(scores: Tensor, size: Sequence[int], window: _arguments.Window) -> Tensor:
    """``(*K, *Out)``: whether the kernel point ``k`` of the output ``o`` lies outside of the map."""
    axes, outside = len(window.stride), None
    for axis, length in enumerate(size):
        points = torch.arange(window.kernel_size[axis], device=scores.device) * window.dilation[axis]
        centres = torch.arange(scores.shape[2 + axes + axis], device=scores.device) * window.stride[axis]
        position = points[:, None] + centres - window.padding[axis]
        beyond = (position < 0) | (position >= length)
        shape = [1] * (2 * axes)
        shape[axis], shape[axes + axis] = beyond.shape
        beyond = beyond.reshape(shape)
        outside = beyond if outside is None else outside | beyond
    assert outside is not None
    return outside


class LocalAttention2d(_LocalAttention):
    """Applies 2D local self-attention: multi-head attention of each position to the window around it.

    For each head, with ``D = channels / num_heads`` and the head's channels of the 1x1 convolutions of the input::

        score[k, o]  = D**-0.5 * sum over c of query[c, o] * key[c, o*stride - front + k*dilation] + position_bias[k]
        weight[:, o] = softmax of score[:, o] over the points k that lie in the map
        output[c, o] = sum over k of weight[k, o] * value[c, o*stride - front + k*dilation]

    followed by a 1x1 convolution of the output. ``front = dilation*(K - 1) // 2`` along each axis, so that windows are
    centred at ``o*stride``. The first line is a local correlation, the last an involution.

    At the borders of the map windows are masked, not shifted: a position there attends to the part of its window that
    lies in the map. So this is the attention of Ramachandran et al., "Stand-Alone Self-Attention in Vision Models",
    NeurIPS 2019. It is not the neighbourhood attention of Hassani et al., CVPR 2023 (NATTEN), which shifts windows
    inwards and gives every position as many neighbours. The position bias, a learned number for each head and offset,
    is that of Liu et al., "Swin Transformer", ICCV 2021.

    Args:
        channels (int): Channels of the input, and of query, key and value.
        kernel_size (int or tuple of int): Size of the window, odd or even. Default: 7
        stride (int or tuple of int): Step from one query to the next. Default: 1
        dilation (int or tuple of int): Step from one point of the window to the next. Default: 1
        num_heads (int, optional): A divisor of ``channels``. Default: the greatest common divisor of ``channels`` and
            ``channels // 32``
        out_channels (int, optional): Channels of the output. Default: ``channels``
        relative_position_bias (bool): Whether there is a ``position_bias``. Default: True
        bias (bool): Whether the 1x1 convolutions have a bias. Default: True
        dropout (float): Probability that a weight is set to zero in training. Default: 0.0
        device (torch.device or str, optional): Where the parameters are made. Default: torch's default device
        dtype (torch.dtype, optional): Type of the parameters. Default: torch's default dtype

    Attributes:
        query (nn.Module): 1x1 convolution, which has the stride.
        key (nn.Module): 1x1 convolution.
        value (nn.Module): 1x1 convolution.
        project (nn.Module): 1x1 convolution of the output.
        position_bias (nn.Parameter or None): ``(num_heads, KH, KW)``, zero at first.

    Shape:
        ``(B, channels, H, W)`` and, optionally, a ``(B, H, W)`` key padding mask to
        ``(B, out_channels, ceil(H / stride), ceil(W / stride))``.

    Raises:
        ValueError: If an argument is out of range; the message says which.
        TypeError: If an argument has the wrong type.

    Example:
        >>> LocalAttention2d(64, kernel_size=7, num_heads=4)(torch.randn(2, 64, 14, 15)).shape
        torch.Size([2, 64, 14, 15])
    """

    axes = 2


@like_2d(LocalAttention2d)
class LocalAttention1d(_LocalAttention):
    """Applies 1D local self-attention, to a sequence; :class:`LocalAttention2d` with one axis.

    Example:
        >>> LocalAttention1d(64, kernel_size=9)(torch.randn(2, 64, 100)).shape
        torch.Size([2, 64, 100])
    """

    axes = 1


@like_2d(LocalAttention2d)
class LocalAttention3d(_LocalAttention):
    """Applies 3D local self-attention, to a volume; :class:`LocalAttention2d` with three axes.

    Example:
        >>> LocalAttention3d(32, kernel_size=3, stride=(1, 2, 2))(torch.randn(2, 32, 4, 9, 8)).shape
        torch.Size([2, 32, 4, 5, 4])
    """

    axes = 3
