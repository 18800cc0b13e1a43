"""A feature pyramid, for detectors and segmenters on top of a network's maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..layers import Involution2d
from ..layers._shared import NotScriptable, check_count
from ..layers.kernel_branch import factory_arguments
from .blocks import initialise_unit_gain

__all__ = ["FeaturePyramid"]


class FeaturePyramid(NotScriptable, nn.Module):
    """Feature pyramid network: makes maps of several scales with one number of channels from a network's maps.

    ::

        inner[i]  = lateral[i](maps[i]) + repeat(inner[i + 1])    the last without the second term
        levels[i] = output[i](inner[i])

    ``repeat`` is nearest-neighbour interpolation to the size of the finer map (Lin et al., "Feature Pyramid Networks
    for Object Detection", CVPR 2017). The involution neck, ``Involution2d(out_channels, 7)`` in the place of the 3x3
    convolutions ``output``, is that of Li et al., CVPR 2021, section 4.2.

    Args:
        in_channels (sequence of int): Channels of the maps, from the finest to the coarsest: a network's
            ``feature_channels``.
        out_channels (int): Channels of every level. Default: 256
        neck (str): The layer that each level ends with, ``"convolution"`` or ``"involution"``.
            Default: ``"convolution"``
        extra_levels (int): Number of additional levels at the end. Default: 0
        extra (str): What the additional levels are: ``"pool"``, each the previous one at every second position, or
            ``"convolution"``, 3x3 with a stride of 2, the first of the coarsest map and the others of the previous
            level, without an activation between them, as in the RetinaNet of mmdetection. Default: ``"pool"``
        device (torch.device or str, optional): Where the parameters are made. Default: torch's default device
        dtype (torch.dtype, optional): Type of the parameters. Default: torch's default dtype

    Shape:
        A list of ``(B, in_channels[i], H[i], W[i])`` to a list of ``(B, out_channels, H[i], W[i])`` and, for each extra
        level, half the height and width of the one before, rounded up.

    Initialisation:
        Convolutions by Glorot's rule; involutions so that they neither amplify nor weaken.

    Raises:
        ValueError: If an argument is out of range, or the number of maps is wrong; the message says which.

    Example:
        >>> model = nn.Sequential(rednet26(features_only=True), FeaturePyramid((256, 512, 1024, 2048)))
        >>> [level.shape[2] for level in model(torch.randn(1, 3, 64, 64))]
        [16, 8, 4, 2]
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int = 256,
        *,
        neck: str = "convolution",
        extra_levels: int = 0,
        extra: str = "pool",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if neck not in ("convolution", "involution"):
            raise ValueError(f'neck must be "convolution" or "involution", not {neck!r}.')
        if extra not in ("pool", "convolution"):
            raise ValueError(f'extra must be "pool" or "convolution", not {extra!r}.')
        if not in_channels:
            raise ValueError("in_channels must name at least one map.")
        out_channels = check_count(out_channels, "out_channels")
        factory = factory_arguments(device, dtype)
        self.extra_levels = check_count(extra_levels, "extra_levels", least=0)
        self.lateral = nn.ModuleList(
            nn.Conv2d(check_count(channels, "in_channels"), out_channels, 1, **factory)
            for channels in in_channels
        )
        self.output = nn.ModuleList(
            nn.Conv2d(out_channels, out_channels, 3, padding=1, **factory)
            if neck == "convolution"
            else Involution2d(out_channels, 7, **factory)
            for _ in in_channels
        )
        self.extra = None
        if extra == "convolution":
            inputs = (in_channels[-1], *(out_channels for _ in range(1, self.extra_levels)))
            self.extra = nn.ModuleList(
                nn.Conv2d(channels, out_channels, 3, 2, 1, **factory)
                for channels in inputs[: self.extra_levels]
            )
        for module in (*self.lateral, *self.output, *(self.extra or ())):
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            else:
                initialise_unit_gain(module)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The levels, from the finest to the coarsest."""
        _check_count_of(maps, len(self.lateral))
        inner = [lateral(maps[level]) for level, lateral in enumerate(self.lateral)]
        for level in range(len(inner) - 2, -1, -1):
            inner[level] = inner[level] + F.interpolate(inner[level + 1], size=inner[level].shape[2:])
        levels = [output(each) for output, each in zip(self.output, inner, strict=True)]
        coarsest = maps[-1]
        for number in range(self.extra_levels):
            if self.extra is None:
                coarsest = F.max_pool2d(levels[-1], 1, 2)  # a copy, for changes in place
            else:
                coarsest = self.extra[number](coarsest)
            levels.append(coarsest)
        return levels


@fx.wrap
def _check_count_of(maps: Sequence[Tensor], count: int) -> None:
    if len(maps) != count:
        raise ValueError(f"This feature pyramid takes {count} maps, but got {len(maps)}.")
