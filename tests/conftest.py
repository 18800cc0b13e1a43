"""What concerns all tests: GPUs that are not there, and processors that tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from exported_files import ExportedFiles

# With pytest-xdist, the processes of a run share the processors.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    torch.set_num_threads(max(1, torch.get_num_threads() // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])))


# With pytest-xdist a file's tests stay in one process, for what they set up together; but these, whose tests take
# minutes and share nothing but builds that are kept, are dealt out one by one.
DEALT_OUT = (
    "test_backend_on_host",
    "test_cpu",
    "test_detection_export",
    "test_fused_backward_on_host",
    "test_fused_on_host",
    "test_kernels_on_host",
    "test_operations",
    "test_segmentation",
)

# And these stay together, since both read what the fixture exported_files takes a minute to make.
TOGETHER = {"test_cpp_example": "test_export"}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked `gpu` need a CUDA device; without one they are skipped, and counted as such."""
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            if item.path.stem not in DEALT_OUT:
                item.add_marker(pytest.mark.xdist_group(TOGETHER.get(item.path.stem, item.path.stem)))
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if item.get_closest_marker("gpu") is not None:
            item.add_marker(skip)


@pytest.fixture
def everything_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were a fused kernel for every layer and input, on the CPU."""
    monkeypatch.setattr("involution._fused.DEVICE_TYPE", "cpu")
    monkeypatch.setattr("involution._fused.why_unavailable", lambda *arguments: None)


@pytest.fixture
def backward_kernels_pretended(
    monkeypatch: pytest.MonkeyPatch, everything_fused: None
) -> Iterator[list[tuple[bool, ...]]]:
    """As if there were kernels for 7x7 windows on the CPU, of all gradients but the features': what they were asked."""
    from involution import _fused, _fused_derivatives

    calls: list[tuple[bool, ...]] = []

    def pretended(*arguments: Any) -> tuple[torch.Tensor | None, ...]:
        *others, asked = arguments
        calls.append(tuple(asked))
        return _fused_derivatives.composed([asked[0], False, *asked[2:]], *others)

    monkeypatch.setenv(_fused.BACKWARD_VARIABLE, "1")
    with torch.library._scoped_library("involution", "IMPL") as library:
        library.impl("_fused_backward_cuda", pretended, "CPU")
        yield calls


@pytest.fixture
def cuda_pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    """What layers do on CUDA without a fused kernel."""
    monkeypatch.setattr("involution.layers.kernel_branch._on_cuda", lambda tensor: True)


@pytest.fixture(scope="session")
def torchvision() -> ModuleType:
    """torchvision, which some builds of torch cannot load: its operators then raise a RuntimeError."""
    try:
        import torchvision
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torchvision cannot be imported: {error}")
    return torchvision


@pytest.fixture(scope="session")
def exported_files(tmp_path_factory: pytest.TempPathFactory) -> ExportedFiles:
    """A checkpoint and its files. AOTInductor compiles for half a minute, so the whole run of the tests has one."""
    from exported_files import export_files

    return export_files(tmp_path_factory.mktemp("exported"))
