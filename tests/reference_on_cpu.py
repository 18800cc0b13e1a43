"""A pytest plugin: CPU tensors take the definition in plain PyTorch, also where native kernels are built."""

import warnings

import pytest
import torch

from involution import _library

_override = torch.library.Library(_library.NAMESPACE, "IMPL")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that this overrides the native kernels, which is what it is for
    for _name in ("involution", "involution_transpose", "local_correlation"):
        _override.impl(_name, _library._by_reference(_name), "CPU")
        _registered = torch._C._dispatch_dump(f"involution::{_name}")
        assert "reference_on_cpu.py" in _registered.partition("\nCPU:")[2].partition("\n")[0], _registered


def pytest_report_header(config: pytest.Config) -> str:
    return "CPU tensors take the reference"
