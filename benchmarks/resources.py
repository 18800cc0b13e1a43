"""What each CUDA kernel takes of a multiprocessor, from the compiler: registers, stack frame, spills.

Needs nvcc and no GPU: ``python -m benchmarks.resources [--arch sm_90]`` prints the table and exits with an
error if a kernel spills registers or has a stack frame; the tests require that none does.
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
    return [re.sub(r"^void |involution::", "", _without_arguments(line)) for line in text.splitlines()]


def _without_arguments(signature: str) -> str:
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


def main() -> int:
    """Prints the table; returns 1 if a kernel is not clean."""
    parser = argparse.ArgumentParser(description="Registers, stack frame and spills of every CUDA kernel.")
    parser.add_argument(
        "--arch", default="sm_90", help="the architecture to compile for (default: %(default)s)"
    )
    architecture = parser.parse_args().arch
    nvcc = find_nvcc()
    if nvcc is None:
        sys.exit(
            "No nvcc was found on PATH, in CUDA_HOME or in /usr/local/cuda; it comes with the CUDA toolkit."
        )
    with tempfile.TemporaryDirectory() as folder:
        tables = all_resources(nvcc, architecture, Path(folder)).values()
    table = [row for rows in tables for row in rows]
    print(f"{'kernel (' + architecture + ')':<52}{'registers':>10}{'stack':>7}{'spilled':>9}")
    for row in sorted(table, key=lambda row: row.kernel):
        print(
            f"{row.kernel:<52}{row.registers:>10}{row.stack_frame:>7}{row.spill_stores + row.spill_loads:>9}"
        )
    unclean = [row.kernel for row in table if not row.clean]
    if unclean:
        print(f"{len(unclean)} of {len(table)} kernels spill or have a stack frame: {', '.join(unclean)}.")
        return 1
    print(f"None of the {len(table)} kernels spills registers or has a stack frame.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
