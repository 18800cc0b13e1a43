"""What an involution is compared with: a network of the same kind with at least as many parameters."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def smallest_not_below(budget: int, network: Callable[[int], nn.Module]) -> nn.Module:
    """The network with the fewest channels that has at least so many parameters."""
    channels = 1
    while parameters(network(channels)) < budget:
        channels += 1
    return network(channels)
