"""A pytest plugin: CPU tensors take the CUDA backend, whose kernels are executed on the host.

`-p backend_on_host` loads the library that the environment names; test_backend_on_host.py builds it.
"""

import os

import pytest
import torch

import involution  # defines the operators, for which the library has kernels

LIBRARY = "INVOLUTION_BACKEND_ON_HOST"

torch.ops.load_library(os.environ[LIBRARY])
for _name in ("involution", "involution_transpose", "local_correlation"):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"involution::{_name}", "CPU"), (
        involution.build_info()
    )


def pytest_report_header(config: pytest.Config) -> str:
    return "CPU tensors take the CUDA backend, executed on the host"
