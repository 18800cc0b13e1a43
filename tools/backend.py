"""The build backend: setuptools' own, plus torch as a build requirement where the build would find none.

Naming torch in pyproject.toml would make every isolated build compile against the newest torch instead of
the one that is installed, which then could not load the extension. So it is asked for only when there is
none: then the run-time requirement resolves to the same one.
"""

from __future__ import annotations

import os
from typing import Any

import build_config
import setuptools
from setuptools import build_meta
from setuptools.build_meta import (  # noqa: F401  (the other hooks, unchanged)
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

# Without build isolation nothing else checks this, and an older one fails on pyproject.toml with a riddle.
if int(setuptools.__version__.split(".")[0]) < 77:
    raise SystemExit(
        f"involution needs setuptools 77 or later to build, but this is {setuptools.__version__}. "
        "Run `python -m pip install --upgrade setuptools` first, or leave out --no-build-isolation."
    )


def _torch() -> list[str]:
    try:
        needless = build_config.requested_mode(os.environ) == "none"
    except build_config.BuildError as error:
        raise SystemExit(str(error)) from None
    if needless or build_config.why_no_compiling(os.environ) or build_config.find_torch(os.environ):
        return []
    return [build_config.TORCH_REQUIREMENT]


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    """PEP 517: what building a wheel needs beyond pyproject.toml's requirements."""
    return [*build_meta.get_requires_for_build_wheel(config_settings), *_torch()]


def get_requires_for_build_editable(config_settings: dict[str, Any] | None = None) -> list[str]:
    """PEP 660: the same for an editable install."""
    return [*build_meta.get_requires_for_build_editable(config_settings), *_torch()]
