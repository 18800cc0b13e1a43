"""What happens to an image before the network sees it. Whatever is random comes from the generator that is passed.

Each transform takes an image (a tensor ``(C, H, W)`` or a picture of pillow) and a ``random.Random``, and returns
an image; :class:`Normalize`, the last, returns a float tensor.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Transform = Callable[[Any, random.Random], Any]


class Compose:
    """One transform after the other."""

    def __init__(self, transforms: Sequence[Transform]) -> None:
        self.transforms = list(transforms)

    def __call__(self, image: Any, generator: random.Random) -> Any:
        """The image, transformed."""
        for transform in self.transforms:
            image = transform(image, generator)
        return image


class RandomResizedCrop:
    """A random part of a picture, resized: of random area and aspect ratio (Szegedy et al., CVPR 2015, section 6).

    Args:
        size: height and width of the result.
        scale: smallest and largest share of the area.
        ratio: smallest and largest width by height, drawn evenly on a logarithmic scale.
    """

    def __init__(
        self, size: int, scale: tuple[float, float] = (0.08, 1.0), ratio: tuple[float, float] = (3 / 4, 4 / 3)
    ) -> None:
        self.size = size
        self.scale = scale
        self.ratio = ratio

    def box(self, size: tuple[int, int], generator: random.Random) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the part of a picture of this width and height."""
        width, height = size
        for _ in range(10):
            area = width * height * generator.uniform(*self.scale)
            ratio = math.exp(generator.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                left, top = generator.randint(0, width - w), generator.randint(0, height - h)
                return left, top, left + w, top + h
        # A very long picture: the largest part in its middle whose ratio is allowed.
        w = min(width, max(1, round(height * self.ratio[1])))
        h = min(height, max(1, round(width / self.ratio[0])))
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h

    def __call__(self, image: Any, generator: random.Random) -> Any:
        """The image, transformed."""
        from PIL.Image import Resampling

        # Cropped first: resize's own box would let the pixels around it shine in.
        part = image.crop(self.box(image.size, generator))
        return part.resize((self.size, self.size), Resampling.BILINEAR)


class ResizeAndCenterCrop:
    """The middle of a picture, after its shorter side was resized.

    Args:
        size: height and width of the result.
        short_side: what the shorter side becomes first, at least ``size``.
    """

    def __init__(self, size: int, short_side: int) -> None:
        self.size = size
        self.short_side = short_side

    def __call__(self, image: Any, generator: random.Random) -> Any:
        """The image, transformed."""
        from PIL.Image import Resampling

        width, height = image.size
        scale = self.short_side / min(width, height)
        resized = max(self.short_side, round(width * scale)), max(self.short_side, round(height * scale))
        image = image.resize(resized, Resampling.BILINEAR)
        left, top = (round((side - self.size) / 2) for side in resized)
        return image.crop((left, top, left + self.size, top + self.size))


class RandomFlip:
    """Mirrors half the images, left to right."""

    def __call__(self, image: Any, generator: random.Random) -> Any:
        """The image, transformed."""
        if generator.random() < 0.5:
            return image
        if isinstance(image, Tensor):
            return image.flip(-1)
        from PIL.Image import Transpose

        return image.transpose(Transpose.FLIP_LEFT_RIGHT)


class RandomCrop:
    """Shifts a tensor by up to ``padding`` along each axis; zeros come in.

    Args:
        padding: zeros around the image, of which a part of the image's size is taken.
    """

    def __init__(self, padding: int) -> None:
        self.padding = padding

    def __call__(self, image: Tensor, generator: random.Random) -> Tensor:
        """The image, transformed."""
        height, width = image.shape[1:]
        top, left = (generator.randint(0, 2 * self.padding) for _ in range(2))
        return F.pad(image, [self.padding] * 4)[:, top : top + height, left : left + width]


class Normalize:
    """Values from 0 to 1, less a mean, by a standard deviation, as a float32 tensor ``(C, H, W)``.

    Args:
        mean: of each channel.
        std: of each channel.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean = torch.tensor(mean)[:, None, None]
        self.std = torch.tensor(std)[:, None, None]

    def __call__(self, image: Any, generator: random.Random) -> Tensor:
        """The image, transformed."""
        if not isinstance(image, Tensor):
            width, height = image.size
            pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
            image = pixels.view(height, width, -1).permute(2, 0, 1)
        if not image.is_floating_point():
            image = image.float() / 255
        return ((image - self.mean) / self.std).contiguous()
