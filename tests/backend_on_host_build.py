"""Builds the library that runs the CUDA backend on the host, by torch's own build of C++ extensions."""

import contextlib
import functools
import io
import os
from pathlib import Path

import host_build
from torch.utils import cpp_extension


@functools.cache
def library() -> Path:
    """The path of the library; unchanged sources are not compiled again."""
    folder = host_build.ROOT / "build" / "backend_on_host"
    folder.mkdir(parents=True, exist_ok=True)
    host, csrc = host_build.HOST, host_build.ROOT / "csrc"
    sources = [
        *(csrc / name for name in ("cuda_backend.cpp", "fused_cuda.cpp", "fused.cpp", "tensors.cpp")),
        *sorted((csrc / "cuda").glob("*.cpp")),
        host / "backend_on_host.cpp",
        *(host / f"kernels_{dtype}.cpp" for dtype in ("bfloat16", "float16", "float32")),
        *host_build.RUNTIME,
    ]
    log = io.StringIO()
    try:
        with contextlib.redirect_stdout(log):
            cpp_extension.load(
                name="backend_on_host",
                sources=[str(source) for source in sources],
                extra_include_paths=[str(host / "cuda_shim"), str(host), str(csrc)],
                extra_cflags=["-O1", "-DINVOLUTION_WITH_CUDA", "-Wno-unknown-pragmas"],
                build_directory=str(folder),
                with_cuda=False,
                is_python_module=False,
            )
    except Exception as error:
        raise RuntimeError(f"the backend could not be built for the host\n{log.getvalue()}") from error
    return next(path for path in folder.glob("backend_on_host*.so") if os.access(path, os.R_OK))
