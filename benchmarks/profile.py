"""Runs the operator and its two gradients on RedNet's shapes, in named ranges for a profiler to show.

    make profile                   records them with nsys, on a GPU
    python -m benchmarks.profile   the same program alone; without a GPU it prints torch's profile of the CPU

The shapes are those of the four stages of RedNet-50 (Li et al., CVPR 2021) for images of 224x224 pixels:
kernels of 7x7, each shared by 16 channels. Warm-up happens before the first range that counts, and nothing in
a range synchronises.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from involution import involution2d

KERNEL = 7
GROUP_WIDTH = 16
STAGES = ((64, 56), (128, 28), (256, 14), (512, 7))  # channels, height and width
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def named(name: str, device: torch.device) -> AbstractContextManager:
    """A range that the device's profiler shows."""
    if device.type == "cuda":
        return torch.cuda.nvtx.range(name)
    return torch.profiler.record_function(name)


def problems(
    batch: int, dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
    """Name, input, weight and the output's gradient of each stage."""
    for channels, side in STAGES:
        groups = channels // GROUP_WIDTH
        shapes = (batch, channels, side, side), (batch, groups, KERNEL, KERNEL, side, side)
        x, weight = (torch.randn(s, dtype=dtype, device=device, requires_grad=True) for s in shapes)
        yield f"{channels} x {side} x {side}", x, weight, torch.randn_like(x)


def run(x: Tensor, weight: Tensor, grad: Tensor, name: str) -> None:
    """Forward, then each gradient by itself, each in a range of its own."""
    device = x.device
    with named(f"forward {name}", device):
        output = involution2d(x, weight, padding="same")
    with named(f"input gradient {name}", device):
        torch.autograd.grad(output, x, grad, retain_graph=True)
    with named(f"weight gradient {name}", device):
        torch.autograd.grad(output, weight, grad)


def on_gpu(batch: int, dtype: torch.dtype, repeats: int) -> None:
    device = torch.device("cuda")
    for name, x, weight, grad in problems(batch, dtype, device):
        for _ in range(3):
            run(x, weight, grad, "warm-up")
        torch.cuda.synchronize()
        for _ in range(repeats):
            run(x, weight, grad, name)
        torch.cuda.synchronize()


def on_cpu(batch: int, dtype: torch.dtype, repeats: int) -> None:
    device = torch.device("cpu")
    ready = list(problems(batch, dtype, device))
    for _, x, weight, grad in ready:
        run(x, weight, grad, "warm-up")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for name, x, weight, grad in ready:
            for _ in range(repeats):
                run(x, weight, grad, name)
    ranges = tuple(f"{kind} " for kind in ("forward", "input gradient", "weight gradient"))
    print(f"{'':34}{'calls':>7}{'ms a call':>12}")
    for event in profile.key_averages():
        if event.key.startswith(ranges):
            print(f"{event.key:34}{event.count:7}{event.cpu_time_total / event.count / 1000:12.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, help="batch size (default: 32 on a GPU, 1 on a CPU)")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="dtype of the tensors (default: float32)"
    )
    parser.add_argument("--repeats", type=int, default=5, help="how often each operation runs (default: 5)")
    arguments = parser.parse_args()
    cuda = torch.cuda.is_available()
    batch = arguments.batch or (32 if cuda else 1)
    print(f"K = {KERNEL}, {GROUP_WIDTH} channels a group, batch {batch}, {arguments.dtype}")
    if cuda:
        on_gpu(batch, DTYPES[arguments.dtype], arguments.repeats)
        print("The ranges are recorded if a profiler runs this: make profile.")
    else:
        print("torch sees no CUDA device: this profiles the CPU, with torch's profiler, not with nsys.")
        on_cpu(batch, DTYPES[arguments.dtype], arguments.repeats)


if __name__ == "__main__":
    main()
