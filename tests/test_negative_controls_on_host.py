"""Negative controls: the host execution of kernels finds the mistakes that it is there to find.

Each kernel of tests/host/negative_controls.cpp exists with and without one mistake. The right version passes for every
seed; the wrong one ends in the expected report, or in an output that is visibly not to be trusted.
"""

import math
import subprocess
from pathlib import Path

import host_build
import pytest

pytestmark = pytest.mark.skipif(
    host_build.why_unavailable() is not None, reason=host_build.why_unavailable() or "available"
)

SEEDS = range(8)
BARRIER_EXIT_CODE = 70

# Found in the output: a NaN that nobody wrote over, or results that depend on who runs first.
VISIBLE_IN_OUTPUT = [
    "read_after_write",
    "write_after_read",
    "warp_barrier_for_block",
    "missing_warp_barrier",
    "copies_too_early",
    "copies_without_barrier",
    "matrices_too_early",
    "matrices_overwritten",
    "unwritten_output",
    "uninitialised_shared",
]

# Found while the kernel runs: what the report has to say.
REPORTED = {
    "early_return": "divergent barrier",
    "two_barriers": "divergent barrier",
    "barrier_for_some": "divergent barrier",
    "shuffle_without_all_lanes": "divergent barrier",
    "matrices_without_all_lanes": "divergent barrier",
    "misaligned_matrix": "misaligned address",
    "shuffle_from_outside_mask": "reads lane 16, which takes no part",
    "shared_out_of_bounds": "heap-buffer-overflow",
    "read_out_of_bounds": "heap-buffer-overflow",
    "write_out_of_bounds": "heap-buffer-overflow",
    "misaligned_vector": "misaligned address",
    "misaligned_copy": "misaligned address",
    "index_overflow": "signed integer overflow",
    "stack_out_of_bounds": "stack-buffer-overflow",
    "exception": "thread 77 threw an exception: thrown on purpose",
}


@pytest.fixture(scope="module")
def program() -> Path:
    return host_build.build("negative_controls", [host_build.HOST / "negative_controls.cpp"])


def run(program: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(program), *map(str, arguments)]
    environment = {**host_build.environment(), **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def outputs(program: Path, name: str, version: str) -> list[list[float]]:
    """What the kernel computed, for every seed."""
    results = []
    for seed in SEEDS:
        done = run(program, name, version, seed)
        assert done.returncode == 0, done.stderr
        results.append([float(line) for line in done.stdout.split()])
    return results


def written(values: list[float]) -> list[float]:
    """Without the poison behind the last element that a kernel is meant to write."""
    count = len(values)
    while count > 0 and math.isnan(values[count - 1]):
        count -= 1
    return values[:count]


@pytest.mark.parametrize("name", [*VISIBLE_IN_OUTPUT, *REPORTED])
def test_right_version_passes(program: Path, name: str) -> None:
    first, *others = (written(values) for values in outputs(program, name, "right"))
    assert len(first) > 0
    assert not any(map(math.isnan, first))
    assert all(other == first for other in others)


@pytest.mark.parametrize("name", VISIBLE_IN_OUTPUT)
def test_mistake_shows_in_the_output(program: Path, name: str) -> None:
    expected = written(outputs(program, name, "right")[0])
    wrong = [values[: len(expected)] for values in outputs(program, name, "wrong")]
    assert any(math.isnan(value) for value in wrong[0]) or any(values != wrong[0] for values in wrong)
    assert all(values != expected for values in wrong)


@pytest.mark.parametrize("name", REPORTED)
def test_mistake_is_reported(program: Path, name: str) -> None:
    for seed in SEEDS:
        done = run(program, name, "wrong", seed)
        assert done.returncode != 0
        assert REPORTED[name] in done.stderr


def test_report_says_who_waits_where(program: Path) -> None:
    done = run(program, "early_return", "wrong", 0)
    assert done.returncode == BARRIER_EXIT_CODE
    lines = (host_build.HOST / "negative_controls.cpp").read_text().splitlines()
    kernel = next(i for i, line in enumerate(lines) if "void early_return" in line)
    barrier = next(i for i, line in enumerate(lines) if i > kernel and "__syncthreads" in line) + 1
    assert f"negative_controls.cpp:{barrier}: threads 0-99" in done.stderr
    assert "returned: threads 100-127" in done.stderr


def test_a_seed_repeats(program: Path) -> None:
    first, second = (run(program, "read_after_write", "wrong", 5) for _ in range(2))
    assert first.stdout == second.stdout


@pytest.mark.parametrize("name", ["write_after_read", "stack_out_of_bounds"])
def test_fake_stacks_follow_the_fibers(program: Path, name: str) -> None:
    options = host_build.ENVIRONMENT["ASAN_OPTIONS"] + ":detect_stack_use_after_return=1"
    assert run(program, name, "right", 0, ASAN_OPTIONS=options).returncode == 0
    if name in REPORTED:
        assert REPORTED[name] in run(program, name, "wrong", 0, ASAN_OPTIONS=options).stderr


def test_launch_errors_are_cudas(program: Path) -> None:
    done = run(program, "launch_errors")
    assert done.returncode == 0, done.stderr
    assert dict(line.split(": ") for line in done.stdout.splitlines()) == {
        "the largest block": "no error",
        "all shared memory": "no error",
        "a block too large": "invalid configuration argument",
        "a block too large as a product": "invalid configuration argument",
        "a block too deep": "invalid configuration argument",
        "an empty block": "invalid configuration argument",
        "an empty grid": "invalid configuration argument",
        "a grid too high": "invalid configuration argument",
        "too much shared memory": "invalid argument",
    }
