"""What the tests of training share: small images, a small network, options for both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

# Small, with everything that draws random numbers.
MODEL = {
    "blocks": [1, 1],
    "widths": [8, 8],
    "strides": [1, 2],
    "stem_channels": 8,
    "kernel_size": 3,
    "group_channels": 4,
    "expansion": 2,
    "drop_path": 0.2,
    "dropout": 0.2,
}


def write_images(root: Path, train: int = 8, test: int = 4, size: tuple[int, int] = (12, 10)) -> Path:
    """Image folders of two classes, bright at the top or bright at the left, and noise; skips a test without pillow."""
    np, image = pytest.importorskip("numpy"), pytest.importorskip("PIL.Image")
    generator = np.random.default_rng(0)
    for part, count in (("train", train), ("val", test)):
        for name in ("left", "top"):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 100, (*size, 3))
                pixels[(slice(None), slice(0, 4)) if name == "left" else slice(0, 4)] += 150
                image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:02}.png")
    return root


def options(data: Path, output: Path | None, **changes: Any) -> dict[str, Any]:
    """Options of a run on :func:`write_images` that takes a second."""
    settings: dict[str, Any] = {
        "data": "folder",
        "data_path": str(data),
        "image_size": 8,
        "output": None if output is None else str(output),
        "model_arguments": MODEL,
        "epochs": 3,
        "batch_size": 4,
        "warmup_epochs": 1,
        "workers": 0,
        "device": "cpu",
        "plot": False,
    }
    return {**settings, **changes}


class Malicious:
    """Creates a file when a pickle of it is read with trust."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (open, (str(self.path), "w"))


def curve(history: list[dict[str, float]]) -> list[dict[str, float]]:
    """The history without the time it took."""
    return [{name: value for name, value in row.items() if name != "seconds"} for row in history]
