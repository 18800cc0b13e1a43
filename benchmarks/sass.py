"""What each CUDA kernel asks of a multiprocessor, from its machine code: needs nvcc and a disassembler.

    python -m benchmarks.sass [--arch sm_90] [--kernels PATTERN] [--json FILE]

For every kernel: registers, static shared memory and spills, as the compiler reports them; the theoretical
occupancy at the block size of its launch bounds, by registers and static shared memory alone, since a plan
chooses block and dynamic shared memory at run time; and the instructions of its hottest loop by kind (see
``benchmarks.disassembly``). ``fma share`` is that of fma and mma in all the instructions of the loop.

``per tile`` is how many instructions a warp issues, going by that loop, for 16 pixels x 16 channels of output
at K = 7, given for kernels of width 7 and for those of any width:

- with FMA, these are 16 * 16 * 49 multiply-adds, 32 to an instruction: 392 FMA, and with them
  392 * (instructions of the loop) / (FMA of the loop). It takes every FMA to be useful.
- with tensor cores, one kernel row is 16 pixels x 16 channels x 24 columns of the band, or 32 columns where
  they start at an aligned address. m16n8k8 does 1024 multiply-adds and m16n8k16 does 2048, so the seven rows
  are 7 * 16 * 16 * columns / 1024 units of m16n8k8, and their share of the loop's other instructions comes
  with them. A loop with m16n8k8 in it, or whose m16n8k16 are a multiple of three and not of four, is taken to
  have 24 columns, any other 32; the table says which, and ``--columns`` overrules it.

Instructions outside the loop (staging, epilogue) and in loops inside it do not count: this is a lower bound.
The loop is one from the code; where it has branches, what they skip is counted. Of loops with equally many
multiply-adds, which are copies for the usual case and for the rest, the one without branches is taken, and
``(or ...)`` has the fma share of the others.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from . import disassembly, resources

TILE = 16  # pixels, and channels, of the piece of output that instructions are counted for
WIDTH = 7
WARP = 32


@dataclass(frozen=True)
class Multiprocessor:
    """What a multiprocessor has for the blocks that are resident on it."""

    warps: int
    blocks: int
    shared_memory: int
    registers: int = 65536


# CUDA C++ Programming Guide, technical specifications per compute capability.
MULTIPROCESSORS = {
    "sm_80": Multiprocessor(64, 32, 164 * 1024),
    "sm_86": Multiprocessor(48, 16, 100 * 1024),
    "sm_87": Multiprocessor(48, 16, 164 * 1024),
    "sm_89": Multiprocessor(48, 24, 100 * 1024),
    "sm_90": Multiprocessor(64, 32, 228 * 1024),
    "sm_100": Multiprocessor(64, 32, 228 * 1024),
    "sm_120": Multiprocessor(48, 24, 100 * 1024),
}


def occupancy(multiprocessor: Multiprocessor, threads: int, registers: int, shared: int) -> float:
    """The share of the multiprocessor's warps that can be resident, in blocks of ``threads``."""
    warps = -(-threads // WARP)
    # Registers are handed to a warp in portions of 256; a block's shared memory has 1 KiB of the system's.
    warp_registers = -(-registers * WARP // 256) * 256
    # The multiprocessor's four parts have a quarter of the registers each, and a warp stays in one of them.
    by_registers = 4 * (multiprocessor.registers // 4 // warp_registers) // warps
    by_shared = multiprocessor.shared_memory // (-(-shared // 128) * 128 + 1024)
    blocks = min(multiprocessor.warps // warps, multiprocessor.blocks, by_registers, by_shared)
    return blocks * warps / multiprocessor.warps


@dataclass(frozen=True)
class KernelReport:
    """One row of the table."""

    kernel: str
    registers: int
    static_shared: int
    spilled: int
    stack_frame: int
    threads: int | None  # of the launch bounds; None where the kernel states none
    occupancy: float | None
    mix: dict[str, int]  # of the hottest loop, by kind; empty where no loop has a multiply-add
    instructions: int  # of that loop
    fma_share: float | None
    other_shares: list[float]  # of the other loops with as many multiply-adds
    instructions_per_tile: float | None
    columns: int | None  # of the band, for kernels on tensor cores


def kernel_width(name: str) -> int | None:
    """The kernel width of a readable name, the first number among its template arguments, or None."""
    found = re.search(r"<.*?[ <,](\d+)\b", name)
    return int(found[1]) if found else None


def per_tile(loop: disassembly.Loop, columns: int | None = None) -> tuple[float, int | None]:
    """Instructions per 16 pixels x 16 channels at K = 7, and the columns of the band; see the module."""
    count = len(loop.instructions)
    mix = loop.mix
    if mix["mma"] == 0:
        return TILE * TILE * WIDTH * WIDTH / WARP * count / mix["fma"], None
    shapes = [i.opcode for i in loop.instructions if i.kind == "mma"]
    short = sum(".1688." in f"{opcode}." for opcode in shapes)
    long = len(shapes) - short
    columns = columns or (24 if short or (long % 3 == 0 and long % 4 != 0) else 32)
    needed = WIDTH * TILE * TILE * columns / 1024
    return needed * count / (short + 2 * long), columns


def report(
    row: resources.Resources,
    instructions: list[disassembly.Instruction],
    threads: int | None,
    architecture: str,
    columns: int | None = None,
) -> KernelReport:
    """Puts together what compiler and disassembly say of one kernel."""
    found = disassembly.hottest_copies(instructions)
    loop, copies = (found[0] if found else None), found[1:]
    machine = MULTIPROCESSORS.get(architecture.rstrip("af"))
    counted = loop is not None and kernel_width(row.kernel) in (WIDTH, None)
    tile, band = per_tile(loop, columns) if loop and counted else (None, None)
    return KernelReport(
        kernel=row.kernel,
        registers=row.registers,
        static_shared=row.static_shared,
        spilled=row.spill_stores + row.spill_loads,
        stack_frame=row.stack_frame,
        threads=threads,
        occupancy=occupancy(machine, threads, row.registers, row.static_shared)
        if machine and threads
        else None,
        mix={kind: loop.mix[kind] for kind in disassembly.KINDS} if loop else {},
        instructions=len(loop.instructions) if loop else 0,
        fma_share=loop.fma_share if loop else None,
        other_shares=[copy.fma_share for copy in copies],
        instructions_per_tile=tile,
        columns=band,
    )


def analyse(
    nvcc: str, disassembler: list[str], source: Path, architecture: str, columns: int | None = None
) -> list[KernelReport]:
    """Every kernel of one .cu file."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, f"{source.stem}.cubin")
        rows = resources.compile_cubin(nvcc, source, architecture, cubin)
        return analyse_cubin(rows, disassembler, cubin, architecture, columns)


def analyse_cubin(
    rows: Sequence[resources.Resources],
    disassembler: list[str],
    cubin: Path,
    architecture: str,
    columns: int | None = None,
) -> list[KernelReport]:
    """Every kernel of an object file, of which the compiler said ``rows``."""
    functions = disassembly.parse(disassembly.disassemble(disassembler, cubin))
    threads = disassembly.most_threads(cubin.read_bytes())
    missing = [row.kernel for row in rows if row.symbol not in functions]
    if missing:
        raise RuntimeError(
            f"{disassembler[0]} printed no instructions of {', '.join(missing)} in {cubin.name}."
        )
    return [
        report(row, functions[row.symbol], threads.get(row.symbol), architecture, columns) for row in rows
    ]


def table(rows: Sequence[KernelReport]) -> str:
    """The reports as text."""
    width = max((len(row.kernel) for row in rows), default=0) + 2
    short = {"shared load": "lds", "shared store": "sts", "global load": "ldg", "global store": "stg"}
    kinds = [short.get(kind, kind[:5]) for kind in disassembly.KINDS]
    lines = [
        f"{'':<{width}}{'regis-':>7}{'static':>8}{'':>6}{'':>8}{'occu-':>7}  hottest loop: instructions",
        f"{'kernel':<{width}}{'ters':>7}{'shared':>8}{'spill':>6}{'threads':>8}{'pancy':>7}"
        + "".join(f"{kind:>6}" for kind in kinds)
        + f"{'all':>6}{'fma share':>11}{'per tile':>10}",
    ]
    for row in rows:
        share = "-" if row.occupancy is None else f"{row.occupancy:.1%}"
        line = f"{row.kernel:<{width}}{row.registers:>7}{row.static_shared:>8}{row.spilled:>6}"
        line += f"{row.threads or '-':>8}{share:>7}"
        if row.fma_share is None:
            lines.append(f"{line}  no loop with multiply-adds")
            continue
        line += "".join(f"{row.mix[kind]:>6}" for kind in disassembly.KINDS)
        tile = "-" if row.instructions_per_tile is None else f"{row.instructions_per_tile:.0f}"
        columns = "" if row.columns is None else f" ({row.columns} columns)"
        others = (
            f" (or {', '.join(f'{share:.1%}' for share in row.other_shares)})" if row.other_shares else ""
        )
        lines.append(f"{line}{row.instructions:>6}{row.fma_share:>11.1%}{tile:>10}{columns}{others}")
    return "\n".join(lines)


def as_json(rows: Sequence[KernelReport], architecture: str, compiler: str) -> str:
    """The reports as a document with a line for each kernel, so that versions of it can be compared."""
    kernels = ",\n".join(f"  {json.dumps(asdict(row))}" for row in rows)
    head = f' "architecture": {json.dumps(architecture)},\n "nvcc": {json.dumps(compiler)},\n'
    return f'{{\n{head} "kernels": [\n{kernels}\n ]\n}}\n'


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table and writes the JSON file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--arch", default="sm_90", help="the architecture to compile for (default: %(default)s)"
    )
    parser.add_argument("--kernels", default="*", help="only names that match, such as '*<float, 7*'")
    parser.add_argument("--sources", nargs="*", type=Path, help=".cu files (default: those of the extension)")
    parser.add_argument("--columns", type=int, choices=(24, 32), help="of the band, if it is known")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table here")
    options = parser.parse_args(arguments)
    nvcc = resources.find_nvcc()
    if nvcc is None:
        sys.exit(
            "No nvcc was found on PATH, in CUDA_HOME or in /usr/local/cuda; it comes with the CUDA toolkit."
        )
    try:
        disassembler = disassembly.find_disassembler()
    except disassembly.NoDisassemblerError as error:
        sys.exit(str(error))
    sources = options.sources or sorted(resources.SOURCES.glob("*.cu"))
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        found = list(
            pool.map(
                lambda source: analyse(nvcc, disassembler, source, options.arch, options.columns), sources
            )
        )
    rows = sorted((row for rows in found for row in rows), key=lambda row: row.kernel)
    rows = [row for row in rows if fnmatch.fnmatch(row.kernel, options.kernels)]
    print(f"{options.arch}, {len(rows)} kernels")
    print(table(rows))
    print("per tile: a warp's instructions for 16 pixels x 16 channels of output at K = 7 (--help says how)")
    if options.json:
        options.json.write_text(as_json(rows, options.arch, resources.version(nvcc)), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
