"""The picture of involution: a photograph, kernels made from it at a few positions, and what they give.

The kernels are not learned: each averages a position with those of its neighbours that look like it. It takes
one local correlation to make them and one involution to apply them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import torch
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from torch import Tensor

from involution import involution2d, local_correlation2d

matplotlib.use("Agg")

KERNEL = 15  # larger than a network's, so that kernels can be seen
TOP, LEFT, SIDE = 72, 160, 300  # the square of the photograph that is shown
# Where the picture looks closer: row and column in that square.
POSITIONS = ((30, 30), (80, 31), (152, 125), (130, 176), (205, 228), (238, 155))
COLOURS = ("#4cc9f0", "#f72585", "#b8f03c", "#9d4edd", "#ffd60a", "#00b4a0")


def smoothing_kernels(photograph: Tensor, kernel_size: int, tolerance: float = 0.2) -> Tensor:
    """Kernels that average a position with those of its neighbours that look like it.

    A bilateral filter (Tomasi and Manduchi, ICCV 1998) as attention: the softmax over neighbours ``j`` of
    ``-|f_i - f_j|**2 / (2 * tolerance**2) - distance``. The part in ``|f_i|**2`` cancels; what is left is a
    product of ``query = (f_i / tolerance**2, 1, far)`` with ``key = (f_j, -|f_j|**2 / (2*tolerance**2), 1)``.
    The last channel tells a neighbour from the zeros around the image, which have none of it.

    Args:
        photograph: ``(B, C, H, W)``.
        kernel_size: ``K``.
        tolerance: the difference in colour that still counts as alike.

    Returns:
        ``(B, 1, K, K, H, W)``, of sum 1 at every position.
    """
    one = torch.ones_like(photograph[:, :1])
    energy = photograph.square().sum(1, keepdim=True) / (2 * tolerance**2)
    query = torch.cat([photograph / tolerance**2, one, 1e3 * one], 1)
    key = torch.cat([photograph, -energy, one], 1)
    scores = local_correlation2d(query, key, kernel_size, padding="same").flatten(2, 3)
    scores = scores - distances(kernel_size).to(scores)[:, None, None]
    return scores.softmax(2).unflatten(2, (kernel_size, kernel_size))


def distances(kernel_size: int) -> Tensor:
    """(K*K): minus the logarithm of a Gaussian whose standard deviation is a quarter of the kernel."""
    offsets = torch.arange(kernel_size) - kernel_size // 2
    return (offsets[:, None].square() + offsets.square()).flatten() / (2 * (kernel_size / 4) ** 2)


def draw(photograph: Tensor, path: Path) -> None:
    """The photograph, one kernel everywhere, a kernel at every position, and a closer look at some."""
    size, half = KERNEL, KERNEL // 2
    # With a margin, so that no window that is shown reaches the zeros around.
    margin = (slice(TOP - half, TOP + SIDE + half), slice(LEFT - half, LEFT + SIDE + half))
    photograph = photograph[(..., *margin)]
    kernels = smoothing_kernels(photograph, size)
    smoothed = involution2d(photograph, kernels, padding="same")
    fixed = (-distances(size)).softmax(0).reshape(1, 1, size, size, 1, 1).to(photograph)
    blurred = involution2d(photograph, fixed.expand_as(kernels), padding="same")
    shown = (0, ..., slice(half, -half), slice(half, -half))
    images = [image[shown].permute(1, 2, 0).clamp(0, 1).cpu() for image in (photograph, blurred, smoothed)]
    kernels = kernels[shown][0].cpu()

    figure = plt.figure(figsize=(13, 8.55), facecolor="white")
    rows = figure.add_gridspec(
        2, 1, height_ratios=[1.04, 1], hspace=0.1, left=0.035, right=0.995, top=0.965, bottom=0.008
    )
    titles = (
        "photograph",
        f"convolution: one {size} x {size} Gaussian",
        f"involution: a {size} x {size} kernel per position",
    )
    top = rows[0].subgridspec(1, 3, wspace=0.03)
    for column, (image, title) in enumerate(zip(images, titles, strict=True)):
        axes = figure.add_subplot(top[column])
        axes.imshow(image, interpolation="lanczos")
        axes.set_title(title, fontsize=14)
        axes.set_axis_off()
        if column == 0:
            mark_positions(axes, size)

    bottom = rows[1].subgridspec(2, len(POSITIONS), wspace=0.05, hspace=0.04)
    for number, ((row, col), colour) in enumerate(zip(POSITIONS, COLOURS, strict=True)):
        patch = images[0][row - half : row + half + 1, col - half : col + half + 1]
        for line, content in enumerate((patch, kernels[:, :, row, col])):
            axes = figure.add_subplot(bottom[line, number])
            axes.imshow(content, cmap="magma", vmin=0, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set(color=colour, linewidth=3.5)
            if line == 0:
                axes.set_title(str(number + 1), fontsize=13, weight="bold", pad=5)
                axes.add_patch(Rectangle((half - 0.5, half - 0.5), 1, 1, fill=False, edgecolor="white"))
            if number == 0:
                axes.set_ylabel(("neighbourhood", "its kernel")[line], fontsize=14, labelpad=6)
    figure.savefig(path, format="png", dpi=90, pil_kwargs={"optimize": True})
    plt.close(figure)


def mark_positions(axes: Any, size: int) -> None:
    """Numbered squares, as large as the kernels."""
    for number, ((row, col), colour) in enumerate(zip(POSITIONS, COLOURS, strict=True), 1):
        corner = (col - size / 2, row - size / 2)
        square = Rectangle(corner, size, size, fill=False, edgecolor=colour, linewidth=2)
        square.set_path_effects([withStroke(linewidth=3, foreground="black")])
        axes.add_patch(square)
        label = axes.text(
            col + size / 2 + 4, row, str(number), color=colour, fontsize=14, weight="bold", va="center"
        )
        label.set_path_effects([withStroke(linewidth=3, foreground="black")])
