"""The warp instructions that the CUDA kernels issue, counted from their machine code: no GPU is needed.

Small maps are mostly beginnings of blocks, and a copy that takes ten instructions is slow wherever it stands, so what
counts is what a whole block executes, divided by its output positions and groups of channels. Needs nvcc and cuobjdump
(the CUDA toolkit, or Triton's package): ``python -m benchmarks.instructions`` prints a line for every operation, dtype,
storage format and RedNet shape. A multiprocessor issues four warp instructions a clock at the most.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import machine_code, resources

OPERATIONS = ("involution", "involution_transpose", "local_correlation")
# Channels, width of the input and stride, with 16 channels a group, 7x7 kernels and a batch of 32.
SHAPES = ((64, 56, 1), (128, 28, 1), (256, 14, 1), (512, 7, 1), (128, 56, 2), (256, 28, 2), (512, 14, 2))
BATCH = 32
MULTIPROCESSORS = 132


def find_cuobjdump() -> str | None:
    """The disassembler of the CUDA toolkit, or the one in Triton's package; None where neither is there."""
    nvcc = resources.find_nvcc()
    beside = shutil.which("cuobjdump") or (nvcc and shutil.which("cuobjdump", path=str(Path(nvcc).parent)))
    if beside:
        return beside
    triton = importlib.util.find_spec("triton")
    folder = Path(triton.origin).parent if triton and triton.origin else Path()
    return shutil.which("cuobjdump", path=str(folder / "backends" / "nvidia" / "bin"))


@dataclass(frozen=True)
class Row:
    """What one launch executes."""

    name: str
    plan: str
    blocks: int
    count: machine_code.Count
    positions: float  # of the output, times groups, of a block

    @property
    def per_position(self) -> float:
        """Warp instructions a position and group."""
        return self.count.total / self.positions


def launch_name(operation: int, size: int, last: bool, channels: int, width: int, stride: int) -> str:
    """In words."""
    dtype, layout = "bfloat16" if size == 2 else "float32", "channels_last" if last else "contiguous"
    shape = f"{channels}x{width}x{width}{' / 2' if stride == 2 else ''}"
    return f"{OPERATIONS[operation]} {dtype} {layout} {shape}"


class Counter:
    """Compiles the kernels for 7x7 windows once and counts what their launches execute."""

    def __init__(self, nvcc: str, cuobjdump: str, folder: Path) -> None:
        symbols = {row.kernel: row.symbol for row in resources.main_resources(nvcc, "sm_90", folder)}
        kernels = machine_code.read_kernels(folder / "main_kernels.cubin", cuobjdump)
        self.kernels = {name: kernels[symbol] for name, symbol in symbols.items()}
        self.plans = resources.build_plans(folder)

    def count(self, operation: int, size: int, last: bool, channels: int, width: int, stride: int) -> Row:
        """Of a launch with elements of ``size`` bytes in channels_last (``last``) or contiguous storage."""
        groups = channels // 16
        numbers = (
            operation,
            size,
            int(last),
            BATCH,
            channels,
            groups,
            width,
            7,
            stride,
            MULTIPROCESSORS,
            227,
        )
        text = subprocess.run(
            [str(self.plans), *map(str, numbers)], capture_output=True, text=True, check=True
        ).stdout
        found = dict(re.findall(r"^(\w+): (.*)$", text, re.MULTILINE))
        x, y, z = map(int, found["grid"].split())
        bank = machine_code.constants(bytes.fromhex(found["march"]), int(found["threads"]), (x, y, z))
        if size == 2:
            kernel = f"band_kernel<BFloat16, (Operation){operation}, 7, 7, {stride}, {str(last).lower()}>"
        else:
            kernel = f"fma_kernel<(Operation){operation}, 7, {stride}, {int((operation, stride) == (1, 2))}>"
        # A block in the middle, which has the least to do at the edges of the map.
        counted = machine_code.count(
            self.kernels[kernel], bank, int(found["threads"]), (x // 2, y // 2, z // 2)
        )
        output = (width - 1) // stride + 1
        return Row(
            launch_name(operation, size, last, channels, width, stride),
            text.split("\n")[0],
            int(found["blocks"]),
            counted,
            BATCH * groups * output**2 / int(found["blocks"]),
        )

    def rows(self, matching: str) -> Iterator[Row]:
        """Every launch whose name the regular expression finds."""
        for operation in range(3):
            for size in (2, 4):
                for last in (True, False):
                    for shape in SHAPES:
                        if re.search(matching, launch_name(operation, size, last, *shape)):
                            yield self.count(operation, size, last, *shape)


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--match", default="", help="count only what this regular expression finds")
    options = parser.parse_args()
    nvcc, cuobjdump = resources.find_nvcc(), find_cuobjdump()
    if nvcc is None or cuobjdump is None:
        sys.exit("Counting needs nvcc and cuobjdump, which come with the CUDA toolkit.")
    with tempfile.TemporaryDirectory() as folder:
        counter = Counter(nvcc, cuobjdump, Path(folder))
        print(
            f"{'batch 32, 7x7, H200':<66}{'a position':>10}{'a block':>9}{'blocks':>8}{'first barrier':>15}"
        )
        for row in counter.rows(options.match):
            print(
                f"{row.name:<66}{row.per_position:>10.1f}{row.count.total:>9}{row.blocks:>8}"
                f"{max(row.count.until_first_barrier):>15}",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
