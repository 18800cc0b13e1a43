"""Measures shapes of the CUDA kernels' blocks: what csrc/cuda/measured_shapes.h is made from.

    python -m benchmarks.tune --output shapes.csv
    python -m benchmarks.tune --shapes rednet-1 --dtypes bfloat16 --layouts channels_last
    python -m benchmarks.tune --table shapes.csv         # the rows of measured_shapes.h

For each problem it starts with a few shapes and the plan's own, and changes one number of the best after another,
keeping what is faster: a search along the axes, not of all combinations. INVOLUTION_CUDA_PLAN hands a shape to the
library. Every time is that of a call in a CUDA graph over operands that are not in the cache, as in
benchmarks.operator.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from . import environment, results, timing
from .cases import DTYPES, LAYOUTS, OPERATIONS, Case, make_tensors, select
from .operator import call_of

VARIABLE = "INVOLUTION_CUDA_PLAN"
EFFORT = timing.Effort(seconds=0.004, least=3, most=6)
ROTATION = 4 * 60 << 20

Shape = dict[str, int]

# What is tried for each number, by whether tensor cores do the arithmetic.
STEPS: dict[bool, dict[str, tuple[int, ...]]] = {
    True: {
        "runs": (1, 2, 3, 4, 5, 6, 7),
        "pack": (32, 64, 128),
        "rows": (1, 2, 4, 7, 14),
        "producers": (3, 4, 6, 8),
        "stages": (2, 3, 4),
    },
    False: {
        "pack": (16, 32, 64, 128),
        "runs": (1, 2, 4, 8),
        "rows": (1, 2, 4, 7),
        "parts": (1, 2, 4, 7),
        "producers": (3, 4, 6, 8),
        "stages": (2, 3),
    },
}
# Shapes to start from.
STARTS: dict[bool, tuple[tuple[int, ...], ...]] = {
    True: (
        (7, 64, 1, 6, 3),
        (2, 64, 1, 4, 3),
        (3, 64, 1, 4, 3),
        (2, 128, 2, 4, 3),
        (1, 128, 7, 4, 2),
        (2, 32, 14, 4, 2),
    ),
    False: (
        (64, 2, 2, 1, 4, 2),
        (32, 4, 1, 7, 3, 3),
        (16, 8, 1, 1, 3, 3),
        (16, 8, 2, 1, 4, 2),
        (64, 1, 7, 4, 4, 2),
    ),
}


def measure(operation: str, case: Case, sets: list, shape: Shape) -> float:
    """Seconds of a call with this shape, where a number that is missing is the plan's own."""
    if shape:
        os.environ[VARIABLE] = " ".join(f"{name}={value}" for name, value in shape.items())
    try:
        calls = [call_of(operation, case, tensors) for tensors in sets]
        return timing.kernel_time(calls, torch.device("cuda"), EFFORT).seconds
    finally:
        os.environ.pop(VARIABLE, None)


def search(
    operation: str, case: Case, sets: list, tensor_cores: bool, passes: int
) -> Iterator[tuple[float, Shape]]:
    """Every shape that was measured: first the plan's own, with no numbers."""
    yield measure(operation, case, sets, {}), {}
    steps = STEPS[tensor_cores]
    seen: dict[tuple, float] = {}

    def timed(shape: Shape) -> float:
        key = tuple(sorted(shape.items()))
        if key not in seen:
            seen[key] = measure(operation, case, sets, shape)
        return seen[key]

    best = min((dict(zip(steps, start, strict=True)) for start in STARTS[tensor_cores]), key=timed)
    for _ in range(passes):
        for name, values in steps.items():
            for value in values:
                shape = {**best, name: value}
                if timed(shape) < 0.99 * timed(best):
                    best = shape
    for key, seconds in seen.items():
        yield seconds, dict(key)


def table(path: Path) -> list[str]:
    """The rows of measured_shapes.h: for each problem the fastest shape, with its share of a copy as a comment."""
    problems: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    document = results.load(path, "tune")
    for row in document["results"]:
        key = tuple(row[name] for name in ("case", "dtype", "layout", "operation"))
        if row["plan"]:
            problems.setdefault(key, []).append(row)
    lines = []
    for rows in problems.values():
        row = min(rows, key=lambda row: row["us"])
        (case,) = select([row["case"]], [document["options"].get("batch", 32)])
        half = DTYPES[row["dtype"]].itemsize == 2
        transposed = row["operation"] == "input_gradient"
        width = (case.input_size if transposed else case.output_size)[-1]
        numbers = [row["plan"].get(name, 1) for name in ("pack", "runs", "rows")]
        numbers += [0, *(row["plan"].get(name, 1) for name in ("stages", "producers", "parts"))]
        name = {"forward": "kInvolution", "input_gradient": "kTranspose", "weight_gradient": "kCorrelation"}
        lines.append(
            f"    {{Operation::{name[row['operation']]}, {str(half).lower()}, "
            f"{str(row['layout'] == 'channels_last').lower()}, {case.kernel_size[-1]}, {case.strides}, {width}, "
            f"{case.batch * case.channels}, {{{', '.join(map(str, numbers))}}}}},  // {row['copy_us'] / row['us']:.0%}"
        )
    return sorted(set(lines))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", default=["rednet-*", "detection", "mask-head"])
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"], choices=list(DTYPES))
    parser.add_argument(
        "--layouts", nargs="+", default=["channels_last", "contiguous"], choices=list(LAYOUTS)
    )
    parser.add_argument("--operations", nargs="+", default=list(OPERATIONS), choices=OPERATIONS)
    parser.add_argument("--batch", type=int, default=32, help="batch size of RedNet's shapes (default: 32)")
    parser.add_argument(
        "--passes", type=int, default=2, help="how often the parameters of a shape are searched (default: 2)"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=1e9,
        help="stop after the row in which this time is over (default: never)",
    )
    parser.add_argument("--output", type=Path, help="CSV file for every measurement")
    parser.add_argument(
        "--table", type=Path, help="print the table made from such a CSV file, and measure nothing"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.table:
        print("\n".join(table(options.table)))
        return 0
    if not torch.cuda.is_available():
        print("benchmarks.tune measures CUDA kernels, and torch sees no CUDA device here.", file=sys.stderr)
        return 1
    device = torch.device("cuda")
    begun = time.monotonic()
    roof = timing.CopyRoof(device, EFFORT, ROTATION)
    rows: list[dict[str, Any]] = []
    document = {
        "benchmark": "tune",
        "environment": environment.describe(device),
        "options": {
            key: getattr(options, key)
            for key in ("shapes", "dtypes", "layouts", "operations", "batch", "passes")
        },
        "results": rows,
    }
    for case in select(options.shapes, [options.batch]):
        for dtype in options.dtypes:
            item_size = DTYPES[dtype].itemsize
            copy = roof.seconds(case.ideal_bytes(item_size))
            for layout in options.layouts:
                count = timing.copies_for(case.ideal_bytes(item_size), ROTATION)
                sets = list(make_tensors(case, DTYPES[dtype], layout, device).copies(count))
                for operation in options.operations:
                    found = list(search(operation, case, sets, item_size == 2, options.passes))
                    own, (best, shape) = found[0][0], min(found, key=lambda pair: pair[0])
                    print(
                        f"{case.name:14} {dtype:8} {layout:13} {operation:15} copy {copy * 1e6:6.1f} us, plan "
                        f"{own * 1e6:6.1f} ({copy / own:4.0%}), best {best * 1e6:6.1f} ({copy / best:4.0%}) {shape}",
                        flush=True,
                    )
                    problem = {"case": case.name, "dtype": dtype, "layout": layout, "operation": operation}
                    rows += [
                        {**problem, "copy_us": copy * 1e6, "us": seconds * 1e6, "plan": numbers}
                        for seconds, numbers in found
                    ]
                    if options.output:
                        results.save(document, options.output)
                    if time.monotonic() - begun > options.seconds:
                        return 0
                del sets
    return 0


if __name__ == "__main__":
    sys.exit(main())
