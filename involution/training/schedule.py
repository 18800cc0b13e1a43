"""The learning rate: a cosine, with a linear warm-up."""

from __future__ import annotations

import math
from typing import Any

from torch.optim import Optimizer


def learning_rate(
    step: int, steps: int, peak: float, minimum: float = 0.0, warmup: int = 0, warmup_factor: float = 0.0
) -> float:
    """The learning rate of a step.

    ::

        cosine = minimum + (peak - minimum) * (1 + cos(pi * step / steps)) / 2
        rate   = cosine * (warmup_factor + (1 - warmup_factor) * min(1, step / warmup))

    The cosine is that of Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts",
    ICLR 2017, equation 5, without restarts; the warm-up that of Goyal et al., "Accurate, Large Minibatch SGD",
    2017, section 2.2.

    Args:
        step: which step, from 0.
        steps: how many there are.
        peak: the cosine's value at the first.
        minimum: its value after the last.
        warmup: in how many steps the factor rises to 1.
        warmup_factor: the factor it begins with.
    """
    cosine = minimum + (peak - minimum) * (1 + math.cos(math.pi * step / steps)) / 2
    if step >= warmup:
        return cosine
    return cosine * (warmup_factor + (1 - warmup_factor) * step / warmup)


class CosineSchedule:
    """Sets an optimiser's learning rate before each step, by :func:`learning_rate`.

    Args:
        optimizer: whose parameter groups all get it.
        steps: how many steps there will be.
        peak: highest learning rate.
        minimum: the one after the last step.
        warmup: steps of warm-up.
        warmup_factor: share of the learning rate that the warm-up begins with.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        steps: int,
        peak: float,
        minimum: float = 0.0,
        warmup: int = 0,
        warmup_factor: float = 0.0,
    ) -> None:
        self.optimizer = optimizer
        self.steps = steps
        self.peak = peak
        self.minimum = minimum
        self.warmup = warmup
        self.warmup_factor = warmup_factor
        self.taken = 0
        self._apply()

    @property
    def rate(self) -> float:
        """The learning rate of the coming step."""
        return learning_rate(self.taken, self.steps, self.peak, self.minimum, self.warmup, self.warmup_factor)

    def _apply(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate

    def step(self) -> None:
        """Goes on to the next step."""
        self.taken += 1
        self._apply()

    def state_dict(self) -> dict[str, Any]:
        """How many steps were taken; all else follows from the configuration."""
        return {"taken": self.taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state."""
        self.taken = state["taken"]
        self._apply()
