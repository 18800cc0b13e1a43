"""SGD and AdamW, with the parameters that decay apart from those that do not."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .config import Config


def parameter_groups(model: nn.Module, weight_decay: float, decay_all: bool = False) -> list[dict[str, Any]]:
    """Parameters that decay, and those that do not.

    Biases and everything with at most one axis, which is what norms have, do not decay: pulled to zero they only
    lose their scale, and regularise nothing (Goyal et al., "Accurate, Large Minibatch SGD", 2017, section 5.1; He
    et al., "Bag of Tricks for Image Classification", CVPR 2019, section 3.1).

    Args:
        model: whose parameters; frozen ones are left out.
        weight_decay: of the first group.
        decay_all: one group for all, as where the recipe of the paper is followed.

    Returns:
        Groups for an optimiser; empty ones are left out.
    """
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            spared = parameter.ndim <= 1 or name.rpartition(".")[2].endswith("bias")
            (kept if spared and not decay_all else decayed).append(parameter)
    groups = ({"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]


def make_optimizer(model: nn.Module, config: Config) -> torch.optim.Optimizer:
    """The optimiser that the configuration names.

    Args:
        model: whose parameters it changes.
        config: ``optimizer``, ``lr``, ``momentum``, ``nesterov``, ``weight_decay`` and ``decay_all`` are read.
    """
    groups = parameter_groups(model, config.weight_decay, config.decay_all)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)
    return torch.optim.AdamW(groups, lr=config.lr)
