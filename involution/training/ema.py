"""A moving average of a model's weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class ExponentialMovingAverage:
    """Keeps ``average = d * average + (1 - d) * model`` of all parameters and floating-point buffers.

    ``d = min(decay, (1 + step) / (10 + step))``, so that the first, random weights are soon forgotten. Buffers of
    integers, such as the counter of a batch norm, are copied.

    Args:
        model: what is averaged; its current weights are the beginning.
        decay: ``d`` in the long run, in (0, 1).

    Attributes:
        module: a copy of the model that has the average, in evaluation mode.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.module = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Takes the model's weights into the average.

        Args:
            model: the model as it is after the step.
            step: how many steps were taken before.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        averages: list[Tensor] = []
        values: list[Tensor] = []
        for average, value in zip(
            self.module.state_dict().values(), model.state_dict().values(), strict=True
        ):
            if average.is_floating_point():
                averages.append(average)
                values.append(value)
            else:
                average.copy_(value)
        torch._foreach_lerp_(averages, values, 1 - decay)
