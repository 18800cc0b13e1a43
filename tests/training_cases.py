"""What the tests of training share: small images, a small network, options for both."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

# Small, with everything that draws random numbers.
NETWORK: dict[str, Any] = {"blocks": [1, 1], "widths": [8, 8], "strides": [1, 2], "stem_channels": 8}
NETWORK |= {"kernel_size": 3, "group_channels": 4, "expansion": 2, "drop_path": 0.2, "dropout": 0.2}


def need_libraries() -> None:
    """Skips a module where the extra `train` is not installed or, as torchvision may, does not fit this torch."""
    try:
        import involution.training.libraries  # noqa: F401
    except ImportError as error:
        pytest.skip(str(error), allow_module_level=True)


def write_images(root: Path, train: int = 8, test: int = 4, size: tuple[int, int] = (12, 10)) -> Path:
    """Image folders of two classes, bright at the top or bright at the left, and noise."""
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


def words(data: Path, output: Path, **changes: Any) -> list[str]:
    """Options of a run on :func:`write_images` that takes a second; `data_workers=1` is `--data.workers=1`."""
    settings: dict[str, Any] = {
        "data": "ImageFolder",
        "data.path": str(data),
        "data.image_size": 8,
        "data.batch_size": 4,
        "data.workers": 0,
        "model.network_arguments": NETWORK,
        "output": str(output),
        "trainer.max_epochs": 3,
        "trainer.accelerator": "cpu",
    }
    groups = ("data_", "model_", "trainer_")
    settings |= {k.replace("_", ".", 1) if k.startswith(groups) else k: v for k, v in changes.items()}
    return [f"--{name}={v if isinstance(v, str) else json.dumps(v)}" for name, v in settings.items()]


def curve(run: Path) -> list[dict[str, str]]:
    """The log of a run, digit by digit."""
    with open(run / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


def train_keeping(folder: Path, options: list[str]) -> Path:
    """A run in `whole`; beside it, as `after-N`, each of its last checkpoints as a kill would have left it."""
    from involution.train import train
    from involution.training import run

    save, kept = run.AtomicCheckpoints.save_checkpoint, []

    def keep(self, checkpoint, path, storage_options=None):
        save(self, checkpoint, path, storage_options)
        if Path(path).name == run.LAST:
            copy = folder / f"after-{len(kept)}"
            copy.mkdir()
            kept.append(shutil.copy(path, copy))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.AtomicCheckpoints, "save_checkpoint", keep)
        train(options)
    return folder / "whole"
