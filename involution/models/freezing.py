"""Parts of a network that are fixed while the rest trains."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from torch import nn

from .. import _arguments
from .blocks import Stem

Network = TypeVar("Network", bound="Freezing")


class Freezing(nn.Module):
    """A network with a ``stem`` and ``stages``, of which the first, and all norms, can be frozen."""

    stem: Stem
    stages: nn.Sequential
    frozen_stages = -1
    frozen_norms = False
    frozen_affine = False

    def freeze_stages(self, stages: int) -> None:
        """Fixes the stem and the first ``stages`` stages: no gradients, and norms in evaluation mode for good.

        0 freezes the stem alone, -1 nothing: what this method froze before and does not any more trains again.
        """
        stages = _arguments.integer(stages, "stages")
        if not -1 <= stages <= len(self.stages):
            raise ValueError(f"stages must be from -1 to {len(self.stages)}, not {stages}.")
        parts = (self.stem, *self.stages)
        for part in parts[stages + 1 : self.frozen_stages + 1]:
            part.requires_grad_(True)
        for part in parts[: stages + 1]:
            part.requires_grad_(False)
        if self.frozen_affine:
            for norm in self._norms():
                norm.requires_grad_(False)
        self.frozen_stages = stages
        self.train(self.training)

    def freeze_norms(self, freeze: bool = True, affine: bool = True) -> None:
        """Fixes all normalisations: they use their running statistics in training too, and keep their parameters.

        Small batches, as in training detectors, have statistics too noisy to train with.

        Args:
            freeze (bool): With False they train again. Default: True
            affine (bool): Whether scale and shift are fixed too. With False they train, as with mmdetection's
                ``norm_eval``. Default: True
        """
        self.frozen_norms, self.frozen_affine = freeze, freeze and affine
        for norm in self._norms():
            norm.requires_grad_(not self.frozen_affine)
        self.freeze_stages(self.frozen_stages)  # whose norms stay fixed

    def train(self: Network, mode: bool = True) -> Network:
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
