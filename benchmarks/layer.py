"""One involution layer against a 3x3 convolution of the same map, on RedNet-50's shapes.

    python -m benchmarks.layer                                  RedNet's shapes, forward and training step
    python -m benchmarks.layer --batch 64 --shapes "rednet-1"
    python -m benchmarks.layer --quick                          some seconds

The layer is whole: pool, reduction, norm, ReLU, kernels and involution. It is measured

fused       with one kernel for making kernels and applying them, where there is one
backward    fused, with kernels of its backward pass as well, where there are any: training steps alone
unfused     with a kernel tensor
conv3x3     the convolution that it stands for, with as many channels and the same stride, without a bias

in channels_last. Forward is in evaluation mode under torch.inference_mode; a training step is forward and all
gradients. Times are those of the device, with operands that are not in its cache (benchmarks/timing.py). Fused and
unfused results are compared first, and gradients by either backward pass, and wrong ones get no time. The ratio is to
the convolution's time: below 1 the layer is faster. On a GPU the most memory that a call has at once, beside parameters
and input, is noted too. Results go to benchmarks/results/DEVICE-layer.csv, in place of the last run's, and those of a
quick run to build/benchmarks.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from involution import Involution2d, _fused

from . import environment, results, timing
from .cases import DTYPES, REDNET, Case, select

MODES = ("forward", "training")
NAMES = ("fused", "backward", "unfused", "conv3x3")
# How far results may be apart, as a share of the largest.
CLOSE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.05}
CACHES = 4  # times the size of the last cache that the inputs pass together


class WrongLayerError(Exception):
    """The fused layer and the unfused one do not agree."""


@contextlib.contextmanager
def backward_kernels(on: bool) -> Iterator[None]:
    """With or without the kernels of the fused layer's backward pass, whatever the environment says."""
    before = os.environ.get(_fused.BACKWARD_VARIABLE, "")
    os.environ[_fused.BACKWARD_VARIABLE] = "1" if on else "0"
    try:
        yield
    finally:
        os.environ[_fused.BACKWARD_VARIABLE] = before


def build(case: Case, device: torch.device, dtype: torch.dtype) -> tuple[dict[str, nn.Module], str | None]:
    """The layers by name, those with involution of one state, and why there is no fused one."""
    torch.manual_seed(0)
    kernel_size, stride = case.kernel_size, case.stride
    unfused = Involution2d(case.channels, kernel_size, stride, fused=False)
    fused, backward = (Involution2d(case.channels, kernel_size, stride, fused=True) for _ in range(2))
    layers: dict[str, nn.Module] = {"fused": fused, "backward": backward, "unfused": unfused}
    for other in (fused, backward):
        other.load_state_dict(unfused.state_dict())
    layers["conv3x3"] = nn.Conv2d(case.channels, case.channels, 3, case.strides, 1, bias=False)
    for layer in layers.values():
        layer.to(device, dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    reason = fused.fused_available(make_input(case, device, dtype)).reason
    if reason is not None:
        del layers["fused"]
    has_backward = (case.kernel_size, case.stride) == (_fused.BACKWARD_KERNEL_SIZE, _fused.BACKWARD_STRIDE)
    if reason is not None or not has_backward:
        del layers["backward"]
    return layers, reason


def make_input(case: Case, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Normally distributed, in channels_last."""
    x = torch.randn(case.input_shape, device=device, dtype=dtype)
    return x.contiguous(memory_format=torch.channels_last)


def call_of(mode: str, layer: nn.Module, x: Tensor) -> Callable[[], Any]:
    """One forward pass, or one with the gradients of the input and all parameters."""

    def forward() -> Tensor:
        with torch.inference_mode():
            return layer(x)

    if mode == "forward":
        return forward
    wanted = (x.requires_grad_(), *layer.parameters())
    with torch.no_grad():
        grad = torch.randn_like(layer(x))

    def step() -> tuple[Tensor, ...]:
        return torch.autograd.grad(layer(x), wanted, grad)

    return step


def compare(layers: dict[str, nn.Module], x: Tensor) -> None:
    """Raises WrongLayerError unless outputs, and gradients by either backward pass, agree up to rounding."""
    if "fused" not in layers:
        return
    with torch.inference_mode():
        expected, output = (layers[name].eval()(x).float() for name in ("unfused", "fused"))
    if not (error := difference(output, expected)) <= CLOSE[x.dtype]:
        raise WrongLayerError(f"The fused layer gives other outputs: the relative error is {error:.2g}.")
    if "backward" not in layers:
        return
    gradients = {}
    for name in ("fused", "backward"):
        torch.manual_seed(0)
        with backward_kernels(name == "backward"):
            gradients[name] = call_of("training", layers[name].eval(), x.detach())()
    for gradient, other in zip(gradients["backward"], gradients["fused"], strict=True):
        if not (error := difference(gradient.float(), other.float())) <= 2 * CLOSE[x.dtype]:
            raise WrongLayerError(
                f"The kernels of the backward pass give other gradients: the relative error is {error:.2g}."
            )


def difference(result: Tensor, expected: Tensor) -> float:
    """The largest, as a share of the largest value."""
    return ((result - expected).abs().max() / expected.abs().max()).item()


def measure(
    case: Case, mode: str, dtype: str, device: torch.device, effort: timing.Effort, rotation: int
) -> dict[str, Any]:
    """One row of the results."""
    row: dict[str, Any] = {"case": case.name, "batch": case.batch, "channels": case.channels, "mode": mode}
    row |= {
        "input_size": list(case.input_size),
        "kernel_size": list(case.kernel_size),
        "stride": case.strides,
    }
    row |= {"dtype": dtype, "layers": {}}
    layers, row["not_fused"] = build(case, device, DTYPES[dtype])
    x = make_input(case, device, DTYPES[dtype])
    compare(layers, x)
    copies = timing.copies_for(x.numel() * x.element_size(), rotation)
    inputs = [x, *(x.clone(memory_format=torch.preserve_format) for _ in range(copies - 1))]
    if mode == "forward":
        layers.pop("backward", None)
    for name, layer in layers.items():
        layer.train(mode == "training")
        with backward_kernels(name == "backward"):
            calls = [call_of(mode, layer, each.detach()) for each in inputs]
            calls[0]()
            peak = environment.peak_bytes(calls[0], device)
            taken = timing.kernel_time(calls, device, effort)
        row["layers"][name] = {
            "us": taken.seconds * 1e6,
            "fastest_us": taken.fastest * 1e6,
            "method": taken.method,
            "peak_bytes": peak,
        }
    convolution = row["layers"]["conv3x3"]["us"]
    row["ratios"] = {name: row["layers"][name]["us"] / convolution for name in layers if name != "conv3x3"}
    return row


HEADER = f"{'shape':<16}{'batch':>6}  {'mode':<10}" + "".join(f"{name:>24}" for name in NAMES)


def describe(row: dict[str, Any]) -> str:
    """A row of the results as text: times, ratios to the convolution, and memory where it is counted."""
    cells = []
    for name in NAMES:
        layer = row["layers"].get(name)
        if layer is None:
            cells.append("-")
            continue
        ratio = f" {row['ratios'][name]:.2f}x" if name in row["ratios"] else ""
        memory = "" if layer.get("peak_bytes") is None else f" {layer['peak_bytes'] / 2**20:.0f} MiB"
        cells.append(f"{layer['us']:.1f} us{ratio}{memory}")
    return f"{row['case']:<16}{row['batch']:>6}  {row['mode']:<10}" + "".join(f"{cell:>24}" for cell in cells)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, with the defaults of a quick run where one is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", choices=("cuda", "cpu"), help="device to measure on (default: cuda if available)")
    add(
        "--shapes",
        nargs="+",
        metavar="PATTERN",
        help=f"names or patterns of {', '.join(case.name for case in REDNET)}",
    )
    add("--batch", nargs="+", type=int, metavar="N", help="batch sizes (default: 32 64; on a CPU 1)")
    add("--modes", nargs="+", choices=MODES, metavar="MODE", help=f"modes to measure: {', '.join(MODES)}")
    add("--dtype", choices=DTYPES, help="dtype of the layers (default: bfloat16; on a CPU float32)")
    add("--seconds", type=float, help="time of each measurement (default: 0.2)")
    add("--quick", action="store_true", help="two shapes, a batch of 1, few samples, warm caches")
    add(
        "--output",
        type=Path,
        metavar="FILE",
        help="file to write (default: benchmarks/results/DEVICE-layer.csv)",
    )
    options = parser.parse_args(arguments)
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda was asked for, but torch sees no CUDA device.")
    options.batch = options.batch or ([1] if options.quick or options.device == "cpu" else [32, 64])
    options.shapes = options.shapes or (["rednet-3-down", "rednet-4"] if options.quick else ["rednet-*"])
    options.modes = options.modes or list(MODES)
    options.dtype = options.dtype or ("bfloat16" if options.device == "cuda" else "float32")
    try:
        chosen = select(options.shapes, options.batch, options.device)
    except ValueError as error:
        parser.error(str(error))
    options.cases = [case for case in chosen if case.name.startswith("rednet-")]
    if not options.cases:
        parser.error(f"--shapes must be among RedNet's, but is {' '.join(options.shapes)}.")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns 1 if a layer was wrong."""
    options = parse(arguments)
    device = torch.device(options.device)
    effort = timing.QUICK if options.quick else timing.Effort()
    if options.seconds is not None:
        effort = replace(effort, seconds=options.seconds)
    rotation = 0 if options.quick else CACHES * environment.cache_bytes(device)
    described = environment.describe(device)
    chosen = ("shapes", "batch", "modes", "dtype")
    document: dict[str, Any] = {
        "benchmark": "layer",
        "environment": {**described, "rotation_bytes": rotation},
        "options": {name: getattr(options, name) for name in chosen},
        "results": [],
    }
    output = options.output or results.default_path(document, options.quick)
    print(f"{described['device']}, {options.dtype}, torch {described['torch']}")
    print(HEADER)
    reasons = set()
    for case in options.cases:
        for mode in options.modes:
            try:
                row = measure(case, mode, options.dtype, device, effort, rotation)
            except WrongLayerError as error:
                print(f"{case}: {error}", file=sys.stderr)
                return 1
            print(describe(row), flush=True)
            reasons.add(row["not_fused"])
            document["results"].append(row)
            results.save(document, output)
    for reason in sorted(reasons - {None}):
        print(f"Not fused: {reason}")
    print(f"Written to {output}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
