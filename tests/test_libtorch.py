"""The operators in a C++ program that has torch and the library of operators, but no Python."""

import contextlib
import io
import os
import subprocess
from pathlib import Path

import host_build
import pytest
import torch
from torch.utils import cpp_extension

import involution
from involution import reference

LIBRARY = involution.build_info()["extension"]
pytestmark = [
    pytest.mark.skipif(LIBRARY is None, reason="involution was installed without its extension"),
    pytest.mark.skipif(
        host_build.why_unavailable() is not None, reason=host_build.why_unavailable() or "available"
    ),
]


@pytest.fixture(scope="module")
def program() -> Path:
    """The compiled program; while its source is unchanged, it is not compiled again."""
    folder = host_build.ROOT / "build" / f"libtorch-{torch.__version__}"
    folder.mkdir(parents=True, exist_ok=True)
    log = io.StringIO()
    try:
        with contextlib.redirect_stdout(log):
            cpp_extension.load(
                name="libtorch_program",
                sources=[str(host_build.ROOT / "tests" / "libtorch" / "program.cpp")],
                extra_cflags=["-O0"],
                build_directory=str(folder),
                with_cuda=False,
                is_python_module=False,
                is_standalone=True,
            )
    except Exception as error:
        raise RuntimeError(f"the program could not be built\n{log.getvalue()}") from error
    return folder / "libtorch_program"


def waves(*shape: int) -> torch.Tensor:
    count = torch.Size(shape).numel()
    return torch.arange(1, count + 1, dtype=torch.float64).sin().view(shape).requires_grad_()


def test_results_and_derivatives_without_python(program: Path) -> None:
    """Those of the definition, which torch differentiates here; to second order."""
    # A library with CUDA kernels needs torch's own for CUDA, which this program is not linked with.
    libraries = os.pathsep.join(
        [str(Path(torch.__file__).parent / "lib"), os.environ.get("LD_LIBRARY_PATH", "")]
    )
    run = subprocess.run(
        [program, str(LIBRARY)],
        env={**os.environ, "LD_LIBRARY_PATH": libraries},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    printed = {}
    for line in run.stdout.splitlines():
        name, *values = line.split()
        printed[name] = torch.tensor([float(value) for value in values], dtype=torch.float64)

    steps = ((2, 1), (1, 1), (1, 2))
    x, w, y = waves(2, 4, 5, 4), waves(2, 2, 3, 2, 3, 4), waves(2, 4, 3, 4)
    expected = {
        "involution": (reference.involution(x, w, *steps), x, w),
        "involution_transpose": (reference.involution_transpose(y, w, (5, 4), *steps), y, w),
        "local_correlation": (reference.local_correlation(y, x, (3, 2), 2, *steps), y, x),
    }
    for name, (result, first, second) in expected.items():
        gradients = torch.autograd.grad(result.square().sum(), (first, second), create_graph=True)
        (mixed,) = torch.autograd.grad(gradients[0].square().sum(), second)
        for suffix, tensor in (
            ("", result),
            (".first", gradients[0]),
            (".second", gradients[1]),
            (".mixed", mixed),
        ):
            torch.testing.assert_close(printed.pop(name + suffix), tensor.detach().flatten())
    assert not printed


def test_python_is_not_loaded(program: Path) -> None:
    """Neither the program nor the library of operators needs Python."""
    for path in (program, Path(str(LIBRARY))):
        needed = subprocess.run(["ldd", path], capture_output=True, text=True).stdout
        assert "libtorch_cpu" in needed
        assert "libpython" not in needed and "libtorch_python" not in needed
