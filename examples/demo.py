"""Involution on a photograph: what runs where, how exact it is, how long it takes, and a picture of it.

Run `make demo`, or `python examples/demo.py` where involution is installed with its extra `demo`. The exit
status is 1 if a result is further from float64 than rounding explains.
"""

from __future__ import annotations

import argparse
import copy
import math
import platform
import statistics
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import involution
from involution import InvolutionLayer, involution2d, kernel_decompose, reference

try:
    from picture import draw
    from sklearn.datasets import load_sample_image  # reads the photograph with pillow
except ImportError as error:
    raise ImportError(
        f"The demo needs scikit-learn, pillow and matplotlib, but {error.name} is missing. "
        "Install them with: pip install -e '.[demo]'"
    ) from error

KERNEL = 7  # of the measurements, as in RedNet


def say(text: str) -> None:
    """Progress, apart from the results."""
    print(f"  ... {text}", file=sys.stderr, flush=True)


def load_photograph(device: torch.device) -> Tensor:
    """A dahlia, (1, 3, 427, 640) in 0 to 1; it ships inside scikit-learn."""
    pixels = torch.from_numpy(load_sample_image("flower.jpg").copy())
    return pixels.to(device).permute(2, 0, 1)[None].float() / 255


# --- What runs where --------------------------------------------------------------------------------------


def has_kernels(device: torch.device) -> bool:
    """Whether kernels of this library run on the device, rather than the plain PyTorch reference."""
    key = device.type.upper()
    return torch._C._dispatch_has_kernel_for_dispatch_key("involution::involution", key)


def describe(device: torch.device) -> str:
    info = involution.build_info()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    runs = "kernels of this library" if has_kernels(device) else "the plain PyTorch reference"
    if info["cuda"]:
        built = f"built with CUDA {info['cuda']} for {', '.join(info['architectures'])}"  # type: ignore[arg-type]
    else:
        built = f"not built: {info['no_cuda_reason']}"
    versions = f"{info['version']}, with torch {torch.__version__} and Python {platform.python_version()}"
    lines = (
        f"involution    {versions}",
        f"CUDA kernels  {built}",
        f"device        {device} ({name}), where the operations run as {runs}",
    )
    return "\n".join(textwrap.fill(line, 110, subsequent_indent=" " * 14) for line in lines)


# --- Exactness and time -----------------------------------------------------------------------------------


class Row(NamedTuple):
    """One line of the table; errors are the largest error by the largest value, times are in milliseconds."""

    name: str
    error: float
    reference_error: float
    milliseconds: float
    reference_milliseconds: float | None

    @property
    def exact(self) -> bool:
        """At most twice the plain formula's error, plus one rounding, and in any case below 1e-4."""
        return self.error <= min(2 * self.reference_error + torch.finfo(torch.float32).eps, 1e-4)


def layer_by_reference(layer: InvolutionLayer, x: Tensor) -> Tensor:
    """The layer in plain PyTorch."""
    attention, groups = layer.attention, layer.groups
    features = layer.conv(x)
    query, key, value = attention.query(features), attention.key(features), layer.value(features)
    window = {"stride": (1, 1), "padding": [(k - 1) // 2 for k in layer.kernel_size], "dilation": (1, 1)}
    scores = reference.local_correlation(query, key, layer.kernel_size, groups, **window)
    points = kernel_decompose(layer.conv.weight).unflatten(1, (groups, -1))
    prior = points.sum((2, 3)).t() / math.sqrt(points.shape[2] * points.shape[3])
    scores = scores.flatten(2, 3) / math.sqrt(query.shape[1] // groups) + prior[:, :, None, None]
    weights = scores.softmax(2).unflatten(2, layer.kernel_size)
    return features + reference.involution(value, weights, **window)


def error_of(results: list[Tensor], exact: list[Tensor]) -> float:
    return max(
        ((r.double() - e).abs().max() / e.abs().max()).item() for r, e in zip(results, exact, strict=True)
    )


def milliseconds(function: Callable[[], Any], device: torch.device) -> float:
    """The median of 3 to 20 runs after warm-up, by CUDA events on a GPU and by the clock elsewhere."""
    on_gpu = device.type == "cuda"
    for _ in range(3 if on_gpu else 1):
        function()
    times: list[float] = []
    while len(times) < 3 or (len(times) < 20 and sum(times) < 1000):
        if on_gpu:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            function()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
        else:
            start = time.perf_counter()
            function()
            times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def measure(photograph: Tensor, layer: InvolutionLayer) -> list[Row]:
    """The operator on the layer's own values and kernels, and the layer, each forward and backward."""
    device = photograph.device
    ours = has_kernels(device)
    window = ((1, 1), (KERNEL // 2, KERNEL // 2), (1, 1))
    rows = []

    def add(name: str, function: Callable, plain: Callable, exact: list[Tensor]) -> None:
        say(f"timing {name}")
        got, by_plain = function(), plain()
        errors = error_of(got, exact), error_of(by_plain, exact)
        took = milliseconds(function, device)
        # Where the operator is the reference, there is nothing to compare.
        rows.append(Row(name, *errors, took, milliseconds(plain, device) if ours else None))

    say("the operator and the reference in float64")
    with torch.no_grad():
        features = layer.conv(photograph)
        weight = layer.attention(features, kernel_decompose(layer.conv.weight))
        x = layer.value(features)
        grad = features / features.abs().max()
    x64, weight64, grad64 = (t.double() for t in (x, weight, grad))
    size = x.shape[2:]
    x.requires_grad_(), weight.requires_grad_()
    output = involution2d(x, weight, padding="same")
    add(
        "involution2d",
        lambda: [involution2d(x.detach(), weight.detach(), padding="same")],
        lambda: [reference.involution(x.detach(), weight.detach(), *window)],
        [reference.involution(x64, weight64, *window)],
    )
    add(
        "  gradient of input",
        lambda: torch.autograd.grad(output, x, grad, retain_graph=True),
        lambda: [reference.involution_transpose(grad, weight.detach(), size, *window)],
        [reference.involution_transpose(grad64, weight64, size, *window)],
    )
    groups, kernel_size = weight.shape[1], weight.shape[2:4]
    add(
        "  gradient of weight",
        lambda: torch.autograd.grad(output, weight, grad, retain_graph=True),
        lambda: [reference.local_correlation(grad, x.detach(), kernel_size, groups, *window)],
        [reference.local_correlation(grad64, x64, kernel_size, groups, *window)],
    )

    say("the layer in float64, forward and backward")
    twin = copy.deepcopy(layer).double()
    exact = layer_by_reference(twin, photograph.double())
    exact_gradients = torch.autograd.grad(exact, list(twin.parameters()), grad64)
    result, plain = layer(photograph), layer_by_reference(layer, photograph)
    parameters = list(layer.parameters())
    with torch.no_grad():
        add(
            f"InvolutionLayer(3, {layer.out_channels}, {KERNEL})",
            lambda: [layer(photograph)],
            lambda: [layer_by_reference(layer, photograph)],
            [exact.detach()],
        )
    add(
        "  gradients of parameters",
        lambda: torch.autograd.grad(result, parameters, grad, retain_graph=True),
        lambda: torch.autograd.grad(plain, parameters, grad, retain_graph=True),
        list(exact_gradients),
    )
    return rows


def table(rows: list[Row]) -> str:
    """Aligned columns; without kernels the reference has no time of its own."""
    lines = [f"{'':28}{'error':>10}{'reference':>11}{'':>9}{'ms':>10}{'reference':>12}{'ratio':>8}"]
    for row in rows:
        verdict = "exact" if row.exact else "WRONG"
        line = (
            f"{row.name:28}{row.error:10.1e}{row.reference_error:11.1e}{verdict:>9}{row.milliseconds:10.2f}"
        )
        if row.reference_milliseconds is None:
            line += f"{'same code':>12}{'-':>8}"
        else:
            ratio = row.reference_milliseconds / row.milliseconds
            line += f"{row.reference_milliseconds:12.2f}{ratio:7.1f}x"
        lines.append(line)
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=Path, default=Path("demo.png"), help="picture to write (default: demo.png)"
    )
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: cuda if available"
    )
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    torch.manual_seed(0)

    print(describe(device))
    photograph = load_photograph(device)
    # A GPU takes it whole; two cores would take minutes.
    part = photograph if device.type == "cuda" else photograph[..., 158:286, 246:374]
    layer = InvolutionLayer(3, 64, KERNEL, padding="same").to(device)
    print(f"input         {part.shape[3]} x {part.shape[2]} pixels of a photograph, float32")
    print(f"operator      {layer.out_channels} channels in {layer.groups} groups, kernel {KERNEL}x{KERNEL}\n")
    rows = measure(part, layer)
    print(table(rows))
    print(
        "\nerror: the largest against float64, by the largest value; exact: at most twice the reference's.\n"
        "ms: medians after warm-up. The reference is plain PyTorch; its layer is differentiated by autograd."
    )
    if not has_kernels(device):
        print(
            f"On {device.type} the operations are the reference: errors agree, and there is no ratio to give."
        )

    say(f"drawing {arguments.output}")
    draw(photograph, arguments.output)
    print(f"\npicture       {arguments.output}")
    if not all(row.exact for row in rows):
        print("A result is wrong: see the table.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
