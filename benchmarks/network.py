"""RedNet-50 against ResNet-50: inference and a training step, as times and as their ratio.

    python -m benchmarks.network                          batch 1 and 8, both layouts
    python -m benchmarks.network --quick                  some seconds: small images, one batch, one layout
    python -m benchmarks.network --modes inference --layouts channels_last --batch 1 4 16
    python -m benchmarks.network --dtype bfloat16 --launches graph --batch 64 256
    python -m benchmarks.network --detection              the backbones of detectors, 480x640, or 800x1344 on a GPU

ResNet-50 is a plain definition (benchmarks/resnet.py); both networks must have their published number of parameters,
or nothing is timed. With --detection each has a feature pyramid in the place of its classifier: of involutions on
RedNet, of 3x3 convolutions on ResNet. The modes:

inference   evaluation mode under torch.inference_mode
fused       the same with batch norms folded into the convolutions before them, and what involution.models.fuse does
            for RedNet beyond that; outputs are compared with those before, and a wrong one gets no time
training    forward, cross-entropy and backward; of a pyramid the mean of each level in place of the cross-entropy

On a GPU each is measured as it is called, and as a CUDA graph, which leaves out what the host takes; and with the most
memory that it has at once beside parameters and images.

The two take turns, call by call, so that what disturbs the machine disturbs both. A time is the median of the
samples, and the ratio is RedNet's over ResNet's: below 1 RedNet is faster. A time marked ~ is noisy: the fastest
sample took less than two thirds of the median. Results go to benchmarks/results/DEVICE-network.csv, or
DEVICE-detection.csv, in place of the last run's, and those of a quick run to build/benchmarks.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from involution.models import FeaturePyramid, fuse, rednet50

from . import environment, resnet, results, timing

PARAMETERS = {"rednet50": 15_540_806, "resnet50": resnet.PARAMETERS}
FPN_PARAMETERS = {"rednet50": 14_746_478, "resnet50": resnet.FPN_PARAMETERS}
MODES = ("inference", "fused", "training")
LAUNCHES = ("eager", "graph")
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NOISY = 2 / 3  # of the median; a fastest sample below that is remarked upon
CLOSE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}  # of the largest output, after folding

Call = Callable[[], object]


class WrongNetworkError(Exception):
    """A network is not the one that it is compared as."""


def rednet50_fpn() -> nn.Module:
    """RedNet-50's maps and a pyramid of involutions on them: the published Faster R-CNN without its heads."""
    body = rednet50(features_only=True, stem_kernel_size=7)
    return nn.Sequential(body, FeaturePyramid(body.feature_channels, neck="involution", extra_levels=1))


def build(detection: bool = False, seed: int = 0) -> dict[str, nn.Module]:
    """The two networks, with random weights and norms that have seen a batch."""
    torch.manual_seed(seed)
    networks: dict[str, nn.Module]
    if detection:
        networks, published = {"rednet50": rednet50_fpn(), "resnet50": resnet.ResNetFPN()}, FPN_PARAMETERS
    else:
        networks, published = {"rednet50": rednet50(), "resnet50": resnet.ResNet()}, PARAMETERS
    for name, network in networks.items():
        count = sum(parameter.numel() for parameter in network.parameters())
        if count != published[name]:
            raise WrongNetworkError(
                f"{name} has {count:,} parameters, but {published[name]:,} were published."
            )
        with torch.no_grad():
            network.train()(torch.randn(2, 3, 64, 64))
    return networks


def flat(output: Tensor | Sequence[Tensor]) -> Tensor:
    """Scores, or the levels of a pyramid one after the other, in float32."""
    levels = [output] if isinstance(output, Tensor) else output
    return torch.cat([level.float().flatten() for level in levels])


def folded(name: str, network: nn.Module, images: Tensor) -> nn.Module:
    """The network with its norms folded, after a comparison of outputs."""
    network = network.eval()
    fold = resnet.fold if isinstance(network, (resnet.ResNet, resnet.ResNetFPN)) else fuse
    result = fold(network)
    with torch.inference_mode():
        expected, output = (flat(each(images)) for each in (network, result))
    error = ((output - expected).abs().max() / expected.abs().max()).item()
    if not error <= CLOSE[images.dtype]:
        raise WrongNetworkError(
            f"{name} gives other outputs when it is fused: the relative error is {error:.2g}."
        )
    return result


def call_of(mode: str, network: nn.Module, images: Tensor, labels: Tensor) -> Call:
    """One inference, or one step without the optimiser's."""

    def infer() -> object:
        with torch.inference_mode():
            return network(images)

    def step() -> None:
        network.zero_grad(set_to_none=True)
        output = network(images)
        if isinstance(output, Tensor):
            F.cross_entropy(output.float(), labels).backward()
        else:
            torch.stack([level.float().mean() for level in output]).sum().backward()

    network.train(mode == "training")
    return step if mode == "training" else infer


def alternate(calls: Sequence[Call], device: torch.device, seconds: float, least: int) -> list[list[float]]:
    """Samples of each call, which take turns until each has spent its seconds and has enough of them."""

    def sample(call: Call) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    for call in calls:
        sample(call)
    samples: list[list[float]] = [[] for _ in calls]
    while len(samples[0]) < least or min(sum(each) for each in samples) < seconds:
        for call, each in zip(calls, samples, strict=True):
            each.append(sample(call))
    return samples


def measure(
    mode: str,
    batch: int,
    layout: str,
    launch: str,
    networks: dict[str, nn.Module],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """One row of the results."""
    device, dtype = torch.device(options.device), DTYPES[options.dtype]
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(batch, 3, *options.size, generator=generator)
    images = images.to(device, dtype).contiguous(memory_format=LAYOUTS[layout])
    labels = torch.randint(0, 1000, (batch,), generator=generator).to(device)
    row: dict[str, Any] = {"mode": mode, "batch": batch, "layout": layout, "dtype": options.dtype}
    row |= {"launch": launch, "size": options.size}
    calls: list[Call] = []
    peaks = []
    for name, network in networks.items():
        network.to(device, dtype).to(memory_format=LAYOUTS[layout])  # type: ignore[call-overload]
        if mode == "fused":
            network = folded(name, network, images)
        if options.compile:
            network = cast(nn.Module, torch.compile(network))
        call = call_of(mode, network, images, labels)
        call()  # compiles, and chooses algorithms by trying some that take more memory
        network.zero_grad(set_to_none=True)
        peaks.append(environment.peak_bytes(call, device))
        calls.append(timing.graphed(call) if launch == "graph" else call)
    samples = alternate(calls, device, options.seconds, options.least)
    for name, each, peak in zip(networks, samples, peaks, strict=True):
        row[name] = {
            "ms": statistics.median(each) * 1e3,
            "fastest_ms": min(each) * 1e3,
            "samples": len(each),
            "peak_bytes": peak,
        }
    row["ratio"] = row["rednet50"]["ms"] / row["resnet50"]["ms"]
    row["fastest_ratio"] = row["rednet50"]["fastest_ms"] / row["resnet50"]["fastest_ms"]
    return row


HEADER = (
    f"{'mode':<11}{'layout':<15}{'launch':<7}{'batch':>5}{'RedNet-50':>13}{'ResNet-50':>13}{'ratio':>8}"
    f"{'of fastest':>12}  peak memory"
)


def describe(row: dict[str, Any]) -> str:
    """A row of the results as text."""
    times, peaks = [], []
    for name in PARAMETERS:
        noise = "~" if row[name]["fastest_ms"] < NOISY * row[name]["ms"] else ""
        times.append(f"{row[name]['ms']:>9.1f} ms{noise:1}")
        peak = row[name].get("peak_bytes")  # not in a record of a CPU
        if peak is not None:
            peaks.append(f"{peak / 2**20:.0f}")
    head = f"{row['mode']:<11}{row['layout']:<15}{row['launch']:<7}{row['batch']:>5}"
    memory = f"  {' / '.join(peaks)} MiB" if peaks else ""
    return f"{head}{''.join(times)}{row['ratio']:>8.2f}{row['fastest_ratio']:>12.2f}{memory}"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, with the defaults of a quick run where one is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", choices=("cuda", "cpu"), help="device to measure on (default: cuda if available)")
    add("--modes", nargs="+", choices=MODES, metavar="MODE", help=f"modes to measure: {', '.join(MODES)}")
    add("--batch", nargs="+", type=int, metavar="N", help="batch sizes (default: 1 8; of --detection 1 2)")
    add(
        "--layouts",
        nargs="+",
        choices=LAYOUTS,
        metavar="LAYOUT",
        help=f"memory formats: {', '.join(LAYOUTS)}",
    )
    add(
        "--launches",
        nargs="+",
        choices=LAUNCHES,
        metavar="LAUNCH",
        help="how kernels are launched: eager or, on a GPU, graph",
    )
    add("--dtype", choices=DTYPES, default="float32", help="dtype of the networks (default: float32)")
    add("--detection", action="store_true", help="measure the backbones of detectors, with their pyramids")
    add(
        "--size",
        nargs="+",
        type=int,
        metavar="N",
        help="height and width of the images, one number for both (default: 224; of --detection 480 640, on a GPU "
        "800 1344)",
    )
    add("--compile", action="store_true", help="compile both networks with torch.compile")
    add("--seconds", type=float, help="time to measure each network in each row (default: 3)")
    add("--threads", type=int, metavar="N", help="number of CPU threads (default: torch's)")
    add("--quick", action="store_true", help="small images, one batch size, one memory format, two samples")
    add(
        "--output",
        type=Path,
        metavar="FILE",
        help="file to write (default: benchmarks/results/DEVICE-network.csv)",
    )
    options = parser.parse_args(arguments)
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda was asked for, but torch sees no CUDA device.")
    options.modes = options.modes or list(MODES)
    options.launches = options.launches or list(LAUNCHES if options.device == "cuda" else LAUNCHES[:1])
    if "graph" in options.launches and options.device != "cuda":
        parser.error("--launches graph needs a GPU: CUDA graphs are what it measures.")
    if options.size is not None and len(options.size) > 2:
        parser.error(
            f"--size takes height and width, or one number for both, not {len(options.size)} numbers."
        )
    options.batch = options.batch or ([2] if options.quick else [1, 2] if options.detection else [1, 8])
    options.layouts = options.layouts or (["channels_last"] if options.quick else list(LAYOUTS))
    size = [224, 224]
    if options.detection:
        size = [800, 1344] if options.device == "cuda" else [480, 640]
    size = options.size or ([64, 64] if options.quick else size)
    options.size = size * 2 if len(size) == 1 else size
    options.seconds = (0.0 if options.quick else 3.0) if options.seconds is None else options.seconds
    options.least = 2 if options.quick else 5
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns 1 if a network was wrong."""
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    described = environment.describe(torch.device(options.device))
    chosen = ("modes", "batch", "layouts", "launches", "dtype", "size", "compile", "seconds")
    document: dict[str, Any] = {
        "benchmark": "detection" if options.detection else "network",
        "environment": described,
        "options": {name: getattr(options, name) for name in chosen},
        "results": [],
    }
    output = options.output or results.default_path(document, options.quick)
    threads = f", {described['threads']} threads" if described["threads"] else ""
    print(f"{described['device']}{threads}, torch {described['torch']}, involution {described['involution']}")
    print(HEADER)
    try:
        networks = build(options.detection)
        for mode in options.modes:
            for layout in options.layouts:
                for batch, launch in itertools.product(options.batch, options.launches):
                    row = measure(mode, batch, layout, launch, networks, options)
                    print(describe(row), flush=True)
                    document["results"].append(row)
                    results.save(document, output)
    except WrongNetworkError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"Written to {output}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
