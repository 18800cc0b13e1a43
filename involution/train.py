"""Trains a model: ``python -m involution.train``, which without arguments trains a small RedNet on digits.

``python -m involution.train --help`` lists the options; :func:`train` is the same as a function.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .training import EXPECTED_ERRORS, ConfigError, Result, newest_run, train
from .training.command_line import add_config, add_options
from .training.config import from_mapping, read_options

__all__ = ["Result", "main", "train"]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command.

    Args:
        arguments: of the command line; those of the process unless given.

    Returns:
        The exit status: 0, or 130 after an interruption from the keyboard.

    Raises:
        SystemExit: with a message, where something that can be expected went wrong.
    """
    parser = argparse.ArgumentParser("python -m involution.train", description="Trains an image classifier.")
    add_config(parser)
    parser.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="RUN",
        help="go on with an interrupted run; without a folder, with the newest one in runs/",
    )
    add_options(parser)
    options = vars(parser.parse_args(arguments))
    name, resume = options.pop("config"), options.pop("resume")
    try:
        if resume is not None:
            if name is not None:
                raise ConfigError(
                    "A run goes on with its own configuration: give --resume or --config, not both."
                )
            train(options, resume=resume or newest_run(finished_epoch=False))
        else:
            options = {**(read_options(name) if name else {}), **options}
            train(from_mapping(options, name or "the command line"))
    except EXPECTED_ERRORS as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\nInterrupted. Go on with: python -m involution.train --resume", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
