"""What the CUDA kernels issue and ask of memory, counted from their machine code: no GPU is needed.

Small maps are mostly beginnings of blocks, and a copy that takes ten instructions is slow wherever it stands, so what
counts is what a whole block executes, divided by its output positions and groups of channels. Needs nvcc and cuobjdump
(the CUDA toolkit, or Triton's package): ``python -m benchmarks.instructions`` prints a line for every operation, dtype,
storage format and RedNet shape. A multiprocessor issues four warp instructions a clock at the most, and its shared
memory serves one wavefront a clock: 128 bytes, fewer where words lie in the same bank. Sectors are 32 bytes of global
memory, counted for every instruction that touches them.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import machine_code, resources

MARCHING = ("involution", "involution_transpose", "local_correlation")
FUSED = "fused_involution"
GRADIENTS = ("fused_input_gradient", "fused_features_gradient", "fused_weight_gradient")
# Channels, width of the input and stride, with 16 channels a group, 7x7 kernels and a batch of 32.
SHAPES = ((64, 56, 1), (128, 28, 1), (256, 14, 1), (512, 7, 1), (128, 56, 2), (256, 28, 2), (512, 14, 2))
BATCH = 32
MULTIPROCESSORS = 132
SHARED_KIB = 227

# The fused kernels for 7x7 windows: of up to 16 * steps reduced channels.
FUSED_KERNELS = """\
#include "launch_fused.cuh"
#include "launch_fused_backward.cuh"
namespace involution {{
{0}
template cudaError_t launch_fused_backward(const FusedBackwardPlan&, const FusedBackwardOperands<BFloat16>&,
                                           cudaStream_t);
}}
"""
FUSED_KERNEL = (
    "template __global__ void fused_{0}kernel<BFloat16, 7, {1}>(const __grid_constant__ FusedMarch, const BFloat16*, "
    "const BFloat16*, const BFloat16*, const BFloat16*, const float*, const float*, BFloat16*);"
)


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
class Launch:
    """An operation on RedNet's maps; the fused one makes kernels from a quarter of the channels."""

    operation: str
    half: bool
    channels_last: bool
    channels: int
    width: int
    stride: int
    batch: int = BATCH

    @property
    def name(self) -> str:
        """In words."""
        dtype = "bfloat16" if self.half else "float32"
        layout = "channels_last" if self.channels_last else "contiguous"
        shape = f"{self.channels}x{self.width}x{self.width}{' / 2' if self.stride == 2 else ''}"
        return f"{self.operation} {dtype} {layout} {shape}"

    @property
    def positions(self) -> int:
        """Of the output, times groups."""
        return self.batch * self.channels // 16 * ((self.width - 1) // self.stride + 1) ** 2

    def plan_arguments(self) -> tuple[object, ...]:
        """Those of plans.cpp."""
        device = (MULTIPROCESSORS, SHARED_KIB)
        if self.operation == FUSED:
            return (
                FUSED.split("_")[0],
                self.batch,
                self.channels,
                self.channels // 4,
                self.width,
                7,
                self.stride,
                *device,
            )
        if self.operation in GRADIENTS:
            of = GRADIENTS.index(self.operation)
            return "fused_gradient", of, self.batch, self.channels, self.channels // 4, self.width, *device
        kind = (MARCHING.index(self.operation), 2 if self.half else 4, int(self.channels_last))
        return (*kind, self.batch, self.channels, self.channels // 16, self.width, 7, self.stride, *device)

    def kernel(self, plan: dict[str, str]) -> str:
        """What the compiler calls it."""
        if self.operation == FUSED:
            return f"fused_{'strided_' if self.stride == 2 else ''}kernel<BFloat16, 7, {plan['steps']}>"
        if self.operation in GRADIENTS:
            return f"{self.operation}_kernel<BFloat16, {plan['steps']}>"
        operation = MARCHING.index(self.operation)
        if self.half:
            last = str(self.channels_last).lower()
            return f"band_kernel<BFloat16, (Operation){operation}, 7, 7, {self.stride}, {last}>"
        return (
            f"fma_kernel<(Operation){operation}, 7, {self.stride}, {int((operation, self.stride) == (1, 2))}>"
        )


def launches() -> Iterator[Launch]:
    """Every operation, dtype, storage format and shape."""
    for operation, half, channels_last in itertools.product(MARCHING, (True, False), (True, False)):
        yield from (Launch(operation, half, channels_last, *shape) for shape in SHAPES)
    yield from (Launch(FUSED, True, True, *shape) for shape in SHAPES)
    for gradient in GRADIENTS:
        yield from (Launch(gradient, True, True, *shape) for shape in SHAPES if shape[2] == 1)


@dataclass(frozen=True)
class Row:
    """What one launch executes."""

    blocks: int
    count: machine_code.Count
    per_position: float  # warp instructions, and of one group
    wavefronts: float  # the same of these
    sectors: float


class Counter:
    """Compiles the kernels for 7x7 windows once and counts what their launches execute."""

    def __init__(self, nvcc: str, cuobjdump: str, folder: Path, architecture: str = "sm_90") -> None:
        fused = [FUSED_KERNEL.format("", steps) for steps in (1, 2, 4, 8)]
        fused += [FUSED_KERNEL.format("strided_", steps) for steps in (2, 4, 8)]
        source = folder / "fused_kernels.cu"
        source.write_text(FUSED_KERNELS.format("\n".join(fused)), encoding="utf-8")
        tables = {
            "main_kernels": resources.main_resources(nvcc, architecture, folder),
            "fused_kernels": resources.compile_cubin(
                nvcc, source, architecture, source.with_suffix(".cubin")
            ),
        }
        self.kernels: dict[str, machine_code.Kernel] = {}
        for stem, table in tables.items():
            kernels = machine_code.read_kernels(folder / f"{stem}.cubin", cuobjdump)
            self.kernels |= {row.kernel: kernels[row.symbol] for row in table}
        self.plans = resources.build_plans(folder)

    def plan(self, launch: Launch) -> dict[str, str]:
        """What plans.cpp prints."""
        command = [str(self.plans), *map(str, launch.plan_arguments())]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return dict(re.findall(r"^(\w+): (.*)$", text, re.MULTILINE))

    def count(self, launch: Launch) -> Row:
        """Of a block in the middle, which has the least to do at the edges of the map."""
        plan = self.plan(launch)
        x, y, z = map(int, plan["grid"].split())
        threads, blocks = int(plan["threads"]), int(plan["blocks"])
        kernel = self.kernels[launch.kernel(plan)]
        bank = machine_code.constants(kernel, bytes.fromhex(plan["march"]), threads, (x, y, z))
        found = machine_code.count(kernel, bank, threads, (x // 2, y // 2, z // 2))
        share = blocks / launch.positions
        return Row(blocks, found, found.total * share, found.wavefronts * share, found.sectors * share)


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
            f"{'of a position and group, batch 32, 7x7, H200':<66}{'instructions':>12}{'wavefronts':>11}"
            f"{'sectors':>9}{'blocks':>8}{'first barrier':>15}"
        )
        for launch in launches():
            if re.search(options.match, launch.name):
                row = counter.count(launch)
                print(
                    f"{launch.name:<66}{row.per_position:>12.1f}{row.wavefronts:>11.1f}{row.sectors:>9.1f}"
                    f"{row.blocks:>8}{max(row.count.until_first_barrier):>15}",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
