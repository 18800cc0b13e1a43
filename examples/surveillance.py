"""Video: what moves before a fixed camera, whose light flickers and whose mast shakes.

The classical answer is background subtraction: the median of a clip is the background, and what differs from it by more
than a threshold moves. It takes the camera to stand still and the light to be steady. Here neither holds: from frame to
frame the light changes by up to 15 % either way, the picture is shifted by up to one pixel along each axis, and there
is noise. So every edge of the background differs from the median, too.

The clips are made of real pictures, so that the answer is known exactly: before a photograph, two to six digits of
scikit-learn move with constant velocities, and up to three more are parked, so that looks alone tell nothing. A small
network with involution gets three frames of a clip of 15, the first, the middle and the last, and says of every pixel
of the middle one whether it belongs to what moves. Beside it stand the same network with 3x3 convolutions, which has
more parameters, and background subtraction, which gets every advantage: all 15 frames, the light put right, and the
threshold that is best on the test itself. No part of a photograph and no digit of the test has been trained on. What is
measured is IoU, |A and B| / |A or B|, of the pixels that are said to move and those that do.

The same is then told of clips without flicker and shake, for which background subtraction is made.

Run ``python examples/surveillance.py`` where involution is installed with its extra ``demo``; it takes two to three
minutes. The exit status is 1 if the network with involution has, under flicker and shake, an IoU below 0.6, or less
than 0.1 above background subtraction's.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from baseline import parameters, with_convolutions
from common import digits, draw_losses, fit, need_demo, options, photographs
from torch import Tensor, nn

from involution import Involution2d

SIDE, KERNEL, BATCH = 96, 7, 8
BLOCKS = 3
HALF = 7  # frames before the middle one, and behind; the network gets the first, the middle and the last
SHAKE, FLICKER, NOISE = 1, 0.15, 0.03  # pixels, share of the light, standard deviation
LEVEL, MARGIN = 0.6, 0.1  # of IoU, what is promised


class Thing(NamedTuple):
    """A digit: ``ink (h, w)`` from 0 to 1, its colour, where it is in the middle frame, and its pixels a frame."""

    ink: Any
    colour: Any
    middle: Any
    velocity: Any

    def place(self, frame: int) -> tuple[int, int]:
        """Row and column of its corner, ``frame`` frames after the middle one."""
        row, column = (self.middle + frame * self.velocity).round().astype(int).tolist()
        return row, column


class Clips(NamedTuple):
    """Frames ``(B, T, 3, SIDE, SIDE)`` from 0 to 1, and what moves in the middle one, ``(B, SIDE, SIDE)``."""

    frames: Tensor
    moving: Tensor


@functools.cache
def material(part: str) -> tuple[Any, Any]:
    return photographs(part), digits(part)


def scene(part: str, random: Any) -> tuple[Any, list[Thing]]:
    """A background with a margin for the shake, and what stands before it: the parked first, so behind the others."""
    import numpy as np
    from PIL import Image

    pictures, images = material(part)
    picture, side = pictures[random.integers(len(pictures))], SIDE + 2 * SHAKE
    top, left = (random.integers(length - side + 1) for length in picture.shape[:2])
    things = []
    for moves in [False] * random.integers(4) + [True] * random.integers(2, 7):
        size = int(random.integers(14, 29))
        digit = Image.fromarray(images[random.integers(len(images))])
        ink = np.asarray(digit.resize((size, size), Image.Resampling.BICUBIC)) / 255
        speed, angle = random.uniform(1.5, 5) * moves, random.uniform(0, 2 * np.pi)
        velocity = speed * np.array([np.sin(angle), np.cos(angle)])
        things.append(Thing(ink, random.random(3), random.integers(side - size + 1, size=2), velocity))
    return picture[top : top + side, left : left + side], things


def expose(background: Any, things: list[Thing], frame: int) -> tuple[Any, Any]:
    """The picture at a time, steady and without noise, and the pixels that move."""
    import numpy as np

    picture, moving = background.copy(), np.zeros(background.shape[:2], bool)
    for thing in things:
        row, column = thing.place(frame)
        # Of what leaves the picture, the rest is seen.
        rows, columns = (
            slice(max(at, 0), max(at + size, 0))
            for at, size in zip((row, column), thing.ink.shape, strict=True)
        )
        ink = thing.ink[rows.start - row :, columns.start - column :]
        patch = picture[rows, columns]
        ink = ink[: patch.shape[0], : patch.shape[1]]
        patch += ink[..., None] * (thing.colour - patch)
        moving[rows, columns] |= (ink > 0.5) & thing.velocity.any()
    return picture, moving


def film(part: str, count: int, random: Any, times: Iterable[int], disturbed: bool = True) -> Clips:
    """Clips with their answers; ``disturbed`` is with flicker and shake, and noise is always there."""
    import numpy as np

    clips, answers = [], []
    for _ in range(count):
        background, things = scene(part, random)
        clip = []
        for frame in times:
            picture, moving = expose(background, things, frame)
            light = 1 + random.uniform(-FLICKER, FLICKER) * disturbed
            top, left = SHAKE + random.integers(-SHAKE, SHAKE + 1, size=2) * disturbed
            seen = slice(top, top + SIDE), slice(left, left + SIDE)
            clip.append((light * picture[seen] + random.normal(0, NOISE, (SIDE, SIDE, 3))).clip(0, 1))
            if frame == 0:
                answers.append(moving[seen])
        clips.append(np.stack(clip))
    return Clips(
        torch.from_numpy(np.stack(clips)).float().permute(0, 1, 4, 2, 3), torch.from_numpy(np.stack(answers))
    )


def same_light(frames: Tensor) -> Tensor:
    """Every frame of a clip made as bright as their mean."""
    return frames / frames.mean((2, 3, 4), keepdim=True) * frames.mean((1, 2, 3, 4), keepdim=True)


class Block(nn.Module):
    """What looks around, and what mixes the channels, beside a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.around = Involution2d(channels, KERNEL, group_channels=8, reduction_ratio=2)
        mix = nn.Conv2d(channels, channels, 1)
        self.mix = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(), mix, nn.BatchNorm2d(channels))

    def forward(self, input: Tensor) -> Tensor:
        return (input + self.mix(self.around(input))).relu()


def network(channels: int) -> nn.Sequential:
    """Blocks at half the size; each position answers for the four pixels that it stands for."""
    embed = [nn.Conv2d(9, channels, 5, 2, padding=2), nn.BatchNorm2d(channels), nn.ReLU()]
    blocks = [Block(channels) for _ in range(BLOCKS)]
    return nn.Sequential(*embed, *blocks, nn.Conv2d(channels, 4, 1), nn.PixelShuffle(2))


def scored(model: nn.Module, frames: Tensor) -> Tensor:
    """How likely each pixel of the middle frame moves, as a logit ``(B, SIDE, SIDE)``, from three of the clip."""
    three = frames[:, [0, frames.shape[1] // 2, -1]]
    return model(same_light(three).flatten(1, 2))[:, 0]


def train(model: nn.Module, steps: int, title: str, seed: int) -> list[float]:
    import numpy as np

    random = np.random.default_rng(seed)

    def loss_of(model: nn.Module) -> Tensor:
        batch = film("train", BATCH, random, (-HALF, 0, HALF))
        logits, moving = scored(model, batch.frames), batch.moving.float()
        # Where little moves, cross entropy alone would rather say nothing; what is measured is IoU.
        likely = logits.sigmoid()
        both = (likely * moving).sum()
        missing = 1 - both / ((likely + moving).sum() - both).clamp_min(1)
        return nn.functional.binary_cross_entropy_with_logits(logits, moving) + 0.2 * missing

    return fit(model, loss_of, steps, 0.01, title)


def subtracted(frames: Tensor) -> Tensor:
    """How far the middle frame is from the clip's median, ``(B, SIDE, SIDE)``: the largest of the three colours."""
    return (frames[:, frames.shape[1] // 2] - frames.median(1).values).abs().amax(1)


def iou(found: Tensor, moving: Tensor) -> float:
    return float((found & moving).sum() / (found | moving).sum().clamp_min(1))


def best_threshold(difference: Tensor, moving: Tensor) -> float:
    return max((step / 100 for step in range(1, 60)), key=lambda level: iou(difference > level, moving))


def draw(clips: Clips, found: dict[str, Tensor], losses: dict[str, list[float]], path: Path) -> None:
    """Two clips: the middle frame, what moves, and what is said to move; and how training went."""
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(15, 4.6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(4, 1))
    panels = left.subplots(2, 2 + len(found))
    for row in range(2):
        middle = clips.frames[row, HALF].permute(1, 2, 0)
        panels[row, 0].imshow(middle.numpy())
        for panel, mask in zip(panels[row, 1:], (clips.moving, *found.values()), strict=True):
            panel.imshow(mask[row].numpy(), cmap="gray", vmin=0, vmax=1)
    for panel, title in zip(panels[0], ("middle frame", "what moves", *found), strict=True):
        panel.set_title(title, fontsize=9)
    for panel in panels.flat:
        panel.set(xticks=[], yticks=[])
    draw_losses(right.subplots(), losses)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> int:
    parser = options(__doc__, "surveillance", 300)
    parser.add_argument(
        "--channels", type=int, default=32, help="channels of the network with involution (default: 32)"
    )
    parser.add_argument("--test", type=int, default=100, help="number of test clips (default: 100)")
    chosen = parser.parse_args(arguments)
    need_demo()
    import numpy as np

    torch.set_num_threads(1)  # the frames are small
    torch.manual_seed(chosen.seed)
    ours = network(chosen.channels)
    models, losses = {"involution": ours, "3x3 convolution": with_convolutions(ours)}, {}
    for name, model in models.items():
        began = time.monotonic()
        losses[name] = train(model, chosen.steps, name, chosen.seed)
        print(f"{name}: {parameters(model):,} parameters, {time.monotonic() - began:.0f} s", flush=True)
    ious = {}
    for disturbed in (False, True):
        test = film("test", chosen.test, np.random.default_rng(1), range(-HALF, HALF + 1), disturbed)
        found = {}
        with torch.no_grad():
            for name, model in models.items():
                found[name] = torch.cat([scored(model, part) for part in test.frames.split(10)]) > 0
        for name, frames in (
            ("background subtraction", test.frames),
            ("the same, light put right", same_light(test.frames)),
        ):
            difference = subtracted(frames)
            found[name] = difference > best_threshold(difference, test.moving)
        print(
            f"IoU of what moves, in {chosen.test} clips {'with' if disturbed else 'without'} flicker and shake:"
        )
        for name, mask in found.items():
            ious[name] = iou(mask, test.moving)
            print(f"  {name:26} {ious[name]:.3f}")
    draw(test, found, losses, chosen.output)
    print(f"Picture: {chosen.output}")
    ours, *_, plain, corrected = ious.values()
    return 0 if ours >= max(LEVEL, max(plain, corrected) + MARGIN) else 1


if __name__ == "__main__":
    sys.exit(main())
