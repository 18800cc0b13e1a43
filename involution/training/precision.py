"""Mixed precision: which parts compute in half precision, and the scaling that float16 needs."""

from __future__ import annotations

import torch
from torch import Tensor

from .config import ConfigError

MIN_SCALE = 2.0**-20  # far below any scale that helps: the gradients themselves are not finite


def at_least_float32(scores: Tensor) -> Tensor:
    """The scores in float32, or in float64 if they are: a loss needs the digits."""
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


class Precision:
    """How a run computes.

    Args:
        name: ``"float32"``, ``"bfloat16"`` or ``"float16"``: the type that autocast turns to, where it does.
        device: where the run computes.

    Attributes:
        scaler: scales the loss, so that small gradients survive float16 (Micikevicius et al., "Mixed Precision
            Training", ICLR 2018); does nothing for the other types.

    Raises:
        ConfigError: float16 on a CPU, where it is slow and has no use.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        if name == "float16" and device.type == "cpu":
            raise ConfigError(
                "The precision float16 is for CUDA; on a CPU give --precision bfloat16 or float32."
            )
        self.device = device
        self.dtype = getattr(torch, name)
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "float16")

    def autocast(self) -> torch.autocast:
        """The context that the network and the loss are computed in."""
        enabled = self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype if enabled else None, enabled=enabled)

    def check_scale(self) -> None:
        """Notices when no scale makes the gradients finite.

        Raises:
            FloatingPointError: the scale has become that small.
        """
        if self.scaler.is_enabled() and self.scaler.get_scale() < MIN_SCALE:
            raise FloatingPointError(
                f"The gradients are not finite at any scale down to {MIN_SCALE:g}. Train with --precision bfloat16 or "
                "float32, or with a lower learning rate."
            )
