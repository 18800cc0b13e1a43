"""Imports of optional packages, whose absence or misfit becomes an error that says what to install."""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def needed_by(what: str, extra: str) -> Iterator[None]:
    """For imports of packages that are in the extra ``extra``, in a ``with`` statement.

    Raises:
        ImportError: one of them is missing, or torchvision's operators were compiled for another torch, which
            torchvision tells by a RuntimeError. The message has the versions and the command to install.
    """
    try:
        yield
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError)
        raise ImportError(
            f"{what} needs {error.name}, which {'is not installed' if missing else f'cannot be imported ({error})'}. "
            f"Install it with: pip install -e '.[{extra}]'",
            name=error.name,
        ) from error
    except RuntimeError as error:
        raise ImportError(
            f"torchvision {importlib.metadata.version('torchvision')} does not work with torch {torch.__version__} "
            f"({error}). Install a pair that belongs together, from one index: pip install --upgrade torch torchvision",
            name="torchvision",
        ) from error
