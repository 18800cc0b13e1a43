"""A small RedNet and a step of training, which tests of the models share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from involution.models import RedNet


def tiny(**arguments: Any) -> RedNet:
    """Small, with every kind of part: stride, dilation, shortcut, both sizes of the stem."""
    torch.manual_seed(0)
    settings = {"widths": (16, 32), "strides": (1, 2), "stem_channels": 32, "num_classes": 5, **arguments}
    return RedNet((2, 1), **settings)


@torch.no_grad()
def randomise_norms(model: nn.Module) -> None:
    """Norms that matter: the last of a block begins at zero, and statistics at none."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                tensor.uniform_(0.5, 2)
            module.weight *= torch.randn_like(module.weight).sign()
            module.bias.normal_(), module.running_mean.normal_()


def step(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    output = model(x)
    output = output if isinstance(output, Tensor) else torch.cat([m.flatten() for m in output])
    output.square().mean().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
