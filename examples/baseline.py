"""What an involution is compared with: a network of the same kind with at least as many parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import nn

from involution import Involution2d


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def smallest_not_below(budget: int, network: Callable[[int], nn.Module]) -> nn.Module:
    """The network with the fewest channels that has at least so many parameters."""
    channels = 1
    while parameters(network(channels)) < budget:
        channels += 1
    return network(channels)


def with_convolutions(network: nn.Module) -> nn.Module:
    """A copy of a network with 3x3 convolutions, as ResNet has, in the place of its involutions: more parameters."""
    baseline = copy.deepcopy(network)
    for path, layer in network.named_modules():
        if isinstance(layer, Involution2d):
            channels = layer.channels
            convolution = nn.Conv2d(channels, channels, 3, layer.stride, padding=1, bias=False)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            parent, _, name = path.rpartition(".")
            setattr(baseline.get_submodule(parent), name, convolution)
    return baseline
