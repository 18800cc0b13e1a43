"""Options of a run as arguments of the command line."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

from .config import Config, shipped


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds every option of :class:`Config`; those that are not given leave no trace in the result.

    Args:
        parser: what they are added to.
    """
    defaults = Config()
    for entry in dataclasses.fields(Config):
        flag = "--" + entry.name.replace("_", "-")
        kind, default = entry.metadata["kind"], getattr(defaults, entry.name)
        told = {True: "on", False: "off"}.get(default, default) if kind is bool else default
        shown = "" if default is None or default == {} else f" (default: {told})"
        common: dict[str, Any] = {
            "help": (entry.metadata["help"] + shown).replace("%", "%%"),
            "default": argparse.SUPPRESS,
            "dest": entry.name,
        }
        if kind is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, **common)
        elif entry.metadata["choices"]:
            parser.add_argument(flag, choices=entry.metadata["choices"], **common)
        elif kind is list:
            parser.add_argument(flag, type=float, nargs="+", metavar="VALUE", **common)
        else:
            parser.add_argument(
                flag, type=_reader(kind, entry.metadata["optional"]), metavar=kind.__name__, **common
            )


def add_config(parser: argparse.ArgumentParser) -> None:
    """Adds ``--config``, the file or shipped configuration to begin with.

    Args:
        parser: what it is added to.
    """
    names = ", ".join(shipped())
    parser.add_argument(
        "--config", metavar="FILE", help=f"JSON file of options, or one that ships with the package: {names}"
    )


def _reader(kind: type, optional: bool) -> Any:
    def read(text: str) -> Any:
        if optional and text.lower() == "none":
            return None
        if kind is dict:
            return json.loads(text)
        return kind(text)

    read.__name__ = "JSON" if kind is dict else kind.__name__  # argparse names it in its errors
    return read
