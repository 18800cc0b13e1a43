"""One call of each operation for Nsight Compute to profile, and a table of what it found.

    ncu --profile-from-start off --clock-control none --set full --nvtx -o report python -m benchmarks.ncu
    ncu --import report.ncu-rep --page raw --csv --print-units base

The calls are those of the first stage of RedNet-50 (kernels of 7x7 on maps of 56x56) and of the block after it, which
has stride 2, at batch 32: float32 and bfloat16, contiguous and channels_last. Nothing else is profiled. Each call has
an NVTX range of its own, which the second command's output names in every row; `table` turns that into text:

n       kernels of the call; `us` and `instr` are theirs together, the rest is of the longest
instr   warp instructions executed for each output position and group
occup   achieved occupancy
DRAM    throughput of memory as a share of its peak
stall   the most frequent reason for which a warp waited, and how many waited for it when an instruction was issued
"""

from __future__ import annotations

import csv
import itertools
import math
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from .cases import DTYPES, OPERATIONS, Case, make_tensors, select
from .operator import call_of
from .resources import without_arguments

DURATION = "gpu__time_duration.sum"
INSTRUCTIONS = "smsp__inst_executed.sum"  # of warps
OCCUPANCY = "sm__warps_active.avg.pct_of_peak_sustained_active"
DRAM = (
    "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
)
STALL = re.compile(r"smsp__average_warps_issue_stalled_(\w+)_per_issue_active\.ratio")
MICROSECONDS = {"ns": 1e-3, "us": 1.0, "ms": 1e3, "s": 1e6}
MICROSECONDS |= {f"{unit}econd": factor for unit, factor in list(MICROSECONDS.items())}  # in older versions


@dataclass(frozen=True)
class Profiled:
    """One call that is profiled."""

    case: Case
    operation: str
    dtype: str
    layout: str

    @property
    def label(self) -> str:
        """The name of its range; none is a part of another."""
        return f"{self.case.name}/{self.operation}/{self.dtype}/{self.layout}"

    @property
    def positions(self) -> int:
        """Output positions of all images, each once for every group."""
        return self.case.batch * self.case.groups * math.prod(self.case.output_size)


@dataclass(frozen=True)
class Kernel:
    """What the profiler says of one launch; None is what it does not say."""

    name: str
    call: Profiled | None
    microseconds: float
    instructions: float | None
    occupancy: float | None  # percent
    dram: float | None  # percent
    stall: str | None  # the reason for which most warps waited, and how many did when one was issued


def calls() -> list[Profiled]:
    """What is profiled, in this order."""
    cases = select(["rednet-1", "rednet-2-down"], [32])
    layouts = ("contiguous", "channels_last")
    chosen = itertools.product(cases, ("float32", "bfloat16"), layouts, OPERATIONS)
    return [Profiled(case, operation, dtype, layout) for case, dtype, layout, operation in chosen]


def run() -> None:
    """Makes the calls, each once before it is profiled."""
    for chosen in calls():
        operands = make_tensors(chosen.case, DTYPES[chosen.dtype], chosen.layout, torch.device("cuda"))
        call = call_of(chosen.operation, chosen.case, operands)
        call()
        torch.cuda.synchronize()
        print(chosen.label, flush=True)
        torch.cuda.profiler.start()
        with torch.cuda.nvtx.range(chosen.label):
            call()
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()


def parse(text: str, known: Sequence[Profiled]) -> list[Kernel]:
    """The kernels of the CSV somewhere in a text.

    Raises:
        ValueError: There is none, or it lacks what it must have.
    """
    lines = text.splitlines()
    start = next((number for number, line in enumerate(lines) if line.startswith('"ID",')), None)
    if start is None:
        raise ValueError("ncu printed no table: no line starts with the column ID.")
    rows = list(csv.DictReader(lines[start:]))
    kernels = [row for row in rows if row["ID"].isdigit()]  # the first row has the units
    if not kernels:
        raise ValueError("ncu profiled no kernel.")
    units = rows[0]
    for column in ("Kernel Name", DURATION):
        if column not in units:
            raise ValueError(f"ncu's table has no column {column!r}.")
    if units[DURATION] not in MICROSECONDS:
        raise ValueError(
            f"ncu gives {DURATION} in {units[DURATION]!r}, which is not a unit of time known here."
        )
    return [_kernel(row, MICROSECONDS[units[DURATION]], known) for row in kernels]


def _kernel(row: dict[str, str], microseconds: float, known: Sequence[Profiled]) -> Kernel:
    ranges = " ".join(value or "" for name, value in row.items() if name and "Range" in name)
    duration = _number(row[DURATION])
    if duration is None:
        raise ValueError(f"ncu measured no time of {row['Kernel Name']!r}, but {row[DURATION]!r}.")
    return Kernel(
        short_name(row["Kernel Name"]),
        next((call for call in known if call.label in ranges), None),
        duration * microseconds,
        _number(row.get(INSTRUCTIONS)),
        _number(row.get(OCCUPANCY)),
        next((value for value in (_number(row.get(name)) for name in DRAM) if value is not None), None),
        _stall(row),
    )


def _number(text: str | None) -> float | None:
    try:
        return float((text or "").replace(",", ""))
    except ValueError:  # "n/a", or nothing
        return None


def _stall(row: dict[str, str]) -> str | None:
    reasons = {}
    for column in row:
        found = STALL.fullmatch(column or "")
        # A warp that is issued is counted too, as "selected"; and each reason a second time, "not issued".
        if found and found[1] != "selected" and not found[1].endswith("_not_issued"):
            value = _number(row[column])
            if value is not None:
                reasons[found[1]] = value
    if not reasons:
        return None
    worst = max(reasons, key=lambda reason: reasons[reason])
    return f"{worst} {reasons[worst]:.1f}"


def short_name(signature: str) -> str:
    """`march_kernel<float, 7>` for what the profiler calls it."""
    signature = re.sub(r"\(anonymous namespace\)::|<unnamed>::|involution::", "", signature)
    return re.sub(r"^void |\((?:int|bool|unsigned int)\)", "", without_arguments(signature))


def table(text: str) -> list[str]:
    """A line for each call: its kernels' time and instructions together, the rest of the longest of them."""
    known = calls()
    kernels = parse(text, known)
    lines = [
        f"{'':18}{'':9}{'':14}{'n':>2}{'us':>8}{'instr':>8}{'occup':>6}{'DRAM':>6}  {'stall':<23}kernel",
        *_rows(kernels, known),
    ]
    strangers = sum(kernel.call is None for kernel in kernels)
    if strangers:
        lines.append(f"{strangers} of {len(kernels)} kernels belong to no call that is known here.")
    return lines


def _rows(kernels: Sequence[Kernel], known: Sequence[Profiled]) -> Iterator[str]:
    case = None
    for call in known:
        own = [kernel for kernel in kernels if kernel.call == call]
        if not own:
            continue
        if call.case != case:
            case = call.case
            yield str(case)
        longest = max(own, key=lambda kernel: kernel.microseconds)
        counts = [kernel.instructions for kernel in own]
        each = None if None in counts else sum(filter(None, counts)) / call.positions
        yield (
            f"  {call.operation:<16}{call.dtype:<9}{call.layout:<14}{len(own):>2}"
            f"{sum(kernel.microseconds for kernel in own):>8.1f}{_text(each, '.1f'):>8}"
            f"{_text(longest.occupancy, '.0f', '%'):>6}{_text(longest.dram, '.0f', '%'):>6}"
            f"  {longest.stall or '-':<23}{longest.name}"
        )


def _text(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"


if __name__ == "__main__":
    if not torch.cuda.is_available():
        sys.exit("There is no CUDA device to profile kernels on.")
    run()
