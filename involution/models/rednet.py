"""RedNet: a residual network with involution in the place of its 3x3 convolutions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from .._tracing import shape
from ..layers._shared import NormLayer, NotScriptable, check_count, make_norm
from ..layers.kernel_branch import factory_arguments
from .blocks import Bottleneck, Stem, initialise
from .checkpointing import checkpoint_block

__all__ = ["RedNet"]


class RedNet(NotScriptable, nn.Module):
    """A stem, stages of bottlenecks with involution, average pooling and a linear head.

    Source: Li et al., "Involution: Inverting the Inherence of Convolution for Visual Recognition", CVPR 2021,
    section 4.1: ResNet's bottlenecks with every 3x3 convolution replaced, and an involution in the stem. The
    defaults are the paper's.

    Args:
        blocks: how many bottlenecks each stage has.
        widths: channels of the involutions of each stage; its output has ``expansion`` times as many.
        strides: of the first block of each stage.
        dilations: of the involutions of each stage.
        stem: ``"imagenet"`` reduces height and width by four, ``"small"`` keeps them, for images of 8x8 to about
            64x64.
        stem_channels: channels that the stem gives; half as many inside.
        stem_kernel_size: of the stem's involution; 3 in the published classifiers, 7 in the published backbones
            for detection and segmentation.
        kernel_size: of the other involutions.
        group_channels: channels that share a kernel.
        expansion: of a bottleneck.
        num_classes: outputs of the head; with 0 the pooled features come out.
        in_channels: channels of the image.
        features_only: return a list of feature maps instead, and have no head and no stages behind the last map.
        out_indices: which stages' maps, counted from 0; by default all. Only read with ``features_only``.
        drop_path: probability to leave out a residual branch in training; it grows linearly from 0 at the first
            block to this at the last.
        dropout: probability to zero a pooled feature in training.
        norm_layer: makes a normalisation from its number of channels; ``"batch"`` is batch normalisation.
        device: where the parameters are made.
        dtype: their type.

    Attributes:
        num_features: channels of the last stage's map.
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
        num_classes: int = 1000,
        in_channels: int = 3,
        features_only: bool = False,
        out_indices: Sequence[int] | None = None,
        drop_path: float = 0.0,
        dropout: float = 0.0,
        norm_layer: NormLayer = "batch",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        per_stage = {"widths": widths, "strides": strides, "dilations": dilations}
        for name, values in {"blocks": blocks, **per_stage}.items():
            if name != "blocks" and len(values) < len(blocks):
                raise ValueError(
                    f"{name} must have a number for each of the {len(blocks)} stages of blocks={tuple(blocks)}, "
                    f"but it is {tuple(values)}."
                )
            for value in values:
                check_count(value, name)
        if not blocks:
            raise ValueError("blocks must name at least one stage.")
        if stem not in ("imagenet", "small"):
            raise ValueError(f'stem must be "imagenet" or "small", not {stem!r}.')
        if stem_channels % 2 or stem_channels < 2:
            raise ValueError(f"stem_channels must be even and at least 2, not {stem_channels!r}.")
        if num_classes < 0:
            raise ValueError(f"num_classes must be at least 0, not {num_classes}.")
        if norm_layer is None:
            raise ValueError("norm_layer must make a module: RedNet does not train without normalisation.")
        indices = _stage_indices(out_indices, len(blocks)) if features_only else ()
        stages = max(indices) + 1 if features_only else len(blocks)

        factory = factory_arguments(device, dtype)
        norm = partial(_norm, norm_layer, factory)
        self.num_classes = 0 if features_only else num_classes
        self.in_channels = check_count(in_channels, "in_channels")
        self.features_only = features_only
        self.out_indices = indices
        self.stem = Stem(
            in_channels, stem_channels, stem_kernel_size, stem == "imagenet", group_channels, norm, factory
        )
        self.stages = nn.ModuleList()
        rates = iter(torch.linspace(0, drop_path, sum(blocks), device="cpu").tolist())
        inputs, reduction, reductions = stem_channels, 4 if stem == "imagenet" else 1, []
        for stage in range(stages):
            outputs = widths[stage] * expansion
            chain: list[nn.Module] = []
            for number in range(blocks[stage]):
                block = Bottleneck(
                    inputs,
                    widths[stage],
                    outputs,
                    stride=strides[stage] if number == 0 else 1,
                    dilation=dilations[stage],
                    kernel_size=kernel_size,
                    group_channels=group_channels,
                    drop_path=next(rates),
                    norm=norm,
                    factory=factory,
                )
                chain.append(block)
                inputs = outputs
            self.stages.append(nn.Sequential(*chain))
            reduction *= strides[stage]
            reductions.append(reduction)
        self.num_features = inputs
        self.feature_channels = [widths[index] * expansion for index in indices]
        self.feature_strides = [reductions[index] for index in indices]
        self.dropout = nn.Dropout(dropout) if dropout else None
        self.head = nn.Linear(inputs, num_classes, **factory) if self.num_classes else None
        self.grad_checkpointing = False
        self.frozen_stages = -1
        self.frozen_norms = False
        initialise(self)

    # ---- forward ----

    def forward(self, input: Tensor) -> Any:
        """Scores of the classes, ``(B, num_classes)``; with ``features_only`` a list of maps."""
        if self.features_only:
            return self.forward_intermediates(input, self.out_indices)
        return self.forward_head(self.forward_features(input))

    def forward_features(self, input: Tensor) -> Tensor:
        """The last stage's map, ``(B, num_features, h, w)``."""
        return self.forward_intermediates(input, (len(self.stages) - 1,))[0]

    def forward_intermediates(self, input: Tensor, indices: Sequence[int]) -> list[Tensor]:
        """The maps behind the stages of these numbers, in their order."""
        _check_image(input, self.in_channels)
        x, maps = self.stem(input), []
        for number, stage in enumerate(self.stages[: max(indices) + 1]):
            for block in stage.children():
                x = checkpoint_block(block, x) if self.grad_checkpointing and self.training else block(x)
            if number in indices:
                maps.append(x)
        return maps

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Pools a map and scores the classes; with ``pre_logits`` or without a head the pooled features."""
        x = features.mean((2, 3))
        if self.dropout is not None:
            x = self.dropout(x)
        return x if pre_logits or self.head is None else self.head(x)

    # ---- what may be changed afterwards ----

    def get_classifier(self) -> nn.Linear | None:
        """The head, or None."""
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """A new head, freshly initialised, for this many classes; none for 0."""
        if self.features_only:
            raise ValueError("A network with features_only has no head to reset.")
        like = self.stem.conv1.weight
        self.num_classes = num_classes
        self.head = None
        if num_classes:
            self.head = nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)
            initialise(self.head)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether the backward pass of a training step computes each block again instead of keeping its insides.

        Results are the same, running statistics too; memory shrinks to the blocks' inputs and one block's insides,
        and a step takes about a third more time.
        """
        self.grad_checkpointing = enable

    def freeze_stages(self, stages: int) -> None:
        """Fixes the stem and the first ``stages`` stages: no gradients, and norms in evaluation mode for good.

        0 freezes the stem alone, -1 nothing: what this method froze before and does not any more trains again.
        """
        if not -1 <= stages <= len(self.stages):
            raise ValueError(f"stages must be from -1 to {len(self.stages)}, not {stages}.")
        parts = (self.stem, *self.stages)
        for part in parts[stages + 1 : self.frozen_stages + 1]:
            part.requires_grad_(True)
        for part in parts[: stages + 1]:
            part.requires_grad_(False)
        if self.frozen_norms:
            for norm in self._norms():
                norm.requires_grad_(False)
        self.frozen_stages = stages
        self.train(self.training)

    def freeze_norms(self, freeze: bool = True) -> None:
        """Fixes all normalisations: they use their running statistics in training too, and keep their parameters.

        Small batches, as in training detectors, have statistics too noisy to train with.
        """
        for norm in self._norms():
            norm.requires_grad_(not freeze)
        self.frozen_norms = freeze
        self.freeze_stages(self.frozen_stages)  # whose norms stay fixed

    def train(self, mode: bool = True) -> RedNet:
        """Training or evaluation mode; what is frozen stays in evaluation mode."""
        super().train(mode)
        for part in (self.stem, *self.stages)[: self.frozen_stages + 1]:
            part.train(False)
        if self.frozen_norms:
            for norm in self._norms():
                norm.train(False)
        return self

    def _norms(self) -> Iterator[nn.Module]:
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm | nn.LayerNorm):
                yield module


def _norm(layer: NormLayer, factory: dict[str, Any], channels: int) -> nn.Module:
    module = make_norm(layer, 2, channels, factory)
    assert module is not None
    return module


def _stage_indices(out_indices: Sequence[int] | None, stages: int) -> tuple[int, ...]:
    if out_indices is None:
        return tuple(range(stages))
    indices = tuple(out_indices)
    if not indices or list(indices) != sorted(set(indices)) or indices[0] < 0 or indices[-1] >= stages:
        raise ValueError(
            f"out_indices must be rising numbers of stages from 0 to {stages - 1}, but it is {indices}."
        )
    return indices


@fx.wrap
def _check_image(tensor: Tensor, channels: int) -> None:
    if tensor.dim() != 4 or shape(tensor)[1] != channels:
        raise ValueError(
            f"The images must be (batch, {channels}, height, width), but their shape is {tuple(shape(tensor))}."
        )
