"""The folder of a run, and what is in it."""

from __future__ import annotations

import json
import os
from pathlib import Path

from .checkpoint import CheckpointError, write_atomically
from .config import Config, ConfigError, read

RUNS = Path("runs")
CONFIG, LAST, BEST, LOG, CURVES, TENSORBOARD = (
    "config.json",
    "last.pt",
    "best.pt",
    "log.csv",
    "curves.png",
    "tensorboard",
)


def create_run(config: Config) -> Path:
    """Makes the folder of a new run and writes its configuration there.

    Args:
        config: its ``output`` is the folder; without one it is a new one in ``runs``, numbered.

    Raises:
        ConfigError: the folder holds a run already.
    """
    if config.output is not None:
        path = Path(config.output)
        path.mkdir(parents=True, exist_ok=True)
        if (path / CONFIG).exists():
            raise ConfigError(
                f"{path} holds a run already. Go on with it by --resume {path}, or give another --output."
            )
    else:
        number = 1
        while True:
            path = RUNS / f"{config.data}-{number}"
            try:
                path.mkdir(parents=True)
                break
            except FileExistsError:
                number += 1
    text = json.dumps(config.changed(output=str(path)).as_dict(), indent=2) + "\n"
    write_atomically(path / CONFIG, lambda file: file.write(text.encode()))
    return path


def find_run(path: str | Path) -> tuple[Path, Config]:
    """The folder of an earlier run, and its configuration.

    Args:
        path: the folder, or a checkpoint in it.

    Raises:
        ConfigError: it is not the folder of a run.
    """
    run = Path(path)
    run = run.parent if run.is_file() else run
    if not (run / CONFIG).is_file():
        raise ConfigError(f"{run} is not the folder of a run: it has no {CONFIG}.")
    return run, read(run / CONFIG)


def newest_run(finished_epoch: bool = True) -> Path:
    """The run in ``runs`` whose checkpoint was written last.

    Args:
        finished_epoch: leave out runs without a checkpoint; else the run that was begun last.

    Raises:
        CheckpointError: there is none.
    """
    found = list(RUNS.glob(f"*/{LAST if finished_epoch else CONFIG}"))
    if not found:
        raise CheckpointError(
            f"There is no run in {RUNS.absolute()}. Train one with python -m involution.train, or name one."
        )
    return max(found, key=os.path.getmtime).parent
