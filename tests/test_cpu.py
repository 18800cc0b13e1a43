"""The native CPU kernels: every instruction set, any number of threads, under sanitizers; and the reference."""

import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cases
import host_build
import pytest
import torch
from cases import Case, assert_right
from host_runner import CpuRunner
from torch import Tensor

import involution

ROOT = host_build.ROOT
NATIVE = involution.build_info()["cpu_capability"]
CAPABILITIES = ("default", "avx2", "avx512")
# Each includes those before it.
AVAILABLE = CAPABILITIES[: CAPABILITIES.index(NATIVE) + 1] if NATIVE else ()

EACH_OPERATION = pytest.mark.parametrize("operation", cases.OPERATIONS)
EACH_DTYPE = pytest.mark.parametrize(
    "dtype", cases.DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch.")
)
native = pytest.mark.skipif(NATIVE is None, reason="the extension is not built")
sanitized = pytest.mark.skipif(
    host_build.why_unavailable() is not None, reason=host_build.why_unavailable() or "available"
)


def operator(operation: str):
    return getattr(torch.ops.involution, operation).default


# Small, odd and large in the ways that matter to vectors, blocks of channels, and tiles of the width and the height.
GEOMETRIES = {
    "rednet": Case(2, 2, 16, (14, 14), (7, 7), (1, 1), (3, 3), (1, 1)),
    "narrow": Case(2, 3, 16, (7, 7), (7, 7), (1, 1), (3, 3), (1, 1)),
    "one position": Case(1, 1, 1, (1, 1), (1, 1), (1, 1), (0, 0), (1, 1)),
    "one channel": Case(1, 5, 1, (9, 70), (3, 3), (1, 1), (1, 1), (1, 1)),
    "many channels": Case(1, 1, 83, (5, 19), (3, 5), (1, 1), (1, 2), (1, 1)),
    "many groups": Case(1, 130, 2, (3, 18), (3, 3), (1, 1), (1, 1), (1, 1)),
    "several tiles": Case(1, 1, 3, (4, 301), (3, 5), (1, 1), (1, 2), (1, 1)),
    "several tiles, strided": Case(1, 1, 3, (5, 401), (3, 4), (2, 3), (1, 2), (1, 1)),
    "stride": Case(2, 2, 9, (17, 40), (5, 5), (2, 2), (2, 2), (1, 1)),
    "stride beyond the kernel": Case(1, 2, 4, (11, 50), (1, 2), (3, 5), (0, 1), (1, 1)),
    "dilation": Case(1, 2, 5, (13, 37), (3, 3), (1, 1), (4, 9), (2, 9)),
    "dilation beyond the map": Case(1, 1, 4, (6, 33), (3, 3), (1, 1), (40, 400), (40, 400)),
    "dilation and stride": Case(1, 1, 17, (16, 40), (3, 4), (2, 3), (3, 4), (3, 2)),
    "even kernel": Case(1, 2, 3, (9, 33), (4, 2), (1, 1), (2, 1), (1, 1)),
    "wide kernel": Case(1, 1, 2, (3, 20), (1, 31), (1, 1), (0, 15), (1, 1)),
    "sequence": Case(2, 2, 12, (333,), (9,), (1,), (4,), (1,)),
    "volume": Case(1, 2, 6, (5, 6, 21), (3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1)),
    # Groups that fill vectors, which then lie along the channels.
    "channels, one in the last block": Case(1, 2, 33, (4, 15), (3, 3), (1, 1), (1, 1), (1, 1)),
    "channels, long chains": Case(1, 2, 16, (3, 23), (2, 13), (1, 1), (0, 6), (1, 1)),
    "channels, stride": Case(1, 2, 16, (15, 22), (5, 7), (2, 2), (2, 3), (1, 1)),
    "channels, stride beyond the kernel": Case(1, 1, 16, (9, 50), (2, 2), (3, 5), (0, 1), (1, 1)),
    "channels, dilation": Case(1, 2, 16, (9, 20), (3, 3), (1, 1), (2, 6), (2, 6)),
    "channels, dilation beyond the map": Case(1, 2, 16, (10, 1), (3, 3), (3, 1), (4, 2), (3, 2)),
    "channels, several tiles": Case(1, 1, 16, (3, 261), (3, 6), (1, 2), (1, 2), (1, 1)),
    "channels, rows that meet no source": Case(1, 1, 16, (3, 6), (3, 5), (2, 2), (3, 0), (2, 1)),
    "channels, four points left over": Case(1, 2, 16, (5, 19), (2, 6), (1, 1), (1, 2), (1, 1)),
    "channels, six points": Case(1, 2, 16, (5, 19), (2, 3), (1, 1), (1, 1), (1, 1)),
    "channels, sequence": Case(2, 2, 16, (37,), (6,), (1,), (3,), (1,)),
    "channels, volume": Case(1, 1, 17, (5, 6, 9), (3, 2, 3), (2, 1, 2), (1, 1, 1), (1, 1, 1)),
    "channels, volume without a stride": Case(
        1, 2, 16, (4, 5, 9), (3, 2, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1)
    ),
    # Rows of many blocks, each of which adds up many taps.
    "channels, many points": Case(1, 2, 16, (3, 37), (7, 7), (1, 1), (3, 3), (1, 1)),
    "channels, many points, strided": Case(1, 2, 16, (3, 75), (7, 7), (1, 2), (3, 3), (1, 1)),
    # Kernels wide enough for vectors along their rows.
    "windows": Case(2, 3, 5, (10, 19), (5, 7), (1, 1), (2, 3), (1, 1)),
    "windows, eight wide": Case(1, 2, 3, (8, 21), (9, 8), (1, 1), (4, 4), (1, 1)),
    "windows, several tiles": Case(1, 2, 3, (4, 301), (3, 5), (1, 2), (1, 2), (1, 1)),
    "windows, strided": Case(2, 2, 17, (13, 15), (7, 7), (2, 2), (3, 3), (1, 1)),
    "windows, long strides": Case(1, 2, 4, (14, 50), (4, 6), (3, 4), (1, 2), (1, 1)),
    "windows, dilation": Case(1, 2, 4, (17, 20), (3, 6), (1, 1), (4, 2), (4, 1)),
    "windows, volume": Case(1, 2, 4, (4, 7, 9), (2, 3, 5), (1, 2, 1), (1, 1, 2), (1, 1, 1)),
    "windows, wide padding": Case(1, 1, 4, (3, 2), (7, 7), (1, 1), (12, 12), (1, 1)),
    # More positions between a tile's first and last than it meets.
    "channels, dilation beyond a tile": Case(1, 2, 16, (4, 560), (2, 3), (1, 1), (0, 200), (1, 200)),
    "channels, stride and dilation beyond a tile": Case(
        1, 2, 16, (4, 620), (2, 3), (1, 2), (0, 200), (1, 201)
    ),
    # Tiles of the height.
    "several tiles of the height": Case(1, 1, 32, (25, 40), (3, 3), (1, 1), (1, 1), (1, 1)),
    "volume, strided": Case(1, 1, 5, (7, 8, 19), (2, 3, 3), (2, 1, 2), (1, 1, 1), (1, 2, 1)),
}
EACH_GEOMETRY = pytest.mark.parametrize("name", GEOMETRIES)


def check(name: str, operation: str, layout: str, dtype: torch.dtype) -> Tensor:
    case = GEOMETRIES[name].with_(dtype=dtype, x_layout=layout, w_layout=layout, y_layout=layout)
    first, second = case.operands(operation)
    result = operator(operation)(first, second, *case.arguments(operation))
    assert_right(result, operation, first, second, case.arguments(operation))
    return result


@EACH_OPERATION
@EACH_GEOMETRY
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_geometries(name: str, operation: str, layout: str) -> None:
    check(name, operation, layout, torch.float32)
    check(name, operation, layout, torch.bfloat16)


@native
@EACH_OPERATION
@EACH_GEOMETRY
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_results_do_not_depend_on_the_number_of_threads(name: str, operation: str, layout: str) -> None:
    case = GEOMETRIES[name].with_(
        batch=3, dtype=torch.float32, x_layout=layout, w_layout=layout, y_layout=layout
    )
    operands = case.operands(operation)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(operator(operation)(*operands, *case.arguments(operation)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="the system does not list threads in /proc")
@native
def test_work_is_shared_among_threads() -> None:
    """Nothing else in the process starts torch's threads before the operator does."""
    program = (
        "import os, torch, involution\n"
        "torch.set_num_threads(4)\n"
        "x, w = torch.empty(8, 64, 32, 32), torch.empty(8, 4, 7, 7, 32, 32)\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "involution.involution2d(x, w, padding='same')\n"
        "print(len(os.listdir('/proc/self/task')) - before, involution.build_info()['cpu_parallel'])\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    started, parallel = run.stdout.split()
    openmp = "backend: OpenMP" in torch.__config__.parallel_info()
    assert parallel == "True", "the extension was compiled without OpenMP"
    assert not openmp or started == "3", f"{started} threads were started beside the caller's"


@EACH_DTYPE
def test_every_half_value_is_read_and_written_as_torch_does(dtype: torch.dtype) -> None:
    """A 1x1 kernel of ones copies; of a half type all 65536 values, NaN by being one."""
    if dtype.itemsize != 2:
        pytest.skip("not a half type")
    values = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    copied = operator("involution")(
        values.view(1, 1, -1), torch.ones(1, 1, 1, values.numel(), dtype=dtype), (1,), (0,), (1,)
    ).flatten()
    assert torch.equal(copied.isnan(), values.isnan())
    kept = ~values.isnan()
    assert torch.equal(copied[kept].float(), values[kept].float())
    # Sums that no half number is: rounded to nearest, ties to even.
    x = torch.stack([values, values.roll(1)]).T.reshape(1, 1, -1)
    added = operator("involution")(
        x, torch.ones(1, 1, 2, values.numel(), dtype=dtype), (2,), (0,), (1,)
    ).flatten()
    expected = (values.float() + values.roll(1).float()).to(dtype)
    assert torch.equal(added.isnan(), expected.isnan())
    assert torch.equal(added[~expected.isnan()], expected[~expected.isnan()])


def rerun(selection: str, plugin: str | None = None, **environment: str) -> None:
    """Runs some of the tests once more in a process of their own."""
    files, _, expression = selection.partition(" -k ")
    paths = [str(ROOT / "tests" / file) for file in files.split()]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *paths]
    command += ["-k", expression] if expression else []
    command += ["-p", plugin] if plugin else []
    folders = os.pathsep.join([str(ROOT / "tests"), *sys.path])
    run = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": folders, "INVOLUTION_TESTS_ONE_IN": "3", **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed is not None and int(passed[1]) > 10, run.stdout[-2000:]


@native
@pytest.mark.parametrize("capability", AVAILABLE[:-1])
def test_the_operators_tests_pass_on_every_instruction_set(capability: str) -> None:
    """The best one runs in this process."""
    selection = (
        "test_operations.py test_cpu.py -k test_operations or ((geometries or half_value) and not sanitizers)"
    )
    rerun(selection, INVOLUTION_CPU_CAPABILITY=capability)


@native
@pytest.mark.parametrize(
    "selection",
    [
        "test_operations.py test_bad_input.py test_gradients.py "
        "-k not test_gradients or (not 3 and not gradgradcheck[2)",
        "test_fused_operator.py test_fused_derivatives.py test_fused_backward.py -k (test_fused_backward and (gives or "
        "opcheck or right)) or (not test_fused_backward and not compile_it and not gradgradcheck and not definition)",
        "test_compile.py test_autocast.py test_tracing.py -k (test_compile and (opcheck or meta or transforms)) or "
        "(test_tracing and operations) or (test_autocast and not training and not compile)",
    ],
)
def test_the_operators_tests_pass_without_the_extension(selection: str) -> None:
    rerun(selection, plugin="without_extension")


@native
def test_capability_is_chosen_by_the_environment() -> None:
    program = "import involution; print(involution.build_info()['cpu_capability'])"

    def ask(capability: str) -> subprocess.CompletedProcess:
        environment = {**os.environ, "INVOLUTION_CPU_CAPABILITY": capability}
        return subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True
        )

    assert ask("").stdout.strip() == NATIVE or os.environ.get("INVOLUTION_CPU_CAPABILITY")
    assert ask("default").stdout.strip() == "default"
    assert "must be one of default, avx2 and avx512, but is 'sse'" in ask("sse").stderr


# Without AVX-512, kernels as wide take the place of its own.
WIDE = "avx512" not in AVAILABLE
WIDE_DTYPES = (torch.float32, torch.bfloat16)
DTYPE_NUMBERS = {torch.float32: 0, torch.bfloat16: 1, torch.float64: 0, torch.float16: 1}


@pytest.fixture(scope="module", params=[*AVAILABLE, "wide"] if WIDE else AVAILABLE)
def runner(request: pytest.FixtureRequest) -> Iterator[CpuRunner]:
    with CpuRunner(request.param, WIDE) as runner:
        yield runner


def execute(runner: CpuRunner, operation: str, case: Case, seed: int = 0, in_two_orders: bool = True) -> None:
    """Runs the kernel, with its items in two orders, cut for two numbers of threads, and checks it."""
    first, second = case.operands(operation, seed)
    x, w, y = case.tensors(seed)
    third = {"involution": y, "involution_transpose": x, "local_correlation": w}[operation]
    layout, leading = {
        "involution": (case.y_layout, 2),
        "involution_transpose": (case.x_layout, 2),
        "local_correlation": (case.w_layout, 2 + case.axes),
    }[operation]
    out = cases.laid_out(
        third.new_empty(third.shape), "contiguous" if layout == "expanded" else layout, leading
    )
    results = []
    for order in (2 * seed + 1, 2 * seed + 2)[: 1 + in_two_orders]:
        result, _ = runner.run(
            operation,
            first,
            second,
            out,
            kernel_size=case.kernel,
            groups=case.groups,
            seed=order,
            **case.window,  # type: ignore[arg-type]
        )
        results.append(result)
    assert_right(results[0], operation, first, second, case.arguments(operation))
    assert torch.equal(results[0], results[-1]), f"{operation} depends on how the work is cut"


@sanitized
@EACH_OPERATION
@EACH_DTYPE
def test_geometries_under_sanitizers(
    runner: CpuRunner, request: pytest.FixtureRequest, operation: str, dtype: torch.dtype
) -> None:
    capability = request.node.callspec.params["runner"]
    if capability == "wide" and dtype not in WIDE_DTYPES:
        pytest.skip("the wide kernels are compiled for float32 and bfloat16 alone")
    # The two formats by turns: of each size both are met, by different dtypes and instruction sets.
    turn = DTYPE_NUMBERS[dtype] + CAPABILITIES.index(capability if capability != "wide" else "avx512")
    for number, case in enumerate(GEOMETRIES.values(), turn):
        layout = ("contiguous", "channels_last")[number % 2]
        execute(
            runner,
            operation,
            case.with_(dtype=dtype, x_layout=layout, w_layout=layout, y_layout=layout),
            # How the work is cut depends on the sizes alone, of elements and vectors too.
            in_two_orders=dtype in WIDE_DTYPES,
        )


@sanitized
@EACH_OPERATION
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_random_problems_under_sanitizers(
    runner: CpuRunner, request: pytest.FixtureRequest, operation: str, axes: int
) -> None:
    rng = random.Random(f"cpu {operation} {axes}")
    for seed in range(25):
        case = cases.random_case(rng, axes)
        if request.node.callspec.params["runner"] == "wide":
            case = case.with_(dtype=WIDE_DTYPES[seed % 2])
        execute(runner, operation, case, seed)
