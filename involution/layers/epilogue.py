"""What follows an involution in a network for inference, and goes along with it where that is one kernel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Epilogue(nn.Module):
    """A batch norm with its running statistics and a ReLU: ``relu(output * scale[c] + shift[c])``.

    ``scale = gamma / sqrt(variance + eps)`` and ``shift = beta - mean * scale``. An involution layer that holds one
    hands ``scale`` and ``shift`` to the fused kernel, and runs the norm and the ReLU behind any other.

    Args:
        norm (nn.Module): A batch norm with running statistics.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm) -> None:
        super().__init__()
        self.norm = norm
        assert norm.running_mean is not None and norm.running_var is not None
        scale = (norm.running_var.detach().double() + norm.eps).rsqrt()
        if norm.affine:
            scale = scale * norm.weight.detach()
        shift = -norm.running_mean.detach() * scale
        if norm.affine:
            shift = shift + norm.bias.detach()
        self.register_buffer("scale", scale.float())
        self.register_buffer("shift", shift.float())

    def forward(self, output: Tensor) -> Tensor:
        """Norm and ReLU of ``(B, C, *Out)``."""
        return F.relu(self.norm(output))

    def factors(self) -> tuple[Tensor, Tensor, bool]:
        """Scale, shift and whether there is a ReLU, as the fused operator takes them; the factors are float32."""
        return self.scale.to(torch.float32), self.shift.to(torch.float32), True
