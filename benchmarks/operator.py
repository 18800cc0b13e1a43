"""Measures the operator and its gradients against copies of memory and against baselines.

    make bench                                     the default: everything on a GPU, a small part on a CPU
    python -m benchmarks.operator --quick          a few seconds
    python -m benchmarks.operator --shapes 'rednet-*' detection --dtypes bfloat16 --baselines plain unfold

Every result, also of a baseline, is compared with the float64 reference before it is timed. A wrong result gets no
time, and the program then ends with an error. The columns:

layout    memory format of the activations and the kernel tensor. ``activations_last`` and ``kernels_last`` mix
          channels_last with contiguous; by default they are measured for one shape, that of the first stage
kernel    median time of a call on the device, with conversions, if operands and result are not in the L2 cache
GB/s      the bytes that an ideal implementation moves, each tensor once, divided by that time
of copy   the time of a copy that moves as many bytes, measured in the same run, divided by that time
of bound  on a CPU: the larger of that copy's time and of the multiply-adds at the rate of a large float32 matrix
          product, divided by that time. Both are measured again for each shape, layout and dtype, because the speed
          of a shared machine changes from minute to minute
1 thread  on a CPU: the time with one thread divided by that with all, both warm
warm      the time with the same operands in each call, which are in the cache as far as they fit
scratch   MiB that a call allocates beside its result; each byte is written and read in addition to the ideal ones
host      time that an eager call takes on the calling thread, without and with gradients. ``forward`` is called on
          tensors that need no gradient and on tensors that do; a gradient as the bare operation and as
          ``torch.autograd.grad``. On a CPU, where a call returns when its work is done, it is measured on the
          smallest problem with the same kernel, one position of one channel
baselines time of each baseline divided by ours: above 1 ours is faster. ``depthwise`` is a convolution of the same
          size with static kernels, for comparison

A time marked ~ is noisy: the fastest sample took less than two thirds of the median. Results are written to
benchmarks/results/DEVICE.csv in place of the last run's, those of a quick run to build/benchmarks.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import involution
from involution import _library

from . import environment, results, summary, timing
from .baselines import BASELINES, Baseline
from .cases import (
    BATCHES,
    DTYPES,
    LAYOUTS,
    MIXED_LAYOUTS,
    MIXED_SHAPE,
    OPERATIONS,
    Case,
    Tensors,
    make_tensors,
    select,
    smallest,
)
from .check import WrongAnswerError, check
from .rows import HEADER, describe, wrong

# A working set of four times the cache is cold; more than this much memory is never rotated through.
CACHES = 4
MOST_ROTATION = {"cuda": 8 << 30, "cpu": 256 << 20}
MEMORY_SHARE = 0.8  # of the free memory, that a baseline may need


def call_of(operation: str, case: Case, t: Tensors) -> Callable[[], Tensor]:
    """The operator as its public functions and derivatives call it."""
    window = (case.stride, case.padding, case.dilation)
    if operation == "forward":
        return lambda: _library.involution(t.x, t.w, *window)
    if operation == "input_gradient":
        return lambda: _library.involution_transpose(t.y, t.w, case.input_size, *window)
    return lambda: _library.local_correlation(t.y, t.x, case.kernel_size, case.groups, *window)


def eager_calls(operation: str, case: Case, t: Tensors) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """What a user calls, without and with gradients; see the module for what that is for a gradient."""
    function = getattr(involution, f"involution{case.axes}d")
    x, w = t.x.detach().requires_grad_(), t.w.detach().requires_grad_()
    window = {"stride": case.stride, "padding": case.padding}
    if operation == "forward":
        return lambda: function(t.x, t.w, **window), lambda: function(x, w, **window)
    with torch.enable_grad():
        output = function(x, w, **window)
    wanted = x if operation == "input_gradient" else w
    return call_of(operation, case, t), lambda: torch.autograd.grad(output, wanted, t.y, retain_graph=True)


@dataclass(frozen=True)
class Bench:
    """The conditions that all measurements of a run share."""

    device: torch.device
    effort: timing.Effort
    rotation: int  # bytes that the copies of the operands pass together
    roof: timing.CopyRoof
    baselines: Sequence[Baseline]
    product: timing.MatmulRoof | None  # on a CPU

    def forget_bounds(self) -> None:
        """On a CPU, measures the roofs again, beside what is measured next."""
        if self.product is not None:
            self.roof.forget()
            self.product.forget()

    @torch.no_grad()
    def measure(
        self, operation: str, case: Case, dtype: str, layout: str, operands: Tensors
    ) -> dict[str, Any]:
        """One row of the results."""
        moved = case.ideal_bytes(DTYPES[dtype].itemsize)
        row: dict[str, Any] = {
            "case": case.name,
            "batch": case.batch,
            "channels": case.channels,
            "group_width": case.group_width,
            "input_size": list(case.input_size),
            "kernel_size": list(case.kernel_size),
            "stride": case.strides,
            "operation": operation,
            "dtype": dtype,
            "layout": layout,
            "ideal_bytes": moved,
            "multiply_adds": case.multiply_adds,
            **dict.fromkeys(
                (
                    "error",
                    "refused",
                    "kernel_us",
                    "fastest_us",
                    "method",
                    "copies",
                    "warm_us",
                    "gb_per_s",
                    "copy_us",
                )
            ),
            **dict.fromkeys(
                (
                    "copy_share",
                    "bound_us",
                    "bound_share",
                    "single_us",
                    "host_us",
                    "host_grad_us",
                    "scratch_bytes",
                )
            ),
            "baselines": {},
        }
        try:
            row["error"] = check(operation, case, operands, call_of(operation, case, operands)())
        except WrongAnswerError as error:
            row["refused"] = str(error)
            return row
        row["scratch_bytes"] = environment.scratch_bytes(call_of(operation, case, operands), self.device)
        copies = self._copies(moved)
        operand_sets = list(operands.copies(copies))
        cold = self._time([call_of(operation, case, t) for t in operand_sets])
        del operand_sets
        warm = self._time([call_of(operation, case, operands)])
        copy = self.roof.seconds(moved)
        row.update(
            kernel_us=cold.seconds * 1e6,
            fastest_us=cold.fastest * 1e6,
            method=cold.method,
            copies=copies,
            warm_us=warm.seconds * 1e6,
            gb_per_s=moved / cold.seconds * 1e-9,
            copy_us=copy * 1e6,
            copy_share=copy / cold.seconds,
        )
        if self.product is not None:
            bound = max(copy, case.multiply_adds / self.product.multiply_adds_per_second())
            row.update(bound_us=bound * 1e6, bound_share=bound / cold.seconds)
            row["single_us"] = self._single(call_of(operation, case, operands))
        if self.device.type == "cuda":
            bare, recorded = eager_calls(operation, case, operands)
        else:
            least = smallest(case)
            bare, recorded = eager_calls(
                operation, least, make_tensors(least, DTYPES[dtype], layout, self.device)
            )
        row["host_us"] = timing.host_time(bare, self.device) * 1e6
        with torch.enable_grad():
            row["host_grad_us"] = timing.host_time(recorded, self.device) * 1e6
        for baseline in self.baselines:
            row["baselines"][baseline.name] = self._baseline(
                baseline, operation, case, layout, operands, cold.seconds
            )
        return row

    def _time(self, calls: Sequence[Callable[[], Any]]) -> timing.Measurement:
        return timing.kernel_time(calls, self.device, self.effort)

    def _single(self, call: Callable[[], Any]) -> float | None:
        """Microseconds with one thread; None where there is no other."""
        threads = torch.get_num_threads()
        if threads == 1:
            return None
        torch.set_num_threads(1)
        try:
            return self._time([call]).seconds * 1e6
        finally:
            torch.set_num_threads(threads)

    def _copies(self, moved: int, scratch: int = 0, kept: int = 0) -> int:
        """Copies that pass the cache, or as many as half the free memory holds."""
        fit = (environment.free_bytes(self.device) // 2 - scratch) // (moved + kept)
        return max(1, min(timing.copies_for(moved, self.rotation), fit))

    def _baseline(
        self, baseline: Baseline, operation: str, case: Case, layout: str, operands: Tensors, ours: float
    ) -> dict[str, Any]:
        item_size = operands.x.element_size()
        if reason := baseline.why_not(operation, case, layout, operands.x.dtype, self.device):
            return {"skipped": reason}
        scratch, kept = (of(operation, case, item_size) for of in (baseline.scratch, baseline.kept))
        free = environment.free_bytes(self.device)
        if scratch + kept > MEMORY_SHARE * free:
            needed = (scratch + kept) / 2**30
            return {"skipped": f"it needs {needed:.1f} GiB, and {free / 2**30:.1f} GiB are free"}
        try:
            bind = baseline.bind(operation, case)
            first = bind(operands)
            error = baseline.check(operation, case, operands, first())
            copies = self._copies(case.ideal_bytes(item_size), scratch, kept)
            calls = [first, *(bind(t) for t in list(operands.copies(copies))[1:])]
            cold = self._time(calls)
        except WrongAnswerError as wrong:
            return {"refused": str(wrong)}
        except Exception as failure:  # a baseline that breaks, in whatever way, must not end the run
            if isinstance(failure, torch.cuda.OutOfMemoryError):
                return {"skipped": "it ran out of memory"}
            return {"failed": f"{type(failure).__name__}: {str(failure).strip().splitlines()[0][:200]}"}
        return {
            "us": cold.seconds * 1e6,
            "fastest_us": cold.fastest * 1e6,
            "ratio": cold.seconds / ours,
            "method": cold.method,
            "error": error,
        }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, with the device's defaults for those that were not given."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", choices=("cuda", "cpu"), help="device to measure on (default: cuda if available)")
    add("--shapes", nargs="+", metavar="NAME", help="names or patterns of shapes in benchmarks/cases.py")
    add("--batch", nargs="+", type=int, metavar="N", help="batch sizes of RedNet's shapes")
    add(
        "--dtypes", nargs="+", choices=DTYPES, metavar="DTYPE", help=f"dtypes to measure: {', '.join(DTYPES)}"
    )
    add(
        "--layouts",
        nargs="+",
        choices=LAYOUTS,
        metavar="LAYOUT",
        help=f"memory formats: {', '.join(LAYOUTS)}",
    )
    add(
        "--ops",
        nargs="+",
        choices=OPERATIONS,
        metavar="OPERATION",
        help=f"operations: {', '.join(OPERATIONS)}",
    )
    add(
        "--baselines",
        nargs="*",
        choices=BASELINES,
        metavar="BASELINE",
        help=f"baselines, or none: {', '.join(BASELINES)}",
    )
    add("--quick", action="store_true", help="one small shape, no compiled baselines, few samples")
    add("--output", type=Path, metavar="FILE", help="file to write (default: benchmarks/results/DEVICE.csv)")
    add("--append", action="store_true", help="keep the rows of the same machine and commit that are in FILE")
    add("--seconds", type=float, help="time of each measurement, of at most 50 samples (default: 0.2)")
    add("--threads", type=int, metavar="N", help="number of CPU threads (default: torch's)")
    options = parser.parse_args(arguments)
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda was asked for, but torch sees no CUDA device.")
    small = options.quick or options.device == "cpu"
    stages = ["rednet-1", "rednet-2", "rednet-3", "rednet-4"]
    options.shapes = options.shapes or (["rednet-4"] if options.quick else stages if small else ["*"])
    options.batch = options.batch or ([1] if options.quick else [8] if small else list(BATCHES))
    options.dtypes = options.dtypes or (["float32"] if small else ["float32", "bfloat16", "float16"])
    options.mixed = [] if options.layouts or options.quick else MIXED_LAYOUTS
    options.layouts = options.layouts or (["contiguous"] if small else ["contiguous", "channels_last"])
    options.ops = options.ops or list(OPERATIONS)
    if options.baselines is None:
        few = ["unfold", "depthwise"] if options.quick else ["unfold", "reference", "depthwise"]
        options.baselines = few if small else list(BASELINES)
    if options.append and not (options.output and options.output.exists()):
        parser.error("--append needs --output with the name of a file that is there.")
    try:
        options.cases = select(options.shapes, options.batch, options.device)
    except ValueError as error:
        parser.error(str(error))
    return options


def rows(options: argparse.Namespace, bench: Bench) -> Iterator[dict[str, Any]]:
    """Measures and prints, case by case."""
    combinations = [
        (case, layout, dtype)
        for case in options.cases
        for layout in [*options.layouts, *(options.mixed if case.name == MIXED_SHAPE else ())]
        for dtype in options.dtypes
    ]
    start, previous = time.monotonic(), None
    for number, (case, layout, dtype) in enumerate(combinations):
        if case != previous:
            print(f"[{number + 1}/{len(combinations)}, {time.monotonic() - start:.0f} s] {case}", flush=True)
            previous = case
        bench.forget_bounds()
        operands = make_tensors(case, DTYPES[dtype], layout, bench.device)
        for operation in options.ops:
            row = bench.measure(operation, case, dtype, layout, operands)
            print(describe(row), flush=True)
            yield row
        del operands
        gc.collect()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns 1 if a result was wrong."""
    options = parse(arguments)
    device = torch.device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    # Float32 means float32: the convolution's tf32 default would be neither as exact nor as slow.
    torch.backends.cudnn.allow_tf32 = False
    effort = timing.QUICK if options.quick else timing.Effort()
    if options.seconds is not None:
        effort = replace(effort, seconds=options.seconds)
    cache = environment.cache_bytes(device)
    rotation = 0 if options.quick else min(CACHES * cache, MOST_ROTATION[device.type])
    large = (1 << 25) if options.quick else (1 << 28)
    roof = timing.CopyRoof(device, effort, rotation, large)
    product = timing.MatmulRoof(effort, 512 if options.quick else 2048) if device.type == "cpu" else None
    bench = Bench(device, effort, rotation, roof, [BASELINES[name] for name in options.baselines], product)
    described = environment.describe(device)
    document: dict[str, Any] = {
        "benchmark": "operator",
        "environment": {**described, "rotation_bytes": rotation, "cold": rotation >= CACHES * cache > 0},
        "options": {
            key: getattr(options, key) for key in ("shapes", "batch", "dtypes", "layouts", "ops", "baselines")
        },
        "results": [],
    }
    output = options.output or results.default_path(document, options.quick)
    if options.append:
        try:
            results.merge(document, results.load(output))
        except ValueError as error:
            sys.exit(f"{output} cannot be added to: {error}")
    built = "with its CUDA kernels" if described["built"]["cuda"] else "without CUDA kernels"
    if device.type == "cpu":
        built = f"with its kernels for {described['built']['cpu_capability']}"
        built = built if described["built"]["cpu_capability"] else "without its extension"
    print(f"{described['device']}, torch {described['torch']}, involution {described['involution']} {built}")
    print(f"A large copy: {large / roof.seconds(large) * 1e-9:.1f} GB/s, read and written.")
    if product is not None:
        rate = product.multiply_adds_per_second()
        print(f"A large matrix product: {rate * 1e-9:.1f} G multiply-adds/s in float32.")
    if not document["environment"]["cold"]:
        print(
            f"Not cold: operands rotate through {rotation >> 20} MiB, the last cache has {cache >> 20} MiB."
        )
    print(HEADER)
    failed = False
    for row in rows(options, bench):
        document["results"].append(row)
        failed |= wrong(row)
        results.save(document, output)
    document["environment"]["clocks_after"] = environment.clocks(device)
    results.save(document, output)
    if device.type == "cpu":
        print(*summary.summarise(document["results"]), sep="\n")
    print(f"Written to {output}.")
    if failed:
        print("At least one result is wrong; see REFUSED above.", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
