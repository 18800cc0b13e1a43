"""What the plans ask of a GPU, without executing them: an H200 has 132 multiprocessors of 64 warps."""

import subprocess
from pathlib import Path

import host_build
import pytest

pytestmark = pytest.mark.skipif(
    host_build.why_unavailable() is not None, reason=host_build.why_unavailable() or "available"
)

OPERATIONS = ("involution", "involution_transpose", "local_correlation")
MULTIPROCESSORS = 132


@pytest.fixture(scope="module")
def program() -> Path:
    return host_build.build("plans", [host_build.HOST / "plans.cpp"])


def plan(
    program: Path, operation: str, element_size: int, last: bool, batch: int, channels: int, side: int
) -> dict[str, str]:
    """K = 7, 16 channels a group, stride 1."""
    numbers = (element_size, int(last), batch, channels, channels // 16, side, 7, 1, MULTIPROCESSORS)
    command = [str(program), str(OPERATIONS.index(operation)), *map(str, numbers)]
    text = subprocess.run(
        command, env=host_build.environment(), capture_output=True, text=True, check=True
    ).stdout
    return dict(line.split(": ") for line in text.splitlines())


def warps(found: dict[str, str]) -> int:
    """Of the busiest multiprocessor, when all blocks are resident."""
    return -(-int(found["blocks"]) // MULTIPROCESSORS) * -(-int(found["threads"]) // 32)


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("operation", OPERATIONS[:2])
def test_channels_of_small_maps_are_spread_over_more_warps(program: Path, operation: str, last: bool) -> None:
    """In float32. A lane of a full machine has 8 channels, of an empty one 2."""
    for batch, channels, side, lane_channels in (
        (1, 256, 14, 2),
        (1, 512, 7, 2),
        (32, 512, 7, 4),
        (32, 256, 14, 8),
        (32, 64, 56, 8),
    ):
        found = plan(program, operation, 4, last, batch, channels, side)
        assert found["kind"] == "tiled"
        assert int(found["lane_channels"]) == lane_channels
        assert int(found["lanes"]) * lane_channels == 16
        assert int(found["threads"]) % 32 == 0, "idle lanes"
        if batch == 32:
            assert warps(found) >= 16


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_correlation_of_small_maps_fills_the_machine(program: Path, last: bool) -> None:
    """A block for nearly every multiprocessor at batch 1; and never so large a block that its
    multiprocessor, with registers for 512 threads, has none that loads while it computes."""
    for batch, channels, side in ((1, 256, 14), (1, 512, 7), (32, 256, 14), (32, 512, 7), (32, 64, 56)):
        found = plan(program, "local_correlation", 4, last, batch, channels, side)
        assert found["kind"] == "tiled"
        assert int(found["blocks"]) >= 128
        assert int(found["threads"]) <= 256
        rows = int(found["lanes"]) * int(found["row_groups"])
        assert rows in (7, 8)  # each row of the kernel once, one lane idle at most
        if batch == 32:
            assert warps(found) >= 16
