"""Involution in three dimensions: which way does it move?

A block of video shows a random texture that moves one pixel a frame in one of eight directions, or stands still,
under noise as strong as the texture itself. No single frame tells anything, as the textures are random; the
direction is only in how frames go together. The answer is known, because the block was made with it.

The example trains a network with ``Involution3d`` and one with depthwise convolutions in its place, widened to at
least as many parameters, and prints and draws which of the nine directions they find in blocks they have not seen.
Both find them. Under stronger noise (``--noise 2``) the convolution finds more: an involution makes each kernel from
one place, and so from that place's noise.

Run ``python examples/volume.py`` where involution is installed with its extra ``demo``; it takes about a
minute. The exit status is 1 if the network with involution finds less than nine in ten.
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from baseline import parameters, smallest_not_below
from common import draw_losses, fit
from torch import Tensor, nn

from involution import Involution3d

FRAMES, SIDE, KERNEL = 6, 12, 3
DIRECTIONS = {
    "still": (0, 0),
    "right": (0, 1),
    "down right": (1, 1),
    "down": (1, 0),
    "down left": (1, -1),
    "left": (0, -1),
    "up left": (-1, -1),
    "up": (-1, 0),
    "up right": (-1, 1),
}
SHARE = 0.9  # of the directions that must be found


class Blocks(NamedTuple):
    """Video, ``(B, 1, FRAMES, SIDE, SIDE)``, and the number of its direction, ``(B,)``."""

    video: Tensor
    direction: Tensor


def film(count: int, generator: torch.Generator, noise: float = 1.0) -> Blocks:
    """Blocks of texture and noise; what is at a place now was one step back a frame ago."""
    margin = FRAMES
    side = SIDE + 2 * margin
    texture = torch.randn(count, side, side, generator=generator)
    direction = torch.randint(len(DIRECTIONS), (count,), generator=generator)
    steps = torch.tensor(list(DIRECTIONS.values()))[direction]  # (B, 2): rows and columns a frame
    frame = torch.arange(FRAMES)
    place = torch.arange(SIDE) + margin
    rows = place - frame[:, None] * steps[:, 0, None, None]  # (B, FRAMES, SIDE)
    columns = place - frame[:, None] * steps[:, 1, None, None]
    batch = torch.arange(count)[:, None, None, None]
    video = texture[batch, rows[..., None], columns[..., None, :]]
    video = video + noise * torch.randn(video.shape, generator=generator)
    return Blocks(video[:, None], direction)


def network(kind: str, channels: int) -> nn.Sequential:
    """Two blocks and a linear head; ``kind`` says what looks at the neighbourhood in them."""

    def block() -> list[nn.Module]:
        around: nn.Module = nn.Conv3d(channels, channels, KERNEL, padding="same", groups=channels)
        if kind == "involution":
            around = Involution3d(channels, KERNEL, group_channels=8, reduction_ratio=2)
        mix = nn.Conv3d(channels, channels, 1)
        return [around, nn.BatchNorm3d(channels), nn.ReLU(), mix, nn.BatchNorm3d(channels), nn.ReLU()]

    embed = [nn.Conv3d(1, channels, KERNEL, padding=1), nn.BatchNorm3d(channels), nn.ReLU()]
    head = [nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(channels, len(DIRECTIONS))]
    return nn.Sequential(*embed, *block(), *block(), *head)


def train(model: nn.Module, steps: int, noise: float, title: str, seed: int = 0) -> list[float]:
    """On fresh blocks all the time; returns the loss of each step."""
    generator = torch.Generator().manual_seed(seed)

    def loss_of(model: nn.Module) -> Tensor:
        batch = film(32, generator, noise)
        return nn.functional.cross_entropy(model(batch.video), batch.direction)

    return fit(model, loss_of, steps, 0.01, title)


def confusion(model: nn.Module, test: Blocks) -> Tensor:
    """How often each direction (row) was taken for each (column)."""
    count = len(DIRECTIONS)
    with torch.no_grad():
        found = torch.cat([model(part).argmax(1) for part in test.video.split(64)])
    return torch.bincount(test.direction * count + found, minlength=count**2).view(count, count)


def draw(found: dict[str, Tensor], losses: dict[str, list[float]], noise: float, path: Path) -> None:
    """One block, how training went, and what was confused."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(12, 7), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(1, 2))
    clean = film(1, torch.Generator().manual_seed(3), noise=0.0)
    noisy = film(1, torch.Generator().manual_seed(3), noise)
    panels = upper.subplots(2, FRAMES)
    for row, (blocks, title) in enumerate(((clean, "texture"), (noisy, "what is seen"))):
        for frame in range(FRAMES):
            panels[row, frame].imshow(blocks.video[0, 0, frame].numpy(), cmap="gray", vmin=-3, vmax=3)
            panels[row, frame].set(xticks=[], yticks=[])
            if row == 0:
                panels[row, frame].set_title(f"frame {frame + 1}", fontsize=9)
        panels[row, 0].set_ylabel(title)
    upper.suptitle(f"moving: {list(DIRECTIONS)[int(clean.direction)]}")
    axes = lower.subplots(1, 1 + len(found))
    draw_losses(axes[0], losses)
    for (name, matrix), panel in zip(found.items(), axes[1:], strict=True):
        share = matrix / matrix.sum(1, keepdim=True).clamp_min(1)
        panel.imshow(share.numpy(), cmap="Blues", vmin=0, vmax=1)
        panel.set_xticks(range(len(DIRECTIONS)), DIRECTIONS, rotation=90)
        panel.set_yticks(range(len(DIRECTIONS)), DIRECTIONS)
        panel.set_title(f"{name}: {100 * float(matrix.trace() / matrix.sum()):.1f}% found")
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--steps", type=int, default=200, help="training steps of each network (default: 200)"
    )
    parser.add_argument(
        "--noise",
        type=float,
        default=1.0,
        help="standard deviation of the noise; the texture's is 1 (default: 1)",
    )
    parser.add_argument(
        "--channels", type=int, default=16, help="channels of the network with involution (default: 16)"
    )
    parser.add_argument("--test", type=int, default=1000, help="number of test volumes (default: 1000)")
    parser.add_argument(
        "--output", type=Path, default=Path("volume.png"), help="picture to write (default: volume.png)"
    )
    options = parser.parse_args(arguments)
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "The picture needs matplotlib, which is missing. Install it with: pip install -e '.[demo]'"
        ) from error

    torch.set_num_threads(1)  # the tensors are small
    torch.manual_seed(0)
    ours = network("involution", options.channels)
    baseline = smallest_not_below(parameters(ours), partial(network, "convolution"))
    test = film(options.test, torch.Generator().manual_seed(1), options.noise)
    print(
        f"Of {options.test} blocks that no network has seen, with {len(DIRECTIONS)} directions to choose from:"
    )
    found, losses = {}, {}
    for name, model in {"involution": ours, "depthwise convolution": baseline}.items():
        began = time.monotonic()
        losses[name] = train(model, options.steps, options.noise, name)
        found[name] = confusion(model, test)
        share = 100 * float(found[name].trace() / found[name].sum())
        took = f"{time.monotonic() - began:.0f} s"
        print(f"  {name:22} finds {share:5.1f}%  {parameters(model):6,} parameters, {took}", flush=True)
    draw(found, losses, options.noise, options.output)
    print(f"Picture: {options.output}")
    matrix = found["involution"]
    return 0 if matrix.trace() >= SHARE * matrix.sum() else 1


if __name__ == "__main__":
    sys.exit(main())
