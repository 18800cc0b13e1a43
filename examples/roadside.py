"""Frames of a car's camera with signs at the roadside, whose boxes and distances are known: what signs.py detects.

The signs are drawn, put into true perspective, and laid over a photograph of scikit-learn with its digits on them.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from common import digits, photographs
from torch import Tensor

RED, YELLOW, WHITE = (190, 20, 30), (245, 195, 0), (240, 240, 240)
SHAPES = {  # with the colours of rim and face
    "circle": (RED, WHITE),
    "triangle": (RED, WHITE),
    "octagon": (WHITE, RED),
    "diamond": (WHITE, YELLOW),
}
NAMES = tuple(SHAPES)
HEIGHT, WIDTH, FOCAL = 96, 128, 240.0  # pixels
SIGN, NEAREST, FARTHEST = 0.7, 3.0, 12.0  # metres: its height, and how far away it is
TEXTURE = 128  # pixels of a sign before it is warped
FINER = 3  # parts of a pixel that it is warped to, along each axis

Objects = dict[str, Tensor]


class Frames(NamedTuple):
    """Images ``(3, HEIGHT, WIDTH)`` from 0 to 1, and of each the ``boxes``, ``labels`` from 1, and ``distances``."""

    images: list[Tensor]
    targets: list[Objects]


@functools.cache
def material(part: str) -> tuple[Any, Any]:
    return photographs(part, "china.jpg")[0], digits(part)


def corners(shape: str, scale: float = 1.0) -> list[tuple[float, float]]:
    """The outline in a square of TEXTURE pixels, which it fills to every edge where the scale is 1."""
    import numpy as np

    count, start = {"circle": (64, 0), "triangle": (3, -90), "octagon": (8, 22.5), "diamond": (4, 0)}[shape]
    angles = np.radians(start + np.arange(count) * 360 / count)
    points = np.stack((np.cos(angles), np.sin(angles)), 1)
    points = (points - (points.max(0) + points.min(0)) / 2) * scale / np.ptp(points, 0)
    return [(x, y) for x, y in ((points + 0.5) * TEXTURE).tolist()]


def sign(shape: str, random: Any, images: Any) -> Any:
    """A sign from the front, RGBA: a rim, a face of another colour, and one or two digits that stand out on it."""
    import numpy as np
    from PIL import Image, ImageDraw

    # Paint fades, and differs from sign to sign.
    rim, face = np.uint8(np.clip(np.array(SHAPES[shape]) + random.normal(0, 15, (2, 3)), 0, 255))
    ink = (0, 0, 0) if face.mean() > 110 else (255, 255, 255)
    picture = Image.new("RGBA", (TEXTURE, TEXTURE))
    pen = ImageDraw.Draw(picture)
    pen.polygon(corners(shape), fill=(*rim.tolist(), 255))
    pen.polygon(corners(shape, 0.78), fill=(*face.tolist(), 255))
    count = int(random.integers(1, 3))
    size = TEXTURE * 3 // 8 if count == 1 else TEXTURE // 4
    for number in range(count):
        digit = Image.fromarray(images[random.integers(len(images))]).resize((size, size))
        place = (
            (TEXTURE - count * size) // 2 + number * size,
            (TEXTURE - size) // 2 + (shape == "triangle") * 10,
        )
        picture.paste(Image.new("RGBA", digit.size, (*ink, 255)), place, digit)
    return np.asarray(picture)


def projection(turn: float, centre: Any) -> Any:
    """The 3x3 matrix from a sign's pixels to the frame's; turned by radians about its post, at ``(x, y, z)`` in m."""
    import numpy as np

    pixel = SIGN / TEXTURE
    metres = np.array([[pixel, 0, -SIGN / 2], [0, pixel, -SIGN / 2], [0, 0, 1]])
    pose = np.array([[np.cos(turn), 0, centre[0]], [0, 1, centre[1]], [np.sin(turn), 0, centre[2]]])
    camera = np.array([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]])
    return camera @ pose @ metres


def warped(picture: Any, matrix: Any) -> Any:
    """A sign as the camera sees it, ``(HEIGHT, WIDTH, 4)`` from 0 to 1: finer than the frame, and averaged."""
    import numpy as np
    from PIL import Image

    back = np.linalg.inv(np.diag([FINER, FINER, 1]) @ matrix)
    size = WIDTH * FINER, HEIGHT * FINER
    how = Image.Transform.PERSPECTIVE, (back / back[2, 2]).flatten()[:8].tolist(), Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(picture).transform(size, *how).reduce(FINER)) / 255


def tight_box(mask: Any) -> list[int]:
    """x and y of the first pixel and behind the last."""
    rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    return [int(edge) for edge in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)]


def frame(part: str, random: Any, most: int) -> tuple[Tensor, Objects]:
    import numpy as np

    photograph, images = material(part)
    top, left = (
        random.integers(a - b + 1) for a, b in zip(photograph.shape[:2], (HEIGHT, WIDTH), strict=True)
    )
    scene = photograph[top : top + HEIGHT, left : left + WIDTH]
    scene = np.array(scene[:, ::-1] if random.random() < 0.5 else scene, np.float64)
    boxes, labels, distances, taken = [], [], [], np.zeros((HEIGHT, WIDTH), bool)
    wanted = random.integers(most + 1)
    for _ in range(20 * wanted):  # places that are taken are tried again
        if len(boxes) == wanted:
            break
        label, distance = int(random.integers(len(SHAPES))), float(random.uniform(NEAREST, FARTHEST))
        side = FOCAL * SIGN / distance
        middle = [random.uniform(side / 2 + 2, edge - side / 2 - 2) for edge in (WIDTH, HEIGHT)]
        place = [(at - edge / 2) * distance / FOCAL for at, edge in zip(middle, (WIDTH, HEIGHT), strict=True)]
        turn = np.radians(random.uniform(-30, 30))
        seen = warped(sign(NAMES[label], random, images), projection(turn, (*place, distance)))
        mask = seen[..., 3] > 0.5
        left, top, right, bottom = box = tight_box(mask)
        if taken[top:bottom, left:right].any():  # signs do not cover each other
            continue
        taken[top:bottom, left:right] = True
        scene += seen[..., 3:] * (seen[..., :3] - scene)
        boxes.append(box), labels.append(label + 1), distances.append(distance)
    length = int(random.integers(3))  # pixels of motion either way, while the shutter is open
    wide = np.pad(scene, ((0, 0), (length, length), (0, 0)), mode="edge")
    scene = np.mean([wide[:, at : at + WIDTH] for at in range(2 * length + 1)], 0)
    scene = scene * random.uniform(0.5, 1.1) + random.normal(0, 0.02, scene.shape)
    target = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        "labels": torch.tensor(labels).long(),
    }
    image = torch.from_numpy(scene.clip(0, 1)).float().permute(2, 0, 1).contiguous()
    return image, {**target, "distances": torch.tensor(distances)}


def drive(part: str, count: int, random: Any, most: int = 2) -> Frames:
    images, targets = zip(*(frame(part, random, most) for _ in range(count)), strict=True)
    return Frames(list(images), list(targets))
