"""A classifier or segmenter with everything that its input needs inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Deployable(nn.Module):
    """A model that takes images with values from 0 to 1: ``model((images - mean) / std)``.

    Args:
        model (nn.Module): Takes normalised images ``(B, channels, *space)`` and returns one tensor, or a segmenter's
            scores by the name ``"out"``.
        mean (sequence of float): Mean of each channel, for values from 0 to 1.
        std (sequence of float): Standard deviation of each channel.
        dtype (dtype): What the model computes in. Images and results are float32, whatever it is. Default:
            ``torch.float32``

    Raises:
        ValueError: ``mean`` and ``std`` do not have one positive number for each of the same channels.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if len(mean) != len(std) or not mean or min(std) <= 0:
            raise ValueError(
                "mean and std must have one number for each channel, of which those of std are positive, but they "
                f"are {list(mean)} and {list(std)}."
            )
        self.model = model.to(dtype)
        self.dtype = dtype
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))
        self.train(model.training)

    def forward(self, images: Tensor) -> Tensor:
        """Runs the model.

        Args:
            images (Tensor): ``(B, channels, *space)``, float32, from 0 to 1.

        Returns:
            The tensor that the model returns, in float32.
        """
        channels = (-1, *(1 for _ in images.shape[2:]))
        normalised = (images - self.mean.view(channels)) / self.std.view(channels)
        return scores(self.model(normalised.to(self.dtype))).float()


def scores(output: Any) -> Tensor:
    """A model's one tensor, by itself or under the name that segmenters give it, here as in torchvision."""
    return output["out"] if isinstance(output, Mapping) else output
