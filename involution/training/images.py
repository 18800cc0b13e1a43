"""What a set of labelled images is, and what happens to one that cannot be read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image


class BadImageError(ValueError):
    """An image cannot be read.

    Args:
        message: says which, and why.
        name: of the image alone.
    """

    def __init__(self, message: str, name: str = "") -> None:
        super().__init__(message)
        self.name = name


class DataError(ValueError):
    """The data is not where it should be, or not what it should be."""


class BadImage(NamedTuple):
    """An image that could not be read, as worker processes report it."""

    name: str
    reason: str


class Images(Protocol):
    """Labelled images of one part (training or test) of some data."""

    @property
    def labels(self) -> Sequence[int]:
        """The class numbers."""
        ...

    def __len__(self) -> int:
        """How many there are."""
        ...

    def read(self, index: int) -> Tensor | Image:
        """An image: a tensor ``(C, H, W)``, of ``uint8`` or of floats from 0 to 1, or a picture of pillow.

        Raises:
            BadImageError: it cannot be read.
        """
        ...


class TensorImages:
    """Images in memory.

    Args:
        images: ``(N, C, H, W)``, of ``uint8`` or of floats from 0 to 1.
        labels: ``N`` class numbers.
    """

    def __init__(self, images: Tensor, labels: Sequence[int]) -> None:
        self.images = images
        self.labels = list(labels)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> Tensor:
        """The image, ``(C, H, W)``."""
        return self.images[index]

    def statistics(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel over all images, of values from 0 to 1."""
        means, deviations = [], []
        for channel in self.images.unbind(1):
            if self.images.is_floating_point():
                values, counts = channel.double().flatten(), torch.ones((), dtype=torch.float64)
            else:  # by how often each value comes, which needs no copy of all images in float64
                values = torch.arange(256, dtype=torch.float64) / 255
                counts = torch.bincount(channel.flatten(), minlength=256) / (channel.numel() / 256)
            mean = (values * counts).mean()
            means.append(float(mean))
            deviations.append(float(((values - mean).square() * counts).mean().sqrt()))
        return means, deviations
