"""The published kernels as a baseline: their generated source, compiled by g++ and executed a thread at a time."""

from __future__ import annotations

import contextlib
import ctypes
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cases
import pytest
import torch

import benchmarks.cases
from benchmarks import baselines, check, official_kernel
from involution import reference

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
COMPILER = shutil.which("g++")
OPERATIONS = dict(zip(benchmarks.cases.OPERATIONS, cases.OPERATIONS, strict=True))
PROBLEMS = (
    cases.Case(2, 2, 3, (6, 9), (3, 5), (1, 1), (1, 2), (1, 1)),
    cases.Case(1, 2, 2, (9, 7), (7, 7), (2, 2), (3, 3), (1, 1)),
    cases.Case(2, 1, 4, (11, 8), (3, 3), (1, 1), (0, 0), (2, 2)),
    cases.Case(1, 3, 2, (8, 13), (3, 4), (2, 3), (3, 0), (1, 2)),
    cases.Case(1, 1, 1, (3, 3), (5, 5), (1, 2), (3, 3), (1, 1)),
)

SHIMS = """
#define __global__
#define __launch_bounds__(threads)
static struct { int x; } blockIdx, threadIdx;
"""
LAUNCHER = """
extern "C" void launch_NAME(int blocks, int threads, const Value* a, const Value* b, Value* result) {
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
    for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x) NAME(a, b, result);
  }
}
"""


def as_problem(case: cases.Case) -> official_kernel.Problem:
    frames = (case.input, case.output, case.kernel, case.stride, case.padding, case.dilation)
    return official_kernel.Problem(case.batch, case.channels, case.groups, *frames)


@pytest.fixture
def cupy_on_the_host(monkeypatch, tmp_path):
    """A module `cupy` that compiles by g++, with a trap for overflows of integers, and runs thread after thread."""
    if COMPILER is None:
        pytest.skip("no C++ compiler (g++)")

    class RawModule:
        def __init__(self, code: str) -> None:
            launchers = "".join(LAUNCHER.replace("NAME", name) for name in OPERATIONS)
            name = f"kernels-{len(list(tmp_path.iterdir()))}"
            path, library = tmp_path / f"{name}.cpp", tmp_path / f"{name}.so"
            path.write_text(SHIMS + code + launchers)
            trap = ["-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"]
            command = [COMPILER, "-std=c++17", "-O1", "-Wall", "-Werror", "-Wno-unknown-pragmas", *trap]
            subprocess.run([*command, "-shared", "-fPIC", str(path), "-o", str(library)], check=True)
            self.library = ctypes.CDLL(str(library))

        def get_function(self, name: str):
            launch = self.library[f"launch_{name}"]
            launch.argtypes = [ctypes.c_int] * 2 + [ctypes.c_void_p] * 3
            return lambda grid, block, arguments: launch(*grid, *block, *arguments)

    streams: list[int] = []

    @contextlib.contextmanager
    def external_stream(pointer: int):
        streams.append(pointer)
        yield

    fake = SimpleNamespace(RawModule=RawModule, cuda=SimpleNamespace(ExternalStream=external_stream))
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=77))
    official_kernel._kernel.cache_clear()
    yield streams
    official_kernel._kernel.cache_clear()


def surrounded(tensor: torch.Tensor) -> torch.Tensor:
    """The same values between numbers that are none, so that reading beside them shows."""
    margin = 4096
    whole = tensor.new_full((tensor.numel() + 2 * margin,), float("nan"))
    return whole[margin:-margin].view(tensor.shape).copy_(tensor)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("dtype", official_kernel.TYPES)
@pytest.mark.parametrize("case", PROBLEMS, ids=lambda case: f"{case.input} {case.kernel} {case.stride}")
def test_the_generated_source_computes_it(case, dtype, operation, cupy_on_the_host):
    case = case.with_(dtype=dtype)
    operator = OPERATIONS[operation]
    operands = [surrounded(tensor) for tensor in case.operands(operator)]
    result = official_kernel.run(operation, as_problem(case), *operands)
    expected = getattr(reference, operator)(*(t.double() for t in operands), *case.arguments(operator))
    torch.testing.assert_close(
        result.double(), expected, rtol=0, atol=cases.CEILING[dtype] * max(1, expected.abs().max().item())
    )
    assert cupy_on_the_host == [77]  # torch's current stream


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("strides", [1, 2])
def test_it_is_a_baseline_that_the_harness_checks(operation, strides, cupy_on_the_host):
    case = benchmarks.cases.Case("any", 2, 8, (9, 10), (3, 7), strides=strides, group_width=4)
    tensors = benchmarks.cases.make_tensors(case, torch.float32, "contiguous", CPU)
    baseline = baselines.BASELINES["official"]
    result = baseline.bind(operation, case)(tensors)()
    assert baseline.check(operation, case, tensors, result) < 1e-6
    with pytest.raises(check.WrongAnswerError):
        baseline.check(operation, case, tensors, result * 1.01)


def test_sizes_are_literals():
    case = cases.Case(5, 3, 7, (11, 13), (2, 9), (1, 3), (4, 6), (8, 10))
    lines = official_kernel.source(as_problem(case), torch.float64).splitlines()
    sizes = {"BATCH": 5, "CHANNELS": 21, "GROUPS": 3, "HEIGHT": 11, "WIDTH": 13}
    sizes |= {"OUT_HEIGHT": case.output[0], "OUT_WIDTH": case.output[1], "KERNEL_Y": 2, "KERNEL_X": 9}
    sizes |= {"STRIDE_Y": 1, "STRIDE_X": 3, "PADDING_Y": 4, "PADDING_X": 6}
    sizes |= {"DILATION_Y": 8, "DILATION_X": 10, "THREADS": 1024}
    assert {f"#define {name} {value}" for name, value in sizes.items()} <= set(lines)
    assert "typedef double Value;" in lines


def test_why_not(monkeypatch):
    baseline = baselines.BASELINES["official"]
    present = {"cupy": True}
    monkeypatch.setattr(official_kernel.importlib.util, "find_spec", lambda name: present[name] or None)
    case = benchmarks.cases.REDNET[1]

    def why(case=case, layout="contiguous", dtype=torch.float32, device=CUDA):
        return baseline.why_not("forward", case, layout, dtype, device)

    assert why() is None and why(dtype=torch.float64) is None
    assert why(device=CPU) == "it is a CUDA kernel"
    assert why(layout="channels_last") == "it reads contiguous tensors only"
    assert why(dtype=torch.bfloat16) == "the published kernels have float32 and float64, not bfloat16"
    sequence = benchmarks.cases.Case("sequence", 1, 16, (9,), (3,))
    assert why(sequence) == "the published kernels have two dimensions, not 1"
    assert "too few for a tensor of 2,517,630,976 elements" in why(replace(case, batch=4096))
    assert all(why(replace(c, batch=max(benchmarks.cases.BATCHES))) is None for c in benchmarks.cases.REDNET)
    present["cupy"] = False
    assert why() == "it needs CuPy, which is not installed"


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc (CUDA toolkit) to compile the kernel with")
def test_the_source_is_cuda(tmp_path: Path):
    path = tmp_path / "kernels.cu"
    path.write_text(official_kernel.source(as_problem(PROBLEMS[0]), torch.float32))
    subprocess.run(
        ["nvcc", "-arch=sm_90", "-ptx", "-o", str(tmp_path / "kernels.ptx"), str(path)], check=True
    )


@pytest.mark.gpu
@pytest.mark.parametrize("operation", OPERATIONS)
def test_on_the_gpu(operation):
    pytest.importorskip("cupy", reason="CuPy cannot be imported", exc_type=ImportError)
    for case in PROBLEMS:
        operands = [tensor.cuda() for tensor in case.operands(OPERATIONS[operation])]
        result = official_kernel.run(operation, as_problem(case), *operands)
        expected = getattr(reference, OPERATIONS[operation])(
            *operands, *case.arguments(OPERATIONS[operation])
        )
        torch.testing.assert_close(result, expected)
