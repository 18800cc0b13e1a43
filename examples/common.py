"""What the examples share: training, the library for pictures, and material that ships with scikit-learn."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

COLOURS = ("#d62828", "#457b9d")  # of the network with involution and of its baseline


def options(description: str, name: str, steps: int, of: str = "of each network") -> argparse.ArgumentParser:
    """What the applications take: ``--steps``, ``--seed`` and ``--output``."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=steps, help=f"training steps {of} (default: {steps})")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default: 0)")
    parser.add_argument(
        "--output", type=Path, default=Path(f"{name}.png"), help=f"picture to write (default: {name}.png)"
    )
    return parser


def need_demo() -> None:
    """Raises an ImportError that says what to install, before minutes of training rather than behind them."""
    try:
        import matplotlib
        import PIL  # noqa: F401
        import sklearn  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"This example needs scikit-learn, pillow and matplotlib, but {error.name} is missing. "
            "Install them with: pip install -e '.[demo]'"
        ) from error
    matplotlib.use("Agg")


def fit(
    model: nn.Module, loss_of: Callable[[nn.Module], Tensor], steps: int, rate: float, title: str
) -> list[float]:
    """Trains by AdamW on ``loss_of(model)``, which draws a batch each time; returns the loss of each step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, max(steps, 2), pct_start=0.1)
    losses = []
    model.train()
    for step in range(1, steps + 1):
        loss = loss_of(model)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # kernels are not normalised
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        print(f"\r{title} {step}/{steps}, loss {losses[-1]:.3f}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    model.eval()
    return losses


def draw_losses(axes: Any, losses: dict[str, list[float]]) -> None:
    """Means over a fortieth of the steps, as single steps differ by their batches."""
    for (name, values), colour in zip(losses.items(), COLOURS, strict=False):
        width = max(1, len(values) // 40)
        smooth = [sum(values[i : i + width]) / width for i in range(0, len(values) - width + 1, width)]
        axes.plot([width * (i + 0.5) for i in range(len(smooth))], smooth, color=colour, label=name)
    axes.set(title="loss", xlabel="step", ylim=(0, None))
    axes.legend()


def photographs(part: str, *names: str) -> list[Any]:
    """scikit-learn's photographs, ``(H, W, 3)`` from 0 to 1: the left 70 % for ``"train"``, the rest for ``"test"``."""
    import numpy as np
    from sklearn.datasets import load_sample_image

    pictures = [load_sample_image(name) / np.float32(255) for name in names or ("china.jpg", "flower.jpg")]
    edges = [picture.shape[1] * 7 // 10 for picture in pictures]
    return [p[:, :edge] if part == "train" else p[:, edge:] for p, edge in zip(pictures, edges, strict=True)]


def digits(part: str) -> Any:
    """Handwritten digits, ``(N, 8, 8)`` from 0 to 255; every fourth is for ``"test"``, the others for ``"train"``."""
    import numpy as np
    from sklearn.datasets import load_digits

    images = np.uint8(load_digits().images * 255 / 16)
    test = np.arange(len(images)) % 4 == 3
    return images[test if part == "test" else ~test]
