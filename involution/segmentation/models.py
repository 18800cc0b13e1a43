"""Segmenters on RedNet: Semantic FPN and UPerNet."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from ..models import FeaturePyramid, RedNet, create_model, load_checkpoint
from .heads import FCNHead, SemanticFPNHead, UPerHead, resize
from .official import NAMES

__all__ = ["Segmenter", "semantic_fpn", "upernet"]

Path = str | os.PathLike[str]


class Segmenter(nn.Module):
    """A RedNet, what refines its maps, and a head that scores the classes at every position.

    Args:
        backbone (RedNet): Made with ``features_only=True``; a RedNet, whose stages and norms can be frozen.
        head (nn.Module): Takes the maps, or the neck's levels, and returns ``(B, num_classes, h, w)``.
        neck (nn.Module, optional): Takes the backbone's maps and returns as many levels, or None.
        auxiliary (nn.Module, optional): Takes the map of the last stage but one, in training alone, for a second loss;
            or None.

    Shape:
        ``(B, C, H, W)`` of any size to ``{"out": (B, num_classes, H, W)}``, scores before softmax, as of torchvision's
        segmenters; in training with an auxiliary head ``"aux"`` too, of the same shape.

    Example:
        >>> model = semantic_fpn("rednet26", num_classes=19).eval()
        >>> model(torch.randn(1, 3, 65, 97))["out"].shape
        torch.Size([1, 19, 65, 97])
    """

    official_names = NAMES

    def __init__(
        self,
        backbone: RedNet,
        head: nn.Module,
        neck: nn.Module | None = None,
        auxiliary: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.head = head
        self.auxiliary = auxiliary
        self.to(backbone.stem.conv1.weight)  # where the backbone is, and of its dtype

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Scores at every pixel of normalised images."""
        size = images.shape[2:]
        maps = self.backbone(images)
        levels = maps if self.neck is None else self.neck(maps)
        scores = {"out": resize(self.head(levels), size)}
        if self.auxiliary is not None and self.training:
            scores["aux"] = resize(self.auxiliary(maps[-2]), size)
        return scores


def semantic_fpn(
    backbone: str | RedNet,
    num_classes: int = 19,
    *,
    neck: str = "involution",
    neck_channels: int = 256,
    channels: int = 128,
    dropout: float = 0.1,
    weights_backbone: Path | None = None,
    **arguments: Any,
) -> Segmenter:
    """Semantic FPN on a RedNet: a feature pyramid and the sum of its levels.

    Sources: Kirillov et al., "Panoptic Feature Pyramid Networks", CVPR 2019; with the involution neck, Li et al., CVPR
    2021, section 4.2. The defaults are the latter's for Cityscapes: 16.4 M parameters with RedNet-50.

    Args:
        backbone (str or RedNet): Its name, such as ``"rednet50"``, or a RedNet made with ``features_only=True``.
        num_classes (int): How many scores a pixel gets; 19 are Cityscapes'. Default: 19
        neck (str): ``"involution"`` or ``"convolution"``, of :class:`involution.models.FeaturePyramid`. Default:
            ``"involution"``
        neck_channels (int): Channels of the pyramid's levels. Default: 256
        channels (int): Channels of their sum. Default: 128
        dropout (float): Probability to zero a channel of the sum, in training. Default: 0.1
        weights_backbone (str or os.PathLike, optional): A file for the backbone, any that
            :func:`involution.models.load_checkpoint` reads.
        **arguments: For the backbone by name: :class:`involution.models.RedNet`'s. The stem's involution is 7x7 unless
            ``stem_kernel_size`` says otherwise, as in the official code, or the weights.

    Raises:
        ValueError: an argument is out of range, or does not go with a backbone that is there already.
        CheckpointError: ``weights_backbone`` does not fit.
    """
    network = _backbone(backbone, weights_backbone, arguments)
    pyramid = FeaturePyramid(network.feature_channels, neck_channels, neck=neck)
    head = SemanticFPNHead(neck_channels, network.feature_strides, num_classes, channels, dropout)
    return Segmenter(network, head, pyramid)


def upernet(
    backbone: str | RedNet,
    num_classes: int = 19,
    *,
    channels: int = 512,
    auxiliary_channels: int = 256,
    dropout: float = 0.1,
    weights_backbone: Path | None = None,
    **arguments: Any,
) -> Segmenter:
    """UPerNet on a RedNet, with an auxiliary head for training, whose loss officially counts 0.4.

    Sources: Xiao et al., "Unified Perceptual Parsing for Scene Understanding", ECCV 2018; Li et al., CVPR 2021,
    section 4.2. 56.4 M parameters with RedNet-50. Training needs at least two images in a batch.

    Args:
        backbone (str or RedNet): As for :func:`semantic_fpn`.
        num_classes (int): How many scores a pixel gets; 19 are Cityscapes'. Default: 19
        channels (int): Channels inside the head. Default: 512
        auxiliary_channels (int): Channels inside the auxiliary head; 0 leaves it out. Default: 256
        dropout (float): Probability to zero a channel before a classifier, in training. Default: 0.1
        weights_backbone (str or os.PathLike, optional): As for :func:`semantic_fpn`.
        **arguments: As for :func:`semantic_fpn`.

    Raises:
        ValueError: an argument is out of range, or does not go with a backbone that is there already.
        CheckpointError: ``weights_backbone`` does not fit.
    """
    network = _backbone(backbone, weights_backbone, arguments)
    widths, auxiliary = network.feature_channels, None
    head = UPerHead(widths, num_classes, channels, dropout=dropout)
    if auxiliary_channels:
        auxiliary = FCNHead(widths[-2], num_classes, auxiliary_channels, dropout=dropout)
    return Segmenter(network, head, auxiliary=auxiliary)


def _backbone(backbone: str | RedNet, weights: Path | None, arguments: dict[str, Any]) -> RedNet:
    if isinstance(backbone, str):
        backbone = create_model(backbone, **{"features_only": True, "stem_kernel_size": 7, **arguments})
    elif arguments:
        raise ValueError(f"The backbone is there already, so {', '.join(arguments)} cannot change it.")
    if not backbone.features_only:
        raise ValueError("The backbone returns no maps; make it with features_only=True.")
    if weights is not None:
        load_checkpoint(backbone, weights)
    return backbone


def build(state: Mapping[str, Tensor], network: Mapping[str, Any], **arguments: Any) -> Segmenter:
    """The segmenter that has these tensors, by our names, around a RedNet of these arguments.

    Raises:
        KeyError: a tensor that tells the architecture is missing.
    """
    backbone = RedNet(**network, features_only=True)
    num_classes, channels = state["head.classifier.weight"].shape[:2]
    found: dict[str, Any] = {"num_classes": num_classes, "channels": channels}
    if "head.fusion.conv.weight" in state:
        auxiliary = state.get("auxiliary.classifier.weight")
        found["auxiliary_channels"] = 0 if auxiliary is None else auxiliary.shape[1]
        return upernet(backbone, **{**found, **arguments})
    found["neck_channels"] = state["neck.lateral.0.weight"].shape[0]
    found["neck"] = "convolution" if "neck.output.0.weight" in state else "involution"
    return semantic_fpn(backbone, **{**found, **arguments})


def semantic_fpn_rednet_tiny(num_classes: int = 11, **arguments: Any) -> Segmenter:
    """A small Semantic FPN, not published, for images of about 64 to 256 pixels and few classes.

    Arguments are :func:`semantic_fpn`'s. RedNet has three stages of one, two and two blocks, widths of 16, 32 and 64,
    and a stem that reduces by four; pyramid and head have 64 channels. 0.33 M parameters.
    """
    settings = {"blocks": (1, 2, 2), "stem": "imagenet", "neck_channels": 64, "channels": 64, **arguments}
    return semantic_fpn("rednet_tiny", num_classes, **settings)


def _builder(make: Callable[..., Segmenter], network: str) -> Callable[..., Segmenter]:
    def build(num_classes: int = 19, **arguments: Any) -> Segmenter:
        return make(network, num_classes, **arguments)

    build.__name__ = build.__qualname__ = f"{make.__name__}_{network}"
    build.__doc__ = f":func:`{make.__name__}` on {network}, with its further arguments."
    return build


BUILDERS = {
    build.__name__: build
    for make in (semantic_fpn, upernet)
    for build in (_builder(make, f"rednet{depth}") for depth in (26, 38, 50, 101, 152))
}
