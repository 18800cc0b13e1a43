"""Tests marked `gpu` need a CUDA device; without one they are skipped, and counted as such."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from deployment import Deployment


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if item.get_closest_marker("gpu") is not None:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """A checkpoint and its files. AOTInductor compiles for half a minute, so the whole run of the tests has one."""
    from deployment import deploy

    return deploy(tmp_path_factory.mktemp("deployment"))
