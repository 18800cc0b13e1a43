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
from .recompute import checkpoint_block
from .stages import geometry, rising_indices, stage_indices

__all__ = ["RedNet"]


class RedNet(Freezing, NotScriptable):
    """A stem, stages of bottlenecks with involution, average pooling and a linear head.

    Source: Li et al., "Involution: Inverting the Inherence of Convolution for Visual Recognition", CVPR 2021,
    section 4.1: ResNet's bottlenecks with every 3x3 convolution replaced, and an involution in the stem. The
    defaults are the paper's.

    Args:
        blocks: how many bottlenecks each stage has.
        widths: channels of the involutions of each stage; its output has ``expansion`` times as many.
        strides: of the first block of each stage.
        dilations: of the involutions of each stage.
        output_stride: pixels of the image for one position of the last map; by default what the strides give. For
            fewer, the last strides are left out and the involutions behind them dilated, as in timm: in a stage's
            first block as in the stage before, whose map it reads.
        stem: ``"imagenet"`` reduces height and width by four, ``"small"`` keeps them, for images of 8x8 to about
            64x64.
        stem_channels: channels that the stem gives; half as many inside.
        stem_kernel_size: of the stem's involution; 3 in the published classifiers, 7 in the published backbones
            for detection and segmentation.
        kernel_size: of the other involutions.
        group_channels: channels that share a kernel.
        expansion: of a bottleneck.
        num_classes: outputs of the head; with 0 the pooled features come out.
        global_pool: how features are pooled: ``"avg"``, ``"max"``, ``"avgmax"`` (the mean of both), ``"catavgmax"``
            (both, one behind the other), or ``""``, not at all: the head then scores every position of the map, and
            without a head the map comes out.
        in_channels: channels of the image.
        features_only: return a list of feature maps instead, and have no head and no stages behind the last map.
        out_indices: which stages' maps, counted from 0, or with negative numbers from the end; an integer is that
            many of the last, None all. Only read with ``features_only``.
        drop_path: probability to leave out a residual branch in training; it grows linearly from 0 at the first
            block to this at the last.
        dropout: probability to zero a pooled feature in training.
        norm_layer: a class or callable that makes a normalisation from its number of channels; ``"batch"``, the
            default, is batch normalisation.
        device: where the parameters are made.
        dtype: their type.

    Attributes:
        num_features: channels of the last stage's map.
        head_hidden_size: channels of the pooled features.
        feature_info: for each stage ``num_chs``, ``reduction`` and ``module``: the channels of its map, pixels of the
            image for one position of it, and the stage's name.
        feature_channels: channels of the maps that ``features_only`` returns.
        feature_strides: pixels of the image for one position of these maps.

    Shape:
        ``(B, in_channels, H, W)`` to ``(B, num_classes)``, or with ``features_only`` to a list of
        ``(B, feature_channels[i], ceil(H / feature_strides[i]), ceil(W / feature_strides[i]))``. Any size.

    Raises:
        ValueError: an argument is out of range, or the input has the wrong shape; the message says which.

    Example:
        >>> model = RedNet((1, 1), widths=(16, 32), strides=(1, 2), stem="small", num_classes=10)
        >>> model(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

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
            input: ``(B, in_channels, H, W)``.
            indices: the stages, counted from 0, or with negative numbers from the end; an integer is that many of the
                last, None all.
            norm: makes no difference here: it asks for the norm behind a network's last block, and there is none.
            stop_early: leave out the stages behind the last of these maps.
            output_fmt: ``"NCHW"``.
            intermediates_only: return the list alone.

        Returns:
            The last stage's map (with ``stop_early`` that of the last stage that was run), and the list of maps,
            in the order of the stages.

        Raises:
            ValueError: there is no such stage, ``output_fmt`` is another, or the input has the wrong shape.
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
        """A new head, freshly initialised, for this many classes, none for 0; and another pooling, if one is given."""
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
        """Removes the stages behind the last of these, which :meth:`forward_intermediates` does not need for them.

        Args:
            indices: as there.
            prune_norm: makes no difference: there is no norm behind the last block.
            prune_head: remove the head and the pooling too. They go in any case with the last stage, whose channels
                they have.

        Returns:
            The stages' numbers, counted from 0.
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
        """Whether the backward pass of a training step computes each block again instead of keeping its insides.

        Results are the same, running statistics too; memory shrinks to the blocks' inputs and one block's insides,
        and a step takes about a third more time.
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
