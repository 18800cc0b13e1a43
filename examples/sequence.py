"""Involution in one dimension: a recording that was played at a varying speed is put right.

A signal ``s`` was recorded with a time error: ``y(t) = s(t - d(t))``. The error ``d`` is known, as from a pilot tone,
and changes all the time, up to four samples either way. Given ``y`` and ``d``, a network shall return ``s``. The
answer is known exactly, because ``s`` is a sum of sines that is computed wherever it is needed.

What puts sample ``t`` right is an interpolation from the neighbourhood of ``t + e``, where ``e = d(t + e)``: a kernel
that differs from place to place, and that the input decides. That is what an involution is. A convolution has one
kernel for all places, and leaves the choice to the nonlinearities around it. The example trains a network with
``Involution1d`` and one with depthwise convolutions in its place, widened to at least as many parameters, and prints
and draws what they make of it. Both have no norms, whose statistics are only noise to an exact answer.

Run ``python examples/sequence.py`` where involution is installed with its extra ``demo``; it takes about a
minute. The exit status is 1 if the involution leaves more than a hundredth of the signal's power as error.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from baseline import parameters, smallest_not_below
from common import COLOURS, fit
from torch import Tensor, nn

from involution import Involution1d

LENGTH, KERNEL = 256, 13
LARGEST = 4.0  # samples of time error
SHARE = 0.01  # of the signal's power that may be left as error


class Recording(NamedTuple):
    """What is known, ``(B, 2, LENGTH)``: the recording and its time error; and the signal, ``(B, 1, LENGTH)``."""

    known: Tensor
    signal: Tensor
    shift: Tensor  # (B, LENGTH): the answer's place in the recording, from each sample


def record(count: int, generator: torch.Generator) -> Recording:
    """Recordings of random signals of power one, band-limited to 0.12 cycles a sample."""

    def uniform(low: float, high: float, terms: int) -> Tensor:
        return low + (high - low) * torch.rand(count, terms, 1, generator=generator, dtype=torch.float64)

    frequency, phase = uniform(0.01, 0.12, 8), uniform(0, 1, 8)
    slow, slow_phase, share = uniform(0.002, 0.006, 2), uniform(0, 1, 2), uniform(0.3, 1, 2)

    def signal(t: Tensor) -> Tensor:
        return (2 * math.pi * (frequency * t[:, None] + phase)).sin().sum(1) / 2

    def error(t: Tensor) -> Tensor:
        waves = share * (2 * math.pi * (slow * t[:, None] + slow_phase)).sin()
        return LARGEST * waves.sum(1) / share.sum(1)

    t = torch.arange(LENGTH, dtype=torch.float64).expand(count, -1)
    known = torch.stack([signal(t - error(t)), error(t) / LARGEST], 1)
    shift = error(t)
    for _ in range(30):  # e = d(t + e), a contraction as d changes by less than a sample a sample
        shift = error(t + shift)
    return Recording(known.float(), signal(t)[:, None].float(), shift)


def network(kind: str, channels: int) -> nn.Sequential:
    """Two blocks; ``kind`` says what looks at the neighbourhood in them."""

    def block() -> list[nn.Module]:
        around: nn.Module = nn.Conv1d(channels, channels, KERNEL, padding="same", groups=channels)
        if kind == "involution":
            around = Involution1d(channels, KERNEL, group_channels=8, reduction_ratio=1, norm_layer=None)
        return [around, nn.ReLU(), nn.Conv1d(channels, channels, 1), nn.ReLU()]

    embed = [nn.Conv1d(2, channels, 5, padding=2), nn.ReLU()]
    return nn.Sequential(*embed, *block(), *block(), nn.Conv1d(channels, 1, 1))


def inner(values: Tensor) -> Tensor:
    """Without the ends, where what is needed may lie outside the recording."""
    return values[..., KERNEL:-KERNEL]


def train(model: nn.Module, steps: int, title: str, seed: int = 0) -> None:
    """On fresh recordings all the time, by the mean squared error."""
    generator = torch.Generator().manual_seed(seed)

    def loss_of(model: nn.Module) -> Tensor:
        batch = record(16, generator)
        return (inner(model(batch.known)) - inner(batch.signal)).square().mean()

    fit(model, loss_of, steps, 4e-3, title)


def error_share(answer: Tensor, signal: Tensor) -> float:
    """The error's power by the signal's."""
    return float((inner(answer) - inner(signal)).square().mean() / inner(signal).square().mean())


def response(model: nn.Module, known: Tensor) -> Tensor:
    """How the answer at each place depends on the recording around it: ``(LENGTH, 2*KERNEL - 1)``."""
    known = known[None].clone().requires_grad_()
    answer = model(known)[0, 0]
    # (LENGTH, 1, 2, LENGTH)
    (jacobian,) = torch.autograd.grad(answer, known, torch.eye(LENGTH), is_grads_batched=True)
    rows = torch.nn.functional.pad(jacobian[:, 0, 0], (KERNEL - 1, KERNEL - 1))
    return torch.stack([rows[t, t : t + 2 * KERNEL - 1] for t in range(LENGTH)])


def draw(models: dict[str, nn.Module], test: Recording, path: Path) -> None:
    """One recording: the answers, and what each is made of."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    begin, end = KERNEL, LENGTH - KERNEL
    places = torch.arange(LENGTH)
    figure, axes = plt.subplots(1 + len(models), 1, figsize=(11, 8), sharex=True, layout="constrained")
    axes[0].plot(places, test.known[0, 0], color="#bbbbbb", label="recording")
    axes[0].plot(places, test.signal[0, 0], color="black", linewidth=3, label="signal")
    for (name, model), colour in zip(models.items(), COLOURS, strict=True):
        with torch.no_grad():
            axes[0].plot(places, model(test.known[:1])[0, 0], color=colour, linewidth=1.2, label=name)
    axes[0].margins(y=0.25)
    axes[0].legend(ncols=4, loc="upper right")
    axes[0].set(xlim=(begin, end), title="a recording with a varying time error, and its correction")
    for (name, model), panel in zip(models.items(), axes[1:], strict=True):
        picture = response(model, test.known[0]).T.numpy()
        extent = (-0.5, LENGTH - 0.5, -KERNEL + 0.5, KERNEL - 0.5)
        limit = abs(picture).max()
        panel.imshow(
            picture, aspect="auto", origin="lower", extent=extent, cmap="RdBu_r", vmin=-limit, vmax=limit
        )
        panel.plot(
            places, test.shift[0], color="black", linewidth=1, linestyle="--", label="where the answer is"
        )
        panel.set(
            title=f"{name}: dependence of each answer on the recording around it", ylabel="samples away"
        )
        panel.legend(loc="upper right")
    axes[-1].set_xlabel("sample")
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--steps", type=int, default=500, help="training steps of each network (default: 500)"
    )
    parser.add_argument(
        "--channels", type=int, default=32, help="channels of the network with involution (default: 32)"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("sequence.png"), help="picture to write (default: sequence.png)"
    )
    options = parser.parse_args(arguments)
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "The picture needs matplotlib, which is missing. Install it with: pip install -e '.[demo]'"
        ) from error

    torch.set_num_threads(1)  # the tensors are small
    torch.manual_seed(0)
    ours = network("involution", options.channels)
    baseline = smallest_not_below(parameters(ours), partial(network, "convolution"))
    test = record(64, torch.Generator().manual_seed(1))
    print(
        "What is left as error, as a share of the signal's power, on 64 recordings that no network has seen:"
    )
    print(f"  {'the recording as it is':28} {error_share(test.known[:, :1], test.signal):8.4f}", flush=True)
    shares, models = {}, {"involution": ours, "depthwise convolution": baseline}
    for name, model in models.items():
        began = time.monotonic()
        train(model, options.steps, name)
        with torch.no_grad():
            shares[name] = error_share(model(test.known), test.signal)
        took = f"{time.monotonic() - began:.0f} s"
        print(f"  {name:28} {shares[name]:8.4f}  {parameters(model):6,} parameters, {took}", flush=True)
    draw(models, test, options.output)
    print(f"Picture: {options.output}")
    return 0 if shares["involution"] <= SHARE else 1


if __name__ == "__main__":
    sys.exit(main())
