"""Measures shapes of the CUDA kernels' blocks: what csrc/cuda/plan.cpp chooses from.

    python -m benchmarks.tune --output shapes.json
    python -m benchmarks.tune --shapes rednet-1 --dtypes bfloat16 --layouts channels_last

For each problem it starts with the plan's own choice and changes one number of it after another, keeping what is
faster: a search along the axes, not of all combinations. INVOLUTION_CUDA_PLAN hands a shape to the library.
Every time is that of a call in a CUDA graph over operands that are not in the cache, as in benchmarks.operator.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from . import timing
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
        "chunks": (1, 2, 3, 4, 5, 7, 8, 14, 28),
        "producers": (2, 3, 4, 6),
        "stages": (2, 3, 4),
    },
    False: {
        "pack": (16, 32, 64, 128),
        "runs": (1, 2, 4, 8),
        "rows": (1, 2, 4, 7),
        "parts": (1, 2, 3, 4, 7),
        "chunks": (1, 2, 3, 4, 5, 7, 8, 14, 28),
        "producers": (2, 4, 6),
        "stages": (2, 3),
    },
}


def measure(operation: str, case: Case, sets: list, shape: Shape) -> float:
    """Seconds of a call with this shape, where a number that is missing is the plan's own."""
    os.environ[VARIABLE] = " ".join(f"{name}={value}" for name, value in shape.items())
    try:
        calls = [call_of(operation, case, tensors) for tensors in sets]
        return timing.kernel_time(calls, torch.device("cuda"), EFFORT).seconds
    finally:
        del os.environ[VARIABLE]


def search(
    operation: str, case: Case, sets: list, tensor_cores: bool, passes: int
) -> Iterator[tuple[float, Shape]]:
    """Every shape that was measured, the plan's own first."""
    best: Shape = {}
    best_seconds = measure(operation, case, sets, best)
    yield best_seconds, best
    seen = {(): best_seconds}
    for _ in range(passes):
        for name, values in STEPS[tensor_cores].items():
            for value in values:
                shape = {**best, name: value}
                key = tuple(sorted(shape.items()))
                if key in seen:
                    continue
                seen[key] = seconds = measure(operation, case, sets, shape)
                yield seconds, shape
                if seconds < 0.99 * best_seconds:
                    best, best_seconds = shape, seconds


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
    parser.add_argument("--batch", type=int, default=32, help="of RedNet's shapes")
    parser.add_argument("--passes", type=int, default=2, help="over the numbers of a shape")
    parser.add_argument("--seconds", type=float, default=1e9, help="ends after the row that passes this time")
    parser.add_argument("--output", type=Path, help="writes every measurement as JSON")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if not torch.cuda.is_available():
        print("benchmarks.tune measures CUDA kernels, and torch sees no CUDA device here.", file=sys.stderr)
        return 1
    device = torch.device("cuda")
    begun = time.monotonic()
    roof = timing.CopyRoof(device, EFFORT, ROTATION)
    rows = []
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
                    rows.append(
                        {
                            "shape": case.name,
                            "dtype": dtype,
                            "layout": layout,
                            "operation": operation,
                            "copy_us": copy * 1e6,
                            "measured": [[seconds * 1e6, numbers] for seconds, numbers in found],
                        }
                    )
                    if options.output:
                        result = {"device": torch.cuda.get_device_name(), "rows": rows}
                        options.output.write_text(json.dumps(result), encoding="utf-8")
                    if time.monotonic() - begun > options.seconds:
                        return 0
                del sets
    return 0


if __name__ == "__main__":
    sys.exit(main())
