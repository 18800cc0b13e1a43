"""A pytest plugin: CPU tensors take the CUDA backend, whose kernels are executed on the host.

`-p backend_on_host` loads the library that the environment names; test_backend_on_host.py builds it.
"""

import os

import pytest
import torch

import involution  # defines the operators, for which the library has kernels

LIBRARY = "INVOLUTION_BACKEND_ON_HOST"

# The last registration of a kernel is the one in force: this overrides the native CPU kernels.
torch.ops.load_library(os.environ[LIBRARY])
for _name in (
    "involution",
    "involution_transpose",
    "local_correlation",
    "fused_involution",
    "_fused_backward_cuda",
):
    _registered = torch._C._dispatch_dump(f"involution::{_name}")
    _in_force = _registered.partition("\nCPU:")[2].partition("\n")[0]
    assert "backend_on_host.cpp" in _in_force, (_registered, involution.build_info())


def pytest_report_header(config: pytest.Config) -> str:
    return "CPU tensors take the CUDA backend, executed on the host"
