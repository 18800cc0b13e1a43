"""Kernels made by attention: scores of each position's window, plus a learned prior.

The scores are those of local self-attention (Ramachandran et al., "Stand-Alone Self-Attention in Vision Models",
NeurIPS 2019). Here they are kernels of an involution, which the channels of a group share (Li et al., CVPR 2021, whose
section 3 leaves open how kernels are made).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from .. import _arguments
from .._tracing import shape
from ..functional import local_correlation2d
from ._shared import NotScriptable, check_count, check_map, softmax_over_points

# The width of a group in RedNet, Li et al.'s network: the default where it divides the channels.
GROUP_WIDTH = 16


def kernel_decompose(weight: Tensor) -> Tensor:
    """Decomposes the weight of a convolution into a matrix ``(out, in)`` for each kernel point, in row-major order.

    ``points[k, o, i] = weight[o, i, *unravel(k)]``, so that the convolution is the sum over ``k`` of ``points[k]``
    applied to the input shifted by ``k``. The result is differentiable. It is a view of ``weight`` if the kernel axes
    can be merged without a copy, as in contiguous and channels_last storage.

    Args:
        weight (Tensor): ``(out, in, *K)`` with one, two or three kernel axes, as in ``torch.nn.Conv1d`` to ``Conv3d``.

    Returns:
        Tensor: ``(prod(K), out, in)``.

    Raises:
        TypeError: If ``weight`` is not a tensor.
        ValueError: If ``weight`` does not have one, two or three kernel axes.
    """
    _check_weight(weight)
    return weight.flatten(2).permute(2, 0, 1)


@fx.wrap
def _check_weight(weight: Tensor) -> None:
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight must be a tensor, not {type(weight).__name__}.")
    if not 3 <= weight.dim() <= 5:
        raise ValueError(
            "weight must be (out_channels, in_channels, *kernel_size) with one, two or three kernel axes, "
            f"but its shape is {tuple(shape(weight))}."
        )


class AttentionModule(NotScriptable, nn.Module):
    """Makes an involution's kernels, one for each position and group, by attention to the window around it.

    With ``query`` and ``key`` made by 1x1 convolutions to ``R = max(1, channels // 2)`` channels::

        score[b, g, k, o] = (R / G)**-0.5 * sum over c in g of query[b, c, o] * key[b, c, o + k - front]
        prior[g, k]       = (channels / G * in)**-0.5 * sum over o in g, i of kernel_points[k, o, i]
        weight[b, g, :, o] = softmax over k of (score[b, g, k, o] + prior[g, k])

    ``front = (K - 1) // 2`` along each axis, which keeps the size. Positions outside the map are zeros with a score
    of 0. The factors keep score and prior at one scale for every number of channels.

    Source: the scores are those of Ramachandran et al., NeurIPS 2019. A kernel shared by the channels of a group is
    that of Li et al., CVPR 2021, section 3.

    Args:
        channels (int): Channels of the features.
        kernel_size (int or tuple of int): Size of the window, odd or even.
        groups (int, optional): ``G``, which divides both ``channels`` and ``R``. Default: as many as leave at least 16
            channels in each group, or 1 if none do
        device (torch.device or str, optional): Where the parameters are made. Default: torch's default device
        dtype (torch.dtype, optional): Type of the parameters. Default: torch's default dtype

    Attributes:
        query (nn.Conv2d): 1x1 convolution, with a bias.
        key (nn.Conv2d): 1x1 convolution without a bias, which would add the same number to all scores of a window. The
            softmax would cancel it, except at the map's border.

    Raises:
        ValueError: If an argument is out of range; the message says which.
        TypeError: If an argument has the wrong type.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int | Sequence[int],
        groups: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.channels = channels = check_count(channels, "channels")
        self.kernel_size = _arguments.per_axis(kernel_size, 2, "kernel_size", 1)
        reduced = max(1, channels // 2)
        self.groups = _default_groups(channels, reduced) if groups is None else check_count(groups, "groups")
        if channels % self.groups != 0 or reduced % self.groups != 0:
            raise ValueError(
                f"groups must divide the {channels} channels and the {reduced} channels of query and key, "
                f"but it is {groups}; {_divisors_in_words(math.gcd(channels, reduced))} would do."
            )
        self._scale = (reduced // self.groups) ** -0.5
        self.query = nn.Conv2d(channels, reduced, 1, device=device, dtype=dtype)
        self.key = nn.Conv2d(channels, reduced, 1, bias=False, device=device, dtype=dtype)

    def forward(self, features: Tensor, kernel_points: Tensor) -> Tensor:
        """Makes the kernels.

        Args:
            features (Tensor): ``(B, channels, H, W)``.
            kernel_points (Tensor): ``(prod(K), channels, in)``, from :func:`kernel_decompose`.

        Returns:
            Tensor: ``(B, G, *K, H, W)``, whose kernels each sum to 1, in the memory format that
            :func:`involution.local_correlation2d` gives.

        Raises:
            ValueError: If ``features`` or ``kernel_points`` has the wrong shape.
        """
        check_map(features, "features", self.channels)
        query, key = self.query(features), self.key(features)
        scores = local_correlation2d(query, key, self.kernel_size, self.groups, padding="same")
        prior = _prior(kernel_points, self.kernel_size, self.channels, self.groups)
        weights = softmax_over_points(scores.flatten(2, 3) * self._scale + prior[:, :, None, None])
        return weights.unflatten(2, self.kernel_size)

    def extra_repr(self) -> str:
        """The arguments, for printing."""
        return f"{self.channels}, kernel_size={self.kernel_size}, groups={self.groups}"


@fx.wrap
def _prior(kernel_points: Tensor, kernel_size: Sequence[int], channels: int, groups: int) -> Tensor:
    """``(G, prod(K))``: the prior of each group and point, from the convolution's kernel points."""
    expected = (math.prod(kernel_size), channels)
    if kernel_points.dim() != 3 or tuple(shape(kernel_points)[:2]) != expected:
        raise ValueError(
            f"kernel_points must be {expected} followed by the input channels, one matrix for each point "
            f"of a kernel of size {kernel_size}, but its shape is {tuple(shape(kernel_points))}."
        )
    grouped = kernel_points.unflatten(1, (groups, channels // groups))
    # The sum of n independent weights has sqrt(n) times their scale.
    return grouped.sum((2, 3)).t() * math.prod(shape(grouped)[2:]) ** -0.5


def _default_groups(channels: int, reduced: int) -> int:
    common = math.gcd(channels, reduced)
    fitting = (g for g in range(1, common + 1) if common % g == 0 and channels // g >= GROUP_WIDTH)
    return max(fitting, default=1)


def _divisors_in_words(number: int) -> str:
    divisors = [str(d) for d in range(1, number + 1) if number % d == 0]
    return divisors[0] if len(divisors) == 1 else f"{', '.join(divisors[:-1])} or {divisors[-1]}"
