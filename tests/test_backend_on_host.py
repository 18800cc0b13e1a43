"""The whole CUDA path on the host: dispatcher, checks, allocation, plan, launch and kernels.

The tests of the operator run once more with CPU tensors on the CUDA backend, of which only the CUDA runtime
and torch's three CUDA headers are replaced (tests/host/cuda_shim).
"""

import os
import re
import subprocess
import sys

import backend_on_host_build
import host_build
import pytest
import torch

import involution  # noqa: F401  defines the operators

pytestmark = pytest.mark.skipif(
    host_build.why_unavailable() is not None, reason=host_build.why_unavailable() or "available"
)


@pytest.mark.parametrize(
    "selection",
    [
        "test_operations.py",
        "test_gradients.py -k 'not 3 or vmap'",
        "test_compile.py -k 'opcheck or all_operations or meta'",
        "test_fused_kernel.py",
        "test_fused_backward.py -k 'gives or right or taken'",
    ],
    ids=["operations", "gradients", "compile", "fused", "fused_backward"],
)
def test_the_operators_tests_pass_on_the_backend(selection: str) -> None:
    file, _, expression = selection.partition(" -k ")
    options = ["-k", expression.strip("'")] if expression else []
    environment = {**os.environ, "INVOLUTION_BACKEND_ON_HOST": str(backend_on_host_build.library())}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "backend_on_host", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [*command, str(host_build.ROOT / "tests" / file), *options],
        env={
            **environment,
            "INVOLUTION_TESTS_ONE_IN": "3",
            "PYTHONPATH": os.pathsep.join([str(host_build.ROOT / "tests"), *sys.path]),
        },
        cwd=host_build.ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed is not None and int(passed[1]) > 10, run.stdout[-2000:]


def test_this_process_keeps_its_own_kernels() -> None:
    """Else whatever tests come later here run on the host's, hundreds of times as slow."""
    backend_on_host_build.library()
    names = ("involution", "involution_transpose", "local_correlation", "fused_involution")
    for name in (*names, "_fused_backward_cuda"):
        assert "backend_on_host.cpp" not in torch._C._dispatch_dump(f"involution::{name}")
