"""What each CUDA kernel takes of a multiprocessor: registers, stack frame and spills, and what its plans add.

Needs nvcc and no GPU: ``python -m benchmarks.resources [--arch sm_90]`` prints two tables, of every kernel and of
the plans for RedNet's shapes, and exits with an error if a kernel spills registers or has a stack frame. The
tests require that none of the kernels for K = 7 does (``--main`` prints these alone).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).resolve().parent.parent / "csrc" / "cuda"

# The kernels for 7x7 windows, 16 channels a group: those that RedNet runs.
MAIN = """\
#include "launch_march.cuh"
namespace involution {{
{band}
{fma}
}}
"""
OPERATIONS = ("kInvolution", "kTranspose", "kCorrelation")


@dataclass(frozen=True)
class Resources:
    """One kernel's share: registers and bytes a thread, and bytes of static shared memory a block."""

    kernel: str
    registers: int
    stack_frame: int
    spill_stores: int
    spill_loads: int
    static_shared: int = 0
    symbol: str = ""  # the name in the object file

    @property
    def clean(self) -> bool:
        """No stack frame and no spills."""
        return self.stack_frame == self.spill_stores == self.spill_loads == 0


def find_nvcc() -> str | None:
    """The compiler on PATH or in CUDA_HOME, or None."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    return shutil.which("nvcc") or shutil.which("nvcc", path=str(Path(home, "bin")))


def version(nvcc: str) -> str:
    """The compiler's release, such as ``13.0, V13.0.88``."""
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release (.+)", text)
    if found is None:
        raise RuntimeError(f"{nvcc} --version names no release: {text.strip()!r}")
    return found[1]


def compile_cubin(nvcc: str, source: Path, architecture: str, output: Path) -> list[Resources]:
    """Compiles one .cu file for one architecture, such as ``sm_90``, and reads what ptxas says of it."""
    command = [
        nvcc,
        "-O3",
        f"-arch={architecture}",
        f"-I{SOURCES}",
        "-cubin",
        "-Xptxas",
        "-v",
        "-o",
        str(output),
        str(source),
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{result.stderr}")
    return parse(result.stderr)


def parse(report: str) -> list[Resources]:
    """The kernels in ptxas's verbose report."""
    pattern = re.compile(
        r"Compiling entry function '(?P<name>\w+)'.*?"
        r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
        r"(?P<loads>\d+) bytes spill loads.*?"
        r"Used (?P<registers>\d+) registers(?:[^\n]*?(?P<shared>\d+) bytes smem)?",
        re.DOTALL,
    )
    found = list(pattern.finditer(report))
    names = readable([match["name"] for match in found])
    return [
        Resources(
            kernel=name,
            registers=int(match["registers"]),
            stack_frame=int(match["stack"]),
            spill_stores=int(match["stores"]),
            spill_loads=int(match["loads"]),
            static_shared=int(match["shared"] or 0),
            symbol=match["name"],
        )
        for name, match in zip(names, found, strict=True)
    ]


def readable(names: Sequence[str]) -> list[str]:
    """`gather_tile_kernel<float, 7, 1, 1, false>` for what the compiler calls it, if c++filt is there to say."""
    if shutil.which("c++filt") is None or not names:
        return list(names)
    text = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    ).stdout
    return [re.sub(r"^void |involution::", "", without_arguments(line)) for line in text.splitlines()]


def without_arguments(signature: str) -> str:
    """Cuts the parameter list; a parenthesis inside template arguments, as of an enumerator, stays."""
    depth = 0
    for place, character in enumerate(signature):
        depth += {"<": 1, ">": -1}.get(character, 0)
        if character == "(" and depth == 0:
            return signature[:place]
    return signature


def all_resources(nvcc: str, architecture: str, folder: Path) -> dict[Path, list[Resources]]:
    """Every kernel of the extension, by the object file in ``folder``; the files compile side by side."""
    sources = sorted(SOURCES.glob("*.cu"))
    cubins = [folder / f"{source.stem}.cubin" for source in sources]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        tables = pool.map(
            lambda source, cubin: compile_cubin(nvcc, source, architecture, cubin), sources, cubins
        )
    return dict(zip(cubins, tables, strict=True))


def main_kernels() -> str:
    """The source of a file that holds the kernels for K = 7 in bfloat16 and float32, and no others."""
    march = "const __grid_constant__ March"
    band = [
        f"template __global__ void band_kernel<BFloat16, Operation::{operation}, 7, 7, {stride}, {last}>"
        f"({march}, const BFloat16*, const BFloat16*, BFloat16*);"
        for operation in OPERATIONS
        for stride in (1, 2)
        for last in ("false", "true")
    ]
    # Of RedNet's padding, 3, the transposed operation has the residue 1 with a stride of 2.
    fma = [
        f"template __global__ void fma_kernel<Operation::{operation}, 7, {stride}"
        f"{', 1' if (operation, stride) == ('kTranspose', 2) else ''}>({march}, const float*, const float*, float*);"
        for operation in OPERATIONS
        for stride in (1, 2)
    ]
    return MAIN.format(band="\n".join(band), fma="\n".join(fma))


def main_resources(nvcc: str, architecture: str, folder: Path) -> list[Resources]:
    """What the compiler says of the kernels for K = 7."""
    source = folder / "main_kernels.cu"
    source.write_text(main_kernels(), encoding="utf-8")
    return compile_cubin(nvcc, source, architecture, folder / "main_kernels.cubin")


def build_plans(folder: Path) -> Path:
    """The program that says how a launch is cut up (plans.cpp)."""
    program = folder / "plans"
    sources = [str(SOURCES.parent.parent / "benchmarks" / "plans.cpp")]
    names = ("plan.cpp", "layout.cpp", "layout_rows.cpp", "fused_plan.cpp", "fused_backward_plan.cpp")
    sources += [str(SOURCES / name) for name in names]
    compiler = os.environ.get("CXX", "c++")
    subprocess.run([compiler, "-std=c++17", f"-I{SOURCES.parent}", *sources, "-o", str(program)], check=True)
    return program


def print_plans(folder: Path, registers: dict[str, int]) -> None:
    """The plans for RedNet's shapes at batch 32 on an H200, and how many of their blocks a multiprocessor holds."""
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        print("Without a C++ compiler there is no table of plans.")
        return
    program = build_plans(folder)
    print(f"\n{'plan (batch 32, H200)':<52}{'warps':>8}{'shared KiB':>12}{'blocks':>8}{'resident':>10}")
    for operation, name in enumerate(("involution", "involution_transpose", "local_correlation")):
        for size, dtype in ((2, "bfloat16"), (4, "float32")):
            for last, layout in ((1, "channels_last"), (0, "contiguous")):
                for channels, side in ((64, 56), (128, 28), (256, 14), (512, 7)):
                    numbers = (operation, size, last, 32, channels, channels // 16, side, 7, 1, 132, 227)
                    text = subprocess.run(
                        [str(program), *map(str, numbers)], capture_output=True, text=True, check=True
                    ).stdout
                    found = {
                        key: int(value) for key, value in re.findall(r"^(\w+): (\d+)$", text, re.MULTILINE)
                    }
                    key = f"{'band' if size == 2 else 'fma'} {operation}"
                    resident = min(
                        228 * 1024 // (found["shared_bytes"] + 1024),
                        65536 // (registers[key] * found["threads"]),
                        2048 // found["threads"],
                    )
                    print(
                        f"{f'{name} {dtype} {layout} {channels}x{side}x{side}':<52}{found['threads'] // 32:>8}"
                        f"{found['shared_bytes'] / 1024:>12.1f}{found['blocks']:>8}{resident:>10}"
                    )


def main() -> int:
    """Prints the tables; returns 1 if a kernel is not clean."""
    parser = argparse.ArgumentParser(description="Registers, stack frame and spills of every CUDA kernel.")
    parser.add_argument(
        "--arch", default="sm_90", help="GPU architecture to compile for (default: %(default)s)"
    )
    parser.add_argument(
        "--main", action="store_true", help="only the kernels of kernel size 7, which takes a minute"
    )
    options = parser.parse_args()
    architecture = options.arch
    nvcc = find_nvcc()
    if nvcc is None:
        sys.exit(
            "No nvcc was found on PATH, in CUDA_HOME or in /usr/local/cuda; it comes with the CUDA toolkit."
        )
    with tempfile.TemporaryDirectory() as folder:
        main_table = main_resources(nvcc, architecture, Path(folder))
        tables = [] if options.main else all_resources(nvcc, architecture, Path(folder)).values()
        table = [row for rows in tables for row in rows] or main_table
        print_table(table, architecture)
        # The most that a kernel of each kind and operation takes.
        registers: dict[str, int] = {}
        for row in main_table:
            kind, operation = re.match(r"(\w+)_kernel<.*?Operation\)(\d)", row.kernel).groups()  # type: ignore[union-attr]
            key = f"{kind} {operation}"
            registers[key] = max(registers.get(key, 0), -(-row.registers // 8) * 8)
        print_plans(Path(folder), registers)
    unclean = [row.kernel for row in table if not row.clean]
    if unclean:
        print(f"{len(unclean)} of {len(table)} kernels spill or have a stack frame: {', '.join(unclean)}.")
        return 1
    print(f"None of the {len(table)} kernels spills registers or has a stack frame.")
    return 0


def print_table(table: Sequence[Resources], architecture: str) -> None:
    """One line a kernel."""
    print(f"{'kernel (' + architecture + ')':<52}{'registers':>10}{'stack':>7}{'spilled':>9}")
    for row in sorted(table, key=lambda row: row.kernel):
        print(
            f"{row.kernel:<52}{row.registers:>10}{row.stack_frame:>7}{row.spill_stores + row.spill_loads:>9}"
        )


if __name__ == "__main__":
    sys.exit(main())
