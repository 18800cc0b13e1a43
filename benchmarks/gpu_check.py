"""Tests, sanitizers, times and a profile on a GPU within five minutes, and one page that says what they found.

    make gpu                                               all steps, into build/gpu-check
    python -m benchmarks.gpu_check --list                  the steps
    python -m benchmarks.gpu_check --steps operator,ncu    some of them

Each step is a process of its own with a time limit and a log. One that fails or takes too long is ended, with all
that it started, and the next one begins. The page is printed and written to summary.txt; the exit status is 1 if a
step did not pass. A tool that is not there fails its step: what did not run must not look like what passed.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import torch

import involution
from involution import _fused

from . import environment, ncu, results

WIDTH = 132  # columns of the page
OK, FAILED, TIMED_OUT = "ok", "FAILED", "timed out"
WITH_BACKWARD_KERNELS = {_fused.BACKWARD_VARIABLE: "1"}  # which are off by default

Table = Callable[[Path], list[str]]  # from the log, or from the CSV file beside it


@dataclass(frozen=True)
class Step:
    """Commands that run one after the other, and what the page shows of them."""

    name: str
    limit: float  # seconds, of all commands together
    commands: Sequence[Sequence[str]]
    table: Table
    says: str | None = (
        None  # a pattern; the last line of the log that it is found in stands beside the verdict
    )
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What became of a step."""

    name: str
    verdict: str
    seconds: float
    log: Path
    note: str
    table: list[str]


# --- The steps --------------------------------------------------------------------------------------------


def find_tool(name: str) -> str:
    """A program of the CUDA toolkit: on PATH, in CUDA_HOME or from a package; its bare name if it is nowhere."""
    home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    places = [home / "bin" / name, *Path(sysconfig.get_path("purelib")).glob(f"nvidia/cu*/bin/{name}")]
    places += sorted(Path("/opt/nvidia/nsight-compute").glob(f"*/{name}"), reverse=True)
    return shutil.which(name) or next((str(place) for place in places if os.access(place, os.X_OK)), name)


def sanitizer(tool: str) -> Step:
    """compute-sanitizer over every kind of kernel, with the options of tools/sanitize.sh."""
    # Only initcheck has to see the kernels of torch, which may write what ours read.
    chosen = [] if tool == "initcheck" else ["--kernel-name", "kns=involution"]
    program = [find_tool("compute-sanitizer"), "--tool", tool, "--error-exitcode", "1", *chosen]
    # The name that the log ends with is then that of the problem that went wrong.
    settings = {"CUDA_LAUNCH_BLOCKING": "1", **WITH_BACKWARD_KERNELS}
    if tool != "racecheck":  # the caching allocator hides what happens within its blocks
        settings["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    found = matching(r"^WRONG|^=+ .*(Error:|Warning:|Invalid |Uninitialized |hazard )", most=6)
    return Step(tool, 60, [[*program, sys.executable, "tests/instances.py"]], found, r"SUMMARY:", settings)


def all_steps(out: Path) -> list[Step]:
    """In the order in which they run: what is wrong is known before it is timed."""
    python = sys.executable
    pytest = [python, "-m", "pytest", "-m", "gpu", "-v", "-n", "8", "-p", "no:cacheprovider", "tests"]
    passed = r"^\d+ (passed|failed|errors?|skipped)\b.* in \d"
    operator = [python, "-m", "benchmarks.operator", "--shapes", "rednet-*", "detection", "mask-head"]
    operator += ["--batch", "32", "--dtypes", "float32", "bfloat16", "--baselines", "official"]
    operator += ["--layouts", "contiguous", "channels_last", "--seconds", "0.05"]
    network = [python, "-m", "benchmarks.network", "--dtype", "bfloat16", "--seconds", "0.2"]
    pyramids = [*network, "--detection", "--batch", "2", "--layouts", "channels_last", "--launches", "graph"]
    network += ["--batch", "1", "64"]
    profiler, report = find_tool("ncu"), str(out / "ncu.ncu-rep")
    profile = [profiler, "--profile-from-start", "off", "--clock-control", "none", "--nvtx"]
    # What the table needs: the full set replays each kernel 38 times.
    for section in ("SpeedOfLight", "Occupancy", "InstructionStats", "WarpStateStats"):
        profile += ["--section", section]
    profile += ["--force-overwrite", "--export", report, python, "-m", "benchmarks.ncu"]
    rows = [profiler, "--import", report, "--page", "raw", "--csv", "--print-units", "base"]
    return [
        Step("tests", 100, [pytest], matching(r"^(FAILED|ERROR) ", most=10), passed, WITH_BACKWARD_KERNELS),
        *(sanitizer(tool) for tool in ("memcheck", "racecheck", "initcheck")),
        Step("operator", 90, [[*operator, "--output", str(out / "operator.csv")]], operator_table),
        Step("network", 60, [[*network, "--output", str(out / "network.csv")]], network_table),
        Step("detection", 60, [[*pyramids, "--output", str(out / "detection.csv")]], network_table),
        Step("ncu", 60, [profile, rows], lambda log: ncu.table(log.read_text("utf-8", "replace"))),
    ]


# --- What the page shows of them --------------------------------------------------------------------------


def matching(pattern: str, most: int) -> Table:
    """The first lines of a log that a pattern is found in."""

    def table(log: Path) -> list[str]:
        lines = [line for line in log.read_text("utf-8", "replace").splitlines() if re.search(pattern, line)]
        rest = [f"and {len(lines) - most} more"] if len(lines) > most else []
        return lines[:most] + rest

    return table


def results_of(log: Path) -> list[dict[str, Any]]:
    """The rows of the CSV file that a benchmark wrote beside its log, all there are so far."""
    return results.read(log.with_suffix(".csv"))["results"]


def operator_table(log: Path) -> list[str]:
    """Time and share of a copy: a line for each shape and operation, a column for each dtype and format."""
    rows = results_of(log)
    columns = list(dict.fromkeys((row["dtype"], row["layout"]) for row in rows))
    lines: dict[tuple[str, str], dict[tuple[str, str], Any]] = {}
    for row in rows:
        lines.setdefault((row["case"], row["operation"]), {})[row["dtype"], row["layout"]] = row
    heads = [f"{dtype} {layout.removeprefix('channels_')}" for dtype, layout in columns]
    table = [f"{'us, share of a copy':<31}" + "".join(f"{head:>20}" for head in heads) + "  official"]
    for (case, operation), cells in lines.items():
        ratios = [row["baselines"].get("official", {}).get("ratio") for row in cells.values()]
        official = next((f"{ratio:>8.2f}x" for ratio in ratios if ratio), f"{'-':>9}")
        text = "".join(f"{_cell(cells.get(column)):>20}" for column in columns)
        table.append(f"{case:<15}{operation:<16}{text}{official}")
    means = [
        _geometric_mean(row["copy_share"] for row in rows if (row["dtype"], row["layout"]) == column)
        for column in columns
    ]
    return [*table, f"{'geometric mean':<31}" + "".join(f"{mean:>20.0%}" for mean in means)]


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "-"
    return "REFUSED" if row["refused"] else f"{row['kernel_us']:.1f} {row['copy_share']:>5.0%}"


def _geometric_mean(values: Iterable[float | None]) -> float:
    logarithms = [math.log(value) for value in values if value]
    return math.exp(sum(logarithms) / len(logarithms)) if logarithms else math.nan


def network_table(log: Path) -> list[str]:
    """RedNet-50's time, ResNet-50's and the ratio: a line for each mode, size and launch, a column for each format."""
    rows = results_of(log)
    columns = list(dict.fromkeys(row["layout"] for row in rows))
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        times = f"{row['rednet50']['ms']:.2f} / {row['resnet50']['ms']:.2f} = {row['ratio']:.2f}"
        size = f"batch {row['batch']}" + (", graph" if row["launch"] == "graph" else "")
        lines.setdefault((row["mode"], size), {})[row["layout"]] = times
    table = [f"{'ms, RedNet-50 / ResNet-50':<31}" + "".join(f"{column:>28}" for column in columns)]
    for (mode, size), cells in lines.items():
        text = "".join(f"{cells.get(column, '-'):>28}" for column in columns)
        table.append(f"{mode:<15}{size:<16}{text}")
    return table


def page(title: str, outcomes: Sequence[Outcome]) -> list[str]:
    """The summary: a line for each step, then their tables."""
    lines = [title, ""]
    for outcome in outcomes:
        head = f"{outcome.name:<11}{outcome.verdict:<10}{outcome.seconds:>4.0f} s  {outcome.log.name:<15}"
        lines.append(f"{head}{outcome.note}")
    for outcome in outcomes:
        if outcome.table:
            lines += ["", *outcome.table]
    return [line.rstrip()[:WIDTH] for line in lines]


# --- Running them -----------------------------------------------------------------------------------------


def run_step(step: Step, out: Path) -> Outcome:
    """Runs a step's commands until one does not succeed; its log is OUT/NAME.log."""
    log = out / f"{step.name}.log"
    log.with_suffix(".csv").unlink(missing_ok=True)  # an earlier run's would be taken for this one's
    verdict, start = OK, time.monotonic()
    with log.open("w", encoding="utf-8") as file:
        for command in step.commands:
            if verdict == OK:
                print(f"$ {shlex.join(command)}", file=file, flush=True)
                left = step.limit - (time.monotonic() - start)
                verdict = run_command(command, step.environment, left, file)
    seconds = time.monotonic() - start
    lines = [line.strip("= ") for line in log.read_text("utf-8", "replace").splitlines() if line.strip("= ")]
    said = [line for line in lines if step.says and re.search(step.says, line)]
    note = said[-1] if said else "" if verdict == OK else lines[-1]
    table: list[str] = []
    try:
        table = step.table(log)
    except (OSError, ValueError) as error:
        if verdict == OK:  # then nothing else says why there is no table
            verdict, note = FAILED, str(error)
    return Outcome(step.name, verdict, seconds, log, note, table)


def run_command(command: Sequence[str], settings: Mapping[str, str], limit: float, log: TextIO) -> str:
    """The verdict on one command, which ends with everything that it started."""
    path = os.pathsep.join(filter(None, [str(environment.ROOT), os.environ.get("PYTHONPATH")]))
    try:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=environment.ROOT,
            env={**os.environ, "PYTHONPATH": path, **settings},
            start_new_session=True,
        )
    except OSError as error:
        print(f"{error}\n{command[0]} cannot be run here; it comes with the CUDA toolkit.", file=log)
        return FAILED
    try:
        return FAILED if process.wait(max(0.0, limit)) else OK
    except subprocess.TimeoutExpired:
        return TIMED_OUT
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # nothing is left of it
        process.wait()


def run(steps: Sequence[Step], out: Path, title: str) -> int:
    """Runs steps and prints the page; returns 1 if one did not pass."""
    out.mkdir(parents=True, exist_ok=True)
    start, outcomes = time.monotonic(), []
    for number, step in enumerate(steps, 1):
        print(f"[{number}/{len(steps)}] {step.name}, at most {step.limit:.0f} s: ", end="", flush=True)
        outcome = run_step(step, out)
        print(f"{outcome.verdict} after {outcome.seconds:.0f} s", flush=True)
        outcomes.append(outcome)
    passed = sum(outcome.verdict == OK for outcome in outcomes)
    total = f"{passed} of {len(steps)} steps passed, in {time.monotonic() - start:.0f} s"
    lines = page(f"{title}: {total}", outcomes)
    (out / "summary.txt").write_text("\n".join(lines) + "\n", "utf-8")
    print("", *lines, "", f"Logs and results are in {out}.", sep="\n")
    return int(passed < len(steps))


def why_not() -> str | None:
    """What is missing here for any of it, as a sentence, or None."""
    if not torch.cuda.is_available():
        return "This check needs an NVIDIA GPU, and torch sees no CUDA device here."
    reason = involution.build_info()["no_cuda_reason"]
    return f"There is a GPU, but involution has no CUDA kernels to check: {reason}" if reason else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the steps; returns 1 if one did not pass or none can."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = environment.ROOT / "build" / "gpu-check"
    parser.add_argument(
        "--out",
        type=Path,
        default=default,
        metavar="FOLDER",
        help="folder to write to (default: build/gpu-check)",
    )
    parser.add_argument("--steps", metavar="A,B", help="run only these steps")
    parser.add_argument("--list", action="store_true", help="print the names of the steps and exit")
    options = parser.parse_args(arguments)
    out = options.out.resolve()
    steps = all_steps(out)
    if options.steps:
        names, known = options.steps.split(","), [step.name for step in steps]
        for name in names:
            if name not in known:
                parser.error(f"There is no step {name!r}; there are {', '.join(known)}.")
        steps = [step for step in steps if step.name in names]
    if options.list:
        for step in steps:
            print(f"{step.name:<11}at most {step.limit:.0f} s", *map(shlex.join, step.commands), sep="\n    ")
        return 0
    missing = why_not()
    if missing:
        print(missing, file=sys.stderr)
        return 1
    device = torch.device("cuda")
    return run(steps, out, f"{environment.device_name(device)}, torch {torch.__version__}")


if __name__ == "__main__":
    sys.exit(main())
