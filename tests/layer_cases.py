"""The layers in one, two and three dimensions, and what their tests do with them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import involution

ATTENTIONS = {axes: getattr(involution, f"LocalAttention{axes}d") for axes in (1, 2, 3)}


def tuples(value: Any, axes: int) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,) * axes


def randomise(layer: nn.Module) -> nn.Module:
    """Norms and biases that are not one and zero, so that leaving one out shows."""
    with torch.no_grad():
        for name, tensor in (*layer.named_parameters(), *layer.named_buffers()):
            if "running_var" in name:
                tensor.uniform_(0.5, 2)
            elif tensor.dim() == 1 or "position" in name:
                tensor.normal_()
    return layer


def parameters(layer: nn.Module, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    state = {name: tensor.detach().clone() for name, tensor in layer.state_dict(keep_vars=True).items()}
    return {name: t.to(dtype) if t.is_floating_point() else t for name, t in state.items()}
