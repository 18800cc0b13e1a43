"""The plain CUDA kernel that the operator is compared with; compiled when it is first asked for."""

from __future__ import annotations

import functools
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).resolve().parent


@functools.cache
def load() -> ModuleType:
    """Compiles the kernel with the CUDA toolkit that torch finds, or takes what an earlier run compiled."""
    from torch.utils import cpp_extension

    return cpp_extension.load(
        "involution_plain_kernel",
        [str(FOLDER / "plain.cu"), str(FOLDER / "binding.cpp")],
        extra_cflags=["-O3"],
        extra_cuda_cflags=["-O3"],
    )
