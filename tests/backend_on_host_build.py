"""Builds the library that runs the CUDA backend on the host, by torch's own build of C++ extensions.

A program of its own, because torch loads what it builds, and the library takes the place of the CPU kernels.
"""

import functools
import os
import subprocess
import sys
from pathlib import Path

import host_build
from torch.utils import cpp_extension

FOLDER = host_build.ROOT / "build" / "backend_on_host"


@functools.cache
def library() -> Path:
    """The path of the library, which is not loaded; unchanged sources are not compiled again."""
    run = subprocess.run([sys.executable, __file__], capture_output=True, text=True)
    if run.returncode != 0:
        raise RuntimeError(f"the backend could not be built for the host\n{run.stdout}{run.stderr}")
    return next(path for path in FOLDER.glob("backend_on_host*.so") if os.access(path, os.R_OK))


def build() -> None:
    """Builds the library, and loads it into this process."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    host, csrc = host_build.HOST, host_build.ROOT / "csrc"
    sources = [
        *(csrc / name for name in ("fused.cpp", "tensors.cpp")),
        *sorted(csrc.glob("*_cuda.cpp")),
        *sorted((csrc / "cuda").glob("*.cpp")),
        host / "backend_on_host.cpp",
        *(host / f"kernels_{dtype}.cpp" for dtype in ("bfloat16", "float16", "float32")),
        *host_build.RUNTIME,
    ]
    cpp_extension.load(
        name="backend_on_host",
        sources=[str(source) for source in sources],
        extra_include_paths=[str(host / "cuda_shim"), str(host), str(csrc)],
        extra_cflags=["-O1", "-Wno-unknown-pragmas"],
        build_directory=str(FOLDER),
        with_cuda=False,
        is_python_module=False,
    )


if __name__ == "__main__":
    import involution  # noqa: F401  the library's kernels are for its operators

    build()
