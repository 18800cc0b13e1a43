"""RedNet: a residual network with involution in the place of its 3x3 convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from .. import _arguments
from .._tracing import shape
from ..layers._shared import NormLayer, NotScriptable, check_count, make_norm
from ..layers.kernel_branch import factory_arguments
from .blocks import POOLS, Bottleneck, Stem, initialise
from .freezing import Freezing
from .official import REDNET
from .recompute import checkpoint_block
from .stages import geometry, rising_indices, stage_indices

__all__ = ["RedNet"]


class RedNet(Freezing, NotScriptable):
    """RedNet: a stem, stages of bottlenecks with involution, average pooling and a linear head.

    Source: Li et al., "Involution: Inverting the Inherence of Convolution for Visual Recognition", CVPR 2021,
    section 4.1: ResNet's bottlenecks with every 3x3 convolution replaced, and an involution in the stem. The
    defaults are the paper's.

    Args:
        blocks (sequence of int): Number of bottlenecks of each stage.
        widths (sequence of int): Channels of each stage's involutions. The stage's output has ``expansion`` times as
            many. Default: (64, 128, 256, 512)
        strides (sequence of int): Stride of each stage's first block. Default: (1, 2, 2, 2)
        dilations (sequence of int): Dilation of each stage's involutions. Default: (1, 1, 1, 1)
        stem (str): ``"imagenet"`` divides height and width by four. ``"small"`` keeps them, for images of 8x8 to about
            64x64. Default: ``"imagenet"``
        stem_channels (int): Channels of the stem's output; its inner layers have half as many. Default: 64
        stem_kernel_size (int): Kernel size of the stem's involution: 3 in the published classifiers, 7 in the published
            backbones for detection and segmentation. Default: 3
        kernel_size (int): Kernel size of the other involutions. Default: 7
        group_channels (int): Number of channels that share a kernel. Default: 16
        expansion (int): Ratio of a bottleneck's output channels to its width. Default: 4
        output_stride (int, optional): Ratio of the image's size to that of the last map. If it is smaller than the
            product of the strides, the last strides become dilations, as in timm. Default: the product of the strides
        num_classes (int): Number of the head's outputs. With 0 there is no head, and the network returns the pooled
            features. Default: 1000
        global_pool (str): Pooling of the features: ``"avg"``, ``"max"``, ``"avgmax"`` (the mean of both),
            ``"catavgmax"`` (both, concatenated) or ``""``. Without pooling the head scores every position of the map,
            and without a head the network returns the map. Default: ``"avg"``
        in_channels (int): Channels of the image. Default: 3
        features_only (bool): Return a list of feature maps. There is no head then, and no stage after the last map.
            Default: False
        out_indices (int or sequence of int, optional): The stages whose maps ``features_only`` returns. They count
            from 0, or with negative numbers from the end. An integer n means the last n stages, None all.
            Default: None
        drop_path (float): Probability of the last block to drop its residual branch in training. It grows linearly from
            0 at the first block. Default: 0.0
        dropout (float): Probability that a pooled feature is set to zero in training. Default: 0.0
        norm_layer (callable or str): A class or callable that makes a normalisation from its number of channels;
            ``"batch"`` is batch normalisation. Default: ``"batch"``
        device (torch.device or str, optional): Where the parameters are made. Default: torch's default device
        dtype (torch.dtype, optional): Type of the parameters. Default: torch's default dtype

    Attributes:
        num_features (int): Channels of the last stage's map.
        head_hidden_size (int): Channels of the pooled features.
        feature_info (list of dict): For each stage ``num_chs``, the channels of its map; ``reduction``, the ratio of
            the image's size to the map's; and ``module``, the stage's name.
        feature_channels (list of int): Channels of the maps that ``features_only`` returns.
        feature_strides (list of int): Ratio of the image's size to that of each of these maps.

    Shape:
        ``(B, in_channels, H, W)`` to ``(B, num_classes)``, or with ``features_only`` to a list of
        ``(B, feature_channels[i], ceil(H / feature_strides[i]), ceil(W / feature_strides[i]))``. Any size.

    Raises:
        ValueError: If an argument is out of range, or the input has the wrong shape; the message says which.

    Example:
        >>> model = RedNet((1, 1), widths=(16, 32), strides=(1, 2), stem="small", num_classes=10)
        >>> model(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    official_names = REDNET

    def __init__(
        self,
        blocks: Sequence[int],
        *,
        widths: Sequence[int] = (64, 128, 256, 512),
        strides: Sequence[int] = (1, 2, 2, 2),
        dilations: Sequence[int] = (1, 1, 1, 1),
        stem: str = "imagenet",
        stem_channels: int = 64,
        stem_kernel_size: int = 3,
        kernel_size: int = 7,
        group_channels: int = 16,
        expansion: int = 4,
        output_stride: int | None = None,
        num_classes: int = 1000,
        global_pool: str = "avg",
        in_channels: int = 3,
        features_only: bool = False,
        out_indices: int | Sequence[int] | None = None,
        drop_path: float = 0.0,
        dropout: float = 0.0,
        norm_layer: NormLayer = "batch",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        blocks = _counts(blocks, "blocks")
        if not blocks:
            raise ValueError("blocks must name at least one stage.")
        widths, strides = _counts(widths, "widths", blocks), _counts(strides, "strides", blocks)
        dilations = _counts(dilations, "dilations", blocks)
        if stem not in ("imagenet", "small"):
            raise ValueError(f'stem must be "imagenet" or "small", not {stem!r}.')
        stem_channels = _arguments.integer(stem_channels, "stem_channels")
        if stem_channels % 2 or stem_channels < 2:
            raise ValueError(f"stem_channels must be even and at least 2, not {stem_channels!r}.")
        num_classes = check_count(num_classes, "num_classes", least=0)
        expansion = check_count(expansion, "expansion")
        if norm_layer is None:
            raise ValueError("norm_layer must make a module: RedNet does not train without normalisation.")
        indices = rising_indices(out_indices, len(blocks)) if features_only else ()
        stages = max(indices) + 1 if features_only else len(blocks)
        reduction = 4 if stem == "imagenet" else 1
        each_stage = geometry(strides[: len(blocks)], dilations, reduction, output_stride)

        factory = factory_arguments(device, dtype)
        norm = partial(_norm, norm_layer, factory)
        self.num_classes = 0 if features_only else num_classes
        self.in_channels = in_channels = check_count(in_channels, "in_channels")
        self.features_only = features_only
        self.out_indices = indices
        self.stem = Stem(
            in_channels, stem_channels, stem_kernel_size, stem == "imagenet", group_channels, norm, factory
        )
        self.stages = nn.Sequential()
        self.feature_info: Any = []  # timm's FeatureInfo in its feature extractors
        rates = iter(torch.linspace(0, drop_path, sum(blocks), device="cpu").tolist())
        inputs = stem_channels
        for stage in range(stages):
            outputs = widths[stage] * expansion
            stride, dilation, first_dilation = each_stage[stage]
            chain: list[nn.Module] = []
            for number in range(blocks[stage]):
                block = Bottleneck(
                    inputs,
                    widths[stage],
                    outputs,
                    stride=stride if number == 0 else 1,
                    dilation=first_dilation if number == 0 else dilation,
                    kernel_size=kernel_size,
                    group_channels=group_channels,
                    drop_path=next(rates),
                    norm=norm,
                    factory=factory,
                )
                chain.append(block)
                inputs = outputs
            self.stages.append(nn.Sequential(*chain))
            reduction *= stride
            self.feature_info.append(
                {"num_chs": outputs, "reduction": reduction, "module": f"stages.{stage}"}
            )
        self.num_features = inputs
        self.feature_channels = [self.feature_info[index]["num_chs"] for index in indices]
        self.feature_strides = [self.feature_info[index]["reduction"] for index in indices]
        self.dropout = nn.Dropout(dropout) if dropout else None
        self._set_pool(global_pool)
        self.head = nn.Linear(self.head_hidden_size, num_classes, **factory) if self.num_classes else None
        self.grad_checkpointing = False
        initialise(self)

    # ---- forward ----

    def forward(self, input: Tensor) -> Any:
        """Scores of the classes, ``(B, num_classes)``; with ``features_only`` a list of maps."""
        if self.features_only:
            return self.forward_intermediates(input, self.out_indices, intermediates_only=True)
        return self.forward_head(self.forward_features(input))

    def forward_features(self, input: Tensor) -> Tensor:
        """The last stage's map, ``(B, num_features, h, w)``."""
        return self.forward_intermediates(input, 1)[0]

    def forward_intermediates(
        self,
        input: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """The last map and the maps behind some stages, with timm's arguments.

        Args:
            input (Tensor): ``(B, in_channels, H, W)``.
            indices (int or sequence of int, optional): The stages, which count from 0, or with negative numbers from
                the end. An integer n means the last n stages, None all. Default: None
            norm (bool): Makes no difference: it asks for the norm after a network's last block, and RedNet has none.
                Default: False
            stop_early (bool): Do not run the stages after the last of these maps. Default: False
            output_fmt (str): ``"NCHW"``, the only one.
            intermediates_only (bool): Return the list alone. Default: False

        Returns:
            tuple of Tensor and list of Tensor: The map of the last stage that was run, and the maps in the order of
            the stages.

        Raises:
            ValueError: If there is no such stage, ``output_fmt`` is another, or the input has the wrong shape.
        """
        if output_fmt != "NCHW":
            raise ValueError(
                f'output_fmt must be "NCHW", the layout of this network\'s maps, not {output_fmt!r}.'
            )
        taken = stage_indices(indices, len(self.stages))
        _check_image(input, self.in_channels)
        x, maps = self.stem(input), []
        for number, stage in enumerate(self.stages[: max(taken) + 1] if stop_early else self.stages):
            if self.grad_checkpointing and self.training:
                for block in stage.children():
                    x = checkpoint_block(block, x)
            else:
                x = stage(x)
            if number in taken:
                maps.append(x)
        return maps if intermediates_only else (x, maps)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Pools a map and scores the classes; with ``pre_logits`` or without a head the pooled features."""
        x = POOLS[self.global_pool](features)
        if self.dropout is not None:
            x = self.dropout(x)
        if pre_logits or self.head is None:
            return x
        return self.head(x) if self.global_pool else self.head(x.movedim(1, -1)).movedim(-1, 1)

    # ---- what may be changed afterwards ----

    def get_classifier(self, name_only: bool = False) -> nn.Linear | str | None:
        """The head, or None; with ``name_only`` its name."""
        return "head" if name_only else self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Makes a new head for this many classes, none for 0, and changes the pooling if one is given."""
        if self.features_only:
            raise ValueError("A network with features_only has no head to reset.")
        like = self.stem.conv1.weight
        self._set_pool(self.global_pool if global_pool is None else global_pool)
        self.num_classes = num_classes = check_count(num_classes, "num_classes", least=0)
        self.head = None
        if num_classes:
            self.head = nn.Linear(self.head_hidden_size, num_classes, device=like.device, dtype=like.dtype)
            initialise(self.head)
            self.head.train(self.training)

    def _set_pool(self, global_pool: str) -> None:
        if global_pool not in POOLS:
            names = ", ".join(repr(name) for name in POOLS)
            raise ValueError(f"global_pool must be one of {names}, not {global_pool!r}.")
        self.global_pool = global_pool
        self.head_hidden_size = self.num_features * (2 if global_pool == "catavgmax" else 1)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes the stages after the last of these, which :meth:`forward_intermediates` does not need.

        Args:
            indices (int or sequence of int): As in :meth:`forward_intermediates`. Default: 1
            prune_norm (bool): Makes no difference: there is no norm after the last block. Default: False
            prune_head (bool): Remove the head and the pooling too. They are removed in any case with the last stage,
                whose channels they have. Default: True

        Returns:
            list of int: The stages' numbers, which count from 0.
        """
        if self.features_only:
            raise ValueError("A network with features_only has no stages behind its last map.")
        taken = stage_indices(indices, len(self.stages))
        shorter = max(taken) + 1 < len(self.stages)
        self.stages = self.stages[: max(taken) + 1]
        self.num_features = self.feature_info[max(taken)]["num_chs"]
        if prune_head or shorter:
            self.reset_classifier(0, "")
        return taken

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Patterns of parameters' names, by which timm's optimisers make groups: stages, or else blocks."""
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)"}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Turns gradient checkpointing of each block on or off.

        Results are the same, running statistics too. Memory shrinks to the blocks' inputs and the activations of one
        block, and a step takes about a third more time.
        """
        self.grad_checkpointing = enable


def _norm(layer: NormLayer, factory: dict[str, Any], channels: int) -> nn.Module:
    module = make_norm(layer, 2, channels, factory)
    assert module is not None
    return module


def _counts(values: Sequence[int], name: str, stages: Sequence[int] = ()) -> tuple[int, ...]:
    """Integers of at least 1, of which there must be one for each stage."""
    if len(values) < len(stages):
        raise ValueError(
            f"{name} must have a number for each of the {len(stages)} stages of blocks={stages}, but it is "
            f"{tuple(values)}."
        )
    return tuple(check_count(value, name) for value in values)


@fx.wrap
def _check_image(tensor: Tensor, channels: int) -> None:
    if tensor.dim() != 4 or shape(tensor)[1] != channels:
        raise ValueError(
            f"The images must be (batch, {channels}, height, width), but their shape is {tuple(shape(tensor))}."
        )
