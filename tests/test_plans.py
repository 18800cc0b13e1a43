"""What the plans ask of a GPU, without executing them: an H200 has 132 multiprocessors of 64 warps."""

import re
import subprocess
from pathlib import Path

import host_build
import pytest

pytestmark = pytest.mark.skipif(
    host_build.why_unavailable() is not None, reason=host_build.why_unavailable() or "available"
)

OPERATIONS = ("involution", "involution_transpose", "local_correlation")
MULTIPROCESSORS = 132
KIB = 227  # of shared memory that a block may have
STAGES = ((64, 56), (128, 28), (256, 14), (512, 7))  # of RedNet: channels, and the side of the map

EACH_OPERATION = pytest.mark.parametrize("operation", OPERATIONS)
EACH_FORMAT = pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
EACH_SIZE = pytest.mark.parametrize("element_size", [2, 4], ids=["half", "float32"])


@pytest.fixture(scope="module")
def program() -> Path:
    folder = host_build.ROOT / "csrc" / "cuda"
    fused = [folder / "fused_plan.cpp", folder / "fused_backward_plan.cpp"]
    sources = [host_build.ROOT / "benchmarks" / "plans.cpp", *fused, *host_build.PLAN_SOURCES]
    return host_build.build("plans", sources)


def plan(
    program: Path,
    operation: str,
    element_size: int,
    last: bool,
    batch: int,
    channels: int,
    side: int,
    stride: int = 1,
    multiprocessors: int = MULTIPROCESSORS,
    kib: int = KIB,
    forced: str = "",
) -> tuple[str, dict[str, int]]:
    """K = 7, 16 channels a group: the plan in words, and its numbers."""
    numbers = (
        element_size,
        int(last),
        batch,
        channels,
        channels // 16,
        side,
        7,
        stride,
        multiprocessors,
        kib,
    )
    command = [str(program), str(OPERATIONS.index(operation)), *map(str, numbers)]
    environment = {**host_build.environment(), **({"INVOLUTION_CUDA_PLAN": forced} if forced else {})}
    text = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    numbers_of_plan = re.findall(r"^(\w+): (\d+)$", text, re.MULTILINE)
    return text.split("\n")[0], {name: int(value) for name, value in numbers_of_plan}


@EACH_OPERATION
@EACH_FORMAT
@EACH_SIZE
@pytest.mark.parametrize("stride", [1, 2])
def test_rednet_fills_the_machine(
    program: Path, operation: str, last: bool, element_size: int, stride: int
) -> None:
    """At batch 32 no multiprocessor is without a block, and warps that copy stand beside those that compute."""
    for channels, side in STAGES:
        if side * stride > 56:
            continue
        words, found = plan(program, operation, element_size, last, 32, channels, side * stride, stride)
        assert words.startswith("band square " if element_size == 2 else "fma "), words
        assert found["blocks"] >= 128, words
        assert found["shared_bytes"] <= KIB * 1024
        assert found["threads"] == 32 * (found["consumers"] + found["producers"]) <= 640
        assert found["producers"] >= 1
        resident = min(
            -(-found["blocks"] // MULTIPROCESSORS), (KIB + 1) * 1024 // (found["shared_bytes"] + 1024)
        )
        assert resident * found["threads"] >= 128, words


@EACH_OPERATION
@EACH_SIZE
def test_small_batches_are_cut_into_chunks(program: Path, operation: str, element_size: int) -> None:
    for last in (False, True):
        _, one = plan(program, operation, element_size, last, 1, 64, 56)
        _, many = plan(program, operation, element_size, last, 256, 64, 56)
        assert one["chunks"] > many["chunks"]


@EACH_OPERATION
@EACH_SIZE
def test_plans_scale_with_the_machine(program: Path, operation: str, element_size: int) -> None:
    """More multiprocessors take more chunks, and less shared memory is enough."""
    for last in (False, True):
        few = plan(program, operation, element_size, last, 1, 64, 56, multiprocessors=16)[1]
        many = plan(program, operation, element_size, last, 1, 64, 56, multiprocessors=264)[1]
        assert few["blocks"] < many["blocks"]
        for kib in (163, 99, 64):
            words, small = plan(program, operation, element_size, last, 32, 64, 56, kib=kib)
            assert not words.startswith("generic"), words
            assert small["shared_bytes"] <= kib * 1024


def test_rows_of_small_maps_are_marched_down_as_they_were_fastest(program: Path) -> None:
    """On an H200, of prototypes: a chunk brings six rows of its neighbour's, which is much of a map of 14 rows."""
    chunks = [plan(program, operation, 2, True, 32, 256, 14)[1]["chunks"] for operation in OPERATIONS]
    assert chunks == [2, 1, 2]


def test_packs_are_halved_for_idle_multiprocessors_alone(program: Path) -> None:
    """128 blocks stay where all but four multiprocessors have one, and not where half have none."""

    def blocks_and_channels(multiprocessors: int) -> tuple[int, int]:
        _, found = plan(program, "involution", 2, True, 32, 512, 7, multiprocessors=multiprocessors)
        return found["blocks"], found["channels"]

    assert blocks_and_channels(132) == (128, 128)
    assert blocks_and_channels(264) == (256, 64)


def test_a_number_can_be_forced(program: Path) -> None:
    arguments = (program, "involution", 2, True, 32, 64, 56)
    _, own = plan(*arguments)
    _, forced = plan(*arguments, forced="stages=4 producers=5 chunks=7")
    assert (forced["stages"], forced["producers"], forced["chunks"]) == (4, 5, 7)
    assert forced["channels"] == own["channels"]
    assert plan(*arguments, forced="generic")[0] == "generic: INVOLUTION_CUDA_PLAN asks for it"
