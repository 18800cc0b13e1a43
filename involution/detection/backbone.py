"""RedNet with a feature pyramid: the backbone of a detector."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .. import _arguments
from ..models import FeaturePyramid, RedNet, create_model, load_checkpoint

__all__ = ["RedNetFPN", "rednet_fpn_backbone"]


class RedNetFPN(nn.Module):
    """A RedNet that returns maps, and a feature pyramid on them, as torchvision's detectors take a backbone.

    Args:
        body (RedNet): Made with ``features_only=True``.
        out_channels (int): Channels of every level. Default: 256
        neck (str): ``"convolution"`` or ``"involution"``: the layer behind each level of the pyramid. Default:
            ``"involution"``
        extra (str): ``"pool"`` for one more level, named ``"pool"``, as in Faster R-CNN; ``"convolution"`` for two,
            ``"p6"`` and ``"p7"``, as in RetinaNet, with no activation between them (torchvision's have a ReLU there).
            Default: ``"pool"``

    Attributes:
        out_channels: channels of every level, which torchvision's detectors read.
        strides: pixels of the image for one position, of every level.

    Shape:
        ``(B, body.in_channels, H, W)`` to an ordered dictionary of ``(B, out_channels, h, w)``, from the finest level
        to the coarsest: ``"0"``, ``"1"``, ... and the extra ones.

    Raises:
        ValueError: the body returns no maps, or ``neck`` or ``extra`` is unknown.
    """

    def __init__(
        self, body: RedNet, out_channels: int = 256, *, neck: str = "involution", extra: str = "pool"
    ) -> None:
        super().__init__()
        if not body.features_only:
            raise ValueError("The body must be made with features_only=True, so that it returns maps.")
        names = ["pool"] if extra == "pool" else ["p6", "p7"]
        self.body = body
        self.fpn = FeaturePyramid(
            body.feature_channels, out_channels, neck=neck, extra_levels=len(names), extra=extra
        )
        self.out_channels = out_channels
        self.names = [*map(str, range(len(body.feature_channels))), *names]
        last = body.feature_strides[-1]
        self.strides = [*body.feature_strides, *(last << (level + 1) for level in range(len(names)))]

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """The levels by name."""
        return OrderedDict(zip(self.names, self.fpn(self.body(images)), strict=True))


def rednet_fpn_backbone(
    name: str,
    *,
    neck: str = "involution",
    out_channels: int = 256,
    returned_layers: Sequence[int] | None = None,
    extra: str = "pool",
    weights: str | os.PathLike[str] | None = None,
    trainable_layers: int | None = None,
    stem_kernel_size: int = 7,
    **arguments: Any,
) -> RedNetFPN:
    """A RedNet by name with a feature pyramid, for any detector of torchvision.

    Args:
        name (str): One of :func:`involution.models.list_models`.
        neck (str): As for :class:`RedNetFPN`. Default: ``"involution"``
        out_channels (int): Channels of every level. Default: 256
        returned_layers (sequence of int, optional): The stages, counted from 1, whose maps go into the pyramid; by
            default all.
        extra (str): As for :class:`RedNetFPN`. Default: ``"pool"``
        weights (str or os.PathLike, optional): A file that :func:`involution.models.load_checkpoint` reads, of a
            classifier, backbone or detector, whose stem's size is taken. The norms' statistics are then fixed, and
            their scale and shift train.
        trainable_layers (int, optional): So many of the last stages train, the stem being the last to; the rest is
            fixed. For a network of four stages, 5 is everything and 3 fixes stem and first stage, the official
            ``frozen_stages=1``. By default as in torchvision 3 with ``weights`` (two less than everything) and
            everything without.
        stem_kernel_size (int): Kernel size of the stem's involution, 7 in the published detectors. Default: 7
        **arguments: Further ones for :class:`involution.models.RedNet`.

    Raises:
        ValueError: an argument is out of range.
        CheckpointError: the file does not fit.
    """
    indices = None
    if returned_layers is not None:
        indices = [_arguments.integer(layer, "returned_layers") - 1 for layer in returned_layers]
    body = create_model(
        name, features_only=True, out_indices=indices, stem_kernel_size=stem_kernel_size, **arguments
    )
    stages = len(body.stages)
    if trainable_layers is None:
        trainable_layers = stages + 1 if weights is None else stages - 1
    if not 0 <= _arguments.integer(trainable_layers, "trainable_layers") <= stages + 1:
        raise ValueError(
            f"trainable_layers must be from 0 to {stages + 1}, the stages and the stem of {name}, not "
            f"{trainable_layers}."
        )
    if weights is not None:
        load_checkpoint(body, weights)
        # The statistics of two images are too noisy to train with. Those of random weights mean nothing.
        body.freeze_norms(affine=False)
    body.freeze_stages(stages - trainable_layers)
    return RedNetFPN(body, out_channels, neck=neck, extra=extra)
