"""Runs every kind of kernel once on a tiny problem and compares it, loosely, with the float64 reference.

    python tests/instances.py                  on the GPU: what compute-sanitizer watches in `make gpu`
    python tests/instances.py --device cpu     the same problems on the CPU
    python tests/instances.py --list           their names

A sanitizer slows every kernel down, torch's too. So operands are made on the CPU and copied, nothing waits before
the end, and results are compared on the CPU. Each problem is named before it runs, so that the last name of an output
that ends too early says where.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import cases
import fused_cases
import torch
from cases import Case
from fused_cases import FusedCase
from torch import Tensor

from involution import reference

FORMATS = ("contiguous", "channels_last")
MAPS = ((9, 17), (8, 24))  # rows that are no whole number of 16 bytes, and rows that are
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# What each operation reads, and so which tensors' storage formats it meets.
OPERANDS = {"involution": "xw", "involution_transpose": "yw", "local_correlation": "yx"}
# Channels of a group, for the two formats of the second operand. Square kernels of half types may have code of their
# own where a group has a multiple of 16 channels, or exactly 16 in local correlation: one of each two has, one has not.
GROUP_CHANNELS = {
    "involution": ((16, 8), (8, 32)),
    "involution_transpose": ((16, 8), (8, 32)),
    "local_correlation": ((16, 8), (32, 16)),
}

GRADIENTS = "fused_involution_backward"

SPECIAL = (  # input, kernel, stride and dilation
    ((37,), (7,), (1,), (1,)),
    ((3, 5, 9), (3, 3, 3), (1, 1, 1), (1, 1, 1)),
    ((9, 17), (1, 7), (1, 1), (1, 1)),
    ((9, 17), (7, 3), (1, 1), (1, 1)),
    ((9, 33), (3, 7), (1, 1), (1, 2)),
    ((9, 33), (3, 7), (1, 1), (1, 4)),
    ((9, 17), (7, 7), (1, 2), (1, 1)),
    ((9, 17), (7, 7), (2, 1), (1, 1)),
    ((9, 17), (4, 4), (1, 1), (1, 1)),
)


def problem(
    operation: str,
    input: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    dtype: torch.dtype,
    formats: tuple[str, str],
    group_channels: int = 16,
) -> Case:
    """One image of two groups, padded by half the kernel; the formats are those of the two operands."""
    padding = tuple(d * (k // 2) for k, d in zip(kernel, dilation, strict=True))
    layouts = dict(zip((f"{role}_layout" for role in OPERANDS[operation]), formats, strict=True))
    return Case(1, 2, group_channels, input, kernel, stride, padding, dilation, dtype, **layouts)


def instances() -> Iterator[tuple[str, Case]]:
    """Every operation with every problem that it is run on."""
    for operation in OPERANDS:
        axes = (DTYPES, (3, 5, 7), (1, 2), FORMATS, FORMATS)
        for places in itertools.product(*(range(len(axis)) for axis in axes)):
            dtype, width, stride, *formats = (axis[place] for axis, place in zip(axes, places, strict=True))
            sizes = MAPS[sum(places[1:]) % 2], (width, width), (stride, stride), (1, 1)
            channels = GROUP_CHANNELS[operation][sum(places[:4]) % 2][places[4]]
            yield operation, problem(operation, *sizes, dtype, tuple(formats), channels)
        for stride, layout in itertools.product((1, 2), FORMATS):
            sizes = MAPS[0], (9, 9), (stride,) * 2, (1, 1)
            yield operation, problem(operation, *sizes, torch.float32, (layout, layout))
        for sizes in SPECIAL:
            yield operation, problem(operation, *sizes, torch.float32, ("contiguous", "contiguous"))
            yield operation, problem(operation, *sizes, torch.bfloat16, ("channels_last", "channels_last"))
        for dtype, width in ((torch.float16, 4), (torch.float64, 7)):
            sizes = MAPS[0], (width, width), (1, 1), (1, 1)
            yield operation, problem(operation, *sizes, dtype, ("contiguous", "contiguous"))


def fused_instances() -> Iterator[FusedCase]:
    """The fused layer with every kernel that there is: one for each number of steps of 16 reduced channels."""
    for place, (dtype, stride, kernel, reduced) in enumerate(
        itertools.product(DTYPES[1:], (1, 2), (3, 5, 7), (16, 32, 64, 128))
    ):
        sizes = MAPS[place % 2], (kernel, kernel), (stride, stride), (kernel // 2,) * 2, (1, 1)
        case = Case(1, 2, 16, *sizes, dtype, x_layout="channels_last")
        yield FusedCase(case, reduced, features_layout="channels_last")


def fused_backward_instances() -> Iterator[tuple[str, list[bool], FusedCase]]:
    """The gradients of the fused layer: each with every kernel that there is, if the switch for them is on."""
    asked = {
        "input": [True, False, False, False],
        "features": [False, True, False, False],
        "weight": [False, False, True, True],
    }
    for place, (dtype, reduced) in enumerate(itertools.product(DTYPES[1:], (16, 32, 64, 128))):
        sizes = MAPS[place % 2], (7, 7), (1, 1), (3, 3), (1, 1)
        case = FusedCase(Case(1, 2, 16, *sizes, dtype, x_layout="channels_last"), reduced)
        for name, each in asked.items():
            yield name, each, case.with_(features_layout="channels_last")


def describe(operation: str, case: Case) -> str:
    """A problem in one line."""
    names = ("input", "kernel", "stride", "dilation")
    sizes = (f"{name} {'x'.join(map(str, getattr(case, name)))}" for name in names)
    formats = (f"{role} {getattr(case, f'{role}_layout')}" for role in OPERANDS[operation])
    dtype = str(case.dtype).removeprefix("torch.")
    return f"{operation} {dtype}, {', '.join(sizes)}, {case.channels_per_group} channels a group, {', '.join(formats)}"


def operator(operation: str, *arguments: object) -> Tensor:
    """What the dispatcher calls."""
    return getattr(torch.ops.involution, operation)(*arguments)


@dataclass(frozen=True)
class Run:
    """A problem that is ready to run."""

    text: str
    operation: str
    operands: tuple[Tensor | None, ...]
    arguments: tuple
    bound: float  # for the error, as a share of the largest value
    expected: Callable[[], Tensor]

    def on(self, device: str) -> Tensor:
        moved = (None if tensor is None else tensor.to(device) for tensor in self.operands)
        result = operator(self.operation, *moved, *self.arguments)
        return next(one for one in result if one is not None) if isinstance(result, tuple) else result

    def error_of(self, result: Tensor) -> float:
        """The largest error, as a share of the largest value of the float64 reference or of one."""
        expected = self.expected()
        if result.shape != expected.shape or result.dtype != self.operands[0].dtype:  # type: ignore[union-attr]
            return float("inf")
        return ((result.double() - expected).abs().max() / max(1.0, expected.abs().max().item())).item()


def runs() -> list[Run]:
    """Every problem, with random values."""
    chosen = []
    for seed, (operation, case) in enumerate(instances()):
        operands, arguments = case.operands(operation, seed), case.arguments(operation)

        def expected(
            operation: str = operation, operands: tuple = operands, arguments: tuple = arguments
        ) -> Tensor:
            return getattr(reference, operation)(*(tensor.double() for tensor in operands), *arguments)

        bound = cases.CEILING[case.dtype]
        chosen.append(Run(describe(operation, case), operation, operands, arguments, bound, expected))
    for seed, fused in enumerate(fused_instances()):
        tensors, arguments = fused.tensors(seed), fused.arguments

        def expected(tensors: tuple = tensors, arguments: tuple = arguments) -> Tensor:
            return torch.from_numpy(fused_cases.exact(tensors, arguments))

        window = fused.window
        text = (
            f"fused_involution {str(window.dtype).removeprefix('torch.')}, input {'x'.join(map(str, window.input))}, "
            f"kernel {'x'.join(map(str, window.kernel))}, stride {window.stride[0]}, {fused.reduced} reduced channels"
        )
        # Kernels are rounded, too.
        bound = 2 * cases.CEILING[window.dtype]
        chosen.append(Run(text, "fused_involution", tensors, arguments, bound, expected))
    for seed, (name, asked, fused) in enumerate(fused_backward_instances()):
        tensors, arguments = fused.tensors(seed), (*fused.arguments, asked)
        generator = torch.Generator().manual_seed(seed)
        grad = torch.randn(tensors[0].shape, generator=generator).to(tensors[0].dtype)
        operands = (grad.contiguous(memory_format=torch.channels_last), *tensors)

        def expected(operands: tuple = operands, arguments: tuple = arguments) -> Tensor:
            wide = (tensor.double() for tensor in operands)
            return next(one for one in operator(GRADIENTS, *wide, *arguments) if one is not None)

        window = fused.window
        text = (
            f"{GRADIENTS} {str(window.dtype).removeprefix('torch.')}, of the {name}, input "
            f"{'x'.join(map(str, window.input))}, {fused.reduced} reduced channels"
        )
        bound = 2 * cases.CEILING[window.dtype]
        chosen.append(Run(text, GRADIENTS, operands, arguments, bound, expected))
    return chosen


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs them all; returns 1 if one is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--list", action="store_true", help="print the names of the problems and exit")
    options = parser.parse_args(arguments)
    chosen = runs()
    if options.list:
        print(*(run.text for run in chosen), sep="\n")
        return 0
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit(
            "This needs a CUDA device, and torch sees none here; --device cpu runs the problems on the CPU."
        )
    results = []
    for number, run in enumerate(chosen, 1):
        print(f"{number}/{len(chosen)} {run.text}", flush=True)
        results.append(run.on(options.device))
    if options.device == "cuda":
        torch.cuda.synchronize()
    wrong = 0
    for run, result in zip(chosen, results, strict=True):
        error = run.error_of(result.cpu())
        if not error <= run.bound:
            wrong += 1
            print(f"WRONG: {run.text}: the error is {error:.2g}, but at most {run.bound:.2g} is right.")
    verdict = f"{wrong} are wrong" if wrong else "all agree with the float64 reference"
    print(f"Of {len(chosen)} results {verdict}.")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
