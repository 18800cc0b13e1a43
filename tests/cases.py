"""Problems to test with: random geometries of every kind, tensors in every layout, and how close is right."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import oracle
import torch
from torch import Tensor

OPERATIONS = ("involution", "involution_transpose", "local_correlation")
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
LAYOUTS = ("contiguous", "channels_last", "contiguous", "channels_last", "sliced", "expanded", "misaligned")

# Of random problems, a run that repeats the tests on another backend takes one in so many.
ONE_IN = int(os.environ.get("INVOLUTION_TESTS_ONE_IN", "1"))

# The error that is right nowhere, whatever plain PyTorch makes of it: a share of the largest magnitude.
CEILING = {torch.float64: 1e-13, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}


@dataclass(frozen=True)
class Case:
    """Sizes of a problem in the field's names; `output` follows unless a test sets the frames by itself."""

    batch: int
    groups: int
    channels_per_group: int
    input: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    dtype: torch.dtype = torch.float64
    x_layout: str = "contiguous"
    w_layout: str = "contiguous"
    y_layout: str = "contiguous"

    @property
    def axes(self) -> int:
        return len(self.input)

    @property
    def channels(self) -> int:
        return self.groups * self.channels_per_group

    @property
    def output(self) -> tuple[int, ...]:
        return tuple(
            (i + 2 * p - d * (k - 1) - 1) // s + 1
            for i, k, s, p, d in zip(
                self.input, self.kernel, self.stride, self.padding, self.dilation, strict=True
            )
        )

    @property
    def window(self) -> dict[str, tuple[int, ...]]:
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}

    def with_(self, **changes: object) -> Case:
        return replace(self, **changes)

    def tensors(self, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """x, w and y with random values in the case's dtype and layouts."""
        generator = torch.Generator().manual_seed(seed)
        shapes = (
            ((self.batch, self.channels, *self.input), self.x_layout, 2),
            ((self.batch, self.groups, *self.kernel, *self.output), self.w_layout, 2 + self.axes),
            ((self.batch, self.channels, *self.output), self.y_layout, 2),
        )
        return tuple(  # type: ignore[return-value]
            laid_out(
                torch.randn(shape, generator=generator, dtype=torch.float64).to(self.dtype), layout, leading
            )
            for shape, layout, leading in shapes
        )

    def operands(self, operation: str, seed: int = 0) -> tuple[Tensor, Tensor]:
        """The two tensors that the operation takes, in its order."""
        x, w, y = self.tensors(seed)
        return {"involution": (x, w), "involution_transpose": (y, w), "local_correlation": (y, x)}[operation]

    def arguments(self, operation: str) -> tuple:
        """The dispatcher operator's arguments after the two tensors."""
        window = (self.stride, self.padding, self.dilation)
        return {
            "involution": window,
            "involution_transpose": (self.input, *window),
            "local_correlation": (self.kernel, self.groups, *window),
        }[operation]


def laid_out(tensor: Tensor, layout: str, leading: int) -> Tensor:
    """The same values stored otherwise; `leading` axes (batch, channels or batch, group, kernel) come first."""
    axes = list(range(tensor.dim()))
    if layout == "contiguous":
        return tensor.contiguous()
    if layout == "channels_last":
        order = [0, *axes[leading:], *axes[1:leading]]
        stored = tensor.permute(order).contiguous()
        return stored.permute([order.index(axis) for axis in axes])
    if layout == "sliced":  # out of a larger tensor, at an odd offset, with a step along the last axis
        larger = tensor.new_full(
            (*(size + 1 for size in tensor.shape[:-1]), 2 * tensor.shape[-1] + 3), float("nan")
        )
        view = larger[(*(slice(1, None) for _ in axes[:-1]), slice(3, None, 2))]
        return view.copy_(tensor)
    if layout == "expanded":  # as the gradient of a sum is: one value, no memory
        return tensor[(slice(0, 1),) * tensor.dim()].expand(tensor.shape)
    if layout == "misaligned":  # contiguous, but the first element is not on a 16-byte boundary
        storage = tensor.new_empty(tensor.numel() + 1)
        return storage[1:].view(tensor.shape).copy_(tensor)
    raise ValueError(f"unknown layout {layout!r}")


def random_layouts(rng: random.Random, case: Case) -> Case:
    """Any layouts, but one tensor of a single value at most: sums of equal terms all round the same way."""
    chosen = [rng.choice(LAYOUTS) for _ in range(3)]
    for index in range(1, 3):
        if chosen[index] == "expanded" and "expanded" in chosen[:index]:
            chosen[index] = "contiguous"
    return case.with_(x_layout=chosen[0], w_layout=chosen[1], y_layout=chosen[2])


def random_case(rng: random.Random, axes: int, *, largest: int = 0, dtypes: Sequence = DTYPES) -> Case:
    """A geometry that is as likely odd as even, prime, 1, or a kernel larger than the map."""
    largest = largest or {1: 40, 2: 11, 3: 5}[axes]
    most = {1: 9, 2: 5, 3: 3}[axes]
    while True:
        case = Case(
            batch=rng.choice((1, 1, 2, 3)),
            groups=rng.choice((1, 2, 3)),
            channels_per_group=rng.choice((1, 2, 3, 5)),
            input=tuple(rng.randint(1, largest) for _ in range(axes)),
            kernel=tuple(rng.randint(1, most) for _ in range(axes)),
            stride=tuple(rng.choice((1, 1, 2, 3)) for _ in range(axes)),
            padding=tuple(rng.randint(0, 4) for _ in range(axes)),
            dilation=tuple(rng.choice((1, 1, 2, 3)) for _ in range(axes)),
            dtype=rng.choice(dtypes),
        )
        if min(case.output) >= 1:
            return random_layouts(rng, case)


def exact(
    operation: str, first: Tensor, second: Tensor, arguments: tuple, dtype: type = np.longdouble
) -> np.ndarray:
    """The oracle's answer to what a dispatcher operator is asked, as float64.

    It sums in the longest type there is: otherwise float64 results would be measured against the oracle's own
    rounding, which a fused multiply-add rightly does not share.
    """
    a, b = (tensor.detach().cpu().double().numpy().astype(dtype) for tensor in (first, second))
    with np.errstate(invalid="ignore"):  # infinities meet zeros in some tests
        return getattr(oracle, operation)(a, b, *arguments).astype(np.float64)


def plain(operation: str, first: Tensor, second: Tensor, arguments: tuple) -> Tensor:
    """The plain PyTorch formula in the tensors' own dtype: unfold by indexing, multiply, sum."""
    return _plain(operation, first.detach().cpu(), second.detach().cpu(), arguments)


def _plain(operation: str, first: Tensor, second: Tensor, arguments: tuple) -> Tensor:
    stride, padding, dilation = arguments[-3:]
    axes = len(stride)
    if operation == "local_correlation":
        x, frame, kernel, groups = second, first.shape[2:], arguments[0], arguments[1]
    elif operation == "involution":
        x, frame, kernel, groups = (
            first,
            second.shape[2 + axes :],
            second.shape[2 : 2 + axes],
            second.shape[1],
        )
    else:  # the transpose is the gradient of the plain involution, whose input does not matter
        x = first.new_zeros((*first.shape[:2], *arguments[0]), requires_grad=True)
        out = _plain("involution", x, second, arguments[-3:])
        return torch.autograd.grad(out, x, first)[0]

    windows = x
    for axis in range(axes):
        size = x.shape[2 + axis]
        positions = (
            torch.arange(frame[axis])[None] * stride[axis]
            - padding[axis]
            + torch.arange(kernel[axis])[:, None] * dilation[axis]
        )
        inside = (positions >= 0) & (positions < size)
        taken = windows.movedim(2 + 2 * axis, -1)[..., positions.clamp(0, max(0, size - 1))]
        taken = torch.where(inside, taken, taken.new_zeros(()))
        windows = taken.movedim((-2, -1), (2 + 2 * axis, 3 + 2 * axis))
    # (B, C, k0, o0, k1, o1, ...) to (B, G, C/G, *K, *Out)
    order = [0, 1, *range(2, 2 + 2 * axes, 2), *range(3, 3 + 2 * axes, 2)]
    windows = windows.permute(order).unflatten(1, (groups, x.shape[1] // groups))
    if operation == "local_correlation":
        grouped = first.unflatten(1, (groups, first.shape[1] // groups))
        return (grouped[(slice(None),) * 3 + (None,) * axes] * windows).sum(2)
    return (windows * second.unsqueeze(2)).sum(tuple(range(3, 3 + axes))).flatten(1, 2)


def assert_right(result: Tensor, operation: str, first: Tensor, second: Tensor, arguments: tuple) -> None:
    """At most twice the error of plain PyTorch in the same dtype, one unit of rounding, and under a ceiling."""
    expected = exact(operation, first, second, arguments)
    assert tuple(result.shape) == expected.shape
    assert result.dtype == first.dtype
    if expected.size == 0:
        return
    scale = np.abs(expected).max()
    error = np.abs(result.detach().cpu().double().numpy() - expected).max()
    plain_error = np.abs(
        plain(operation, first, second, arguments).detach().double().numpy() - expected
    ).max()
    if first.dtype == torch.float64:  # the loops of the oracle are a plain formula too, in another order
        loops = exact(operation, first, second, arguments, np.float64)
        plain_error = max(plain_error, np.abs(loops - expected).max())
    bound = 2 * plain_error + torch.finfo(first.dtype).eps * scale
    assert error <= bound, (
        f"{operation}: error {error:.3g} exceeds {bound:.3g}, plain PyTorch's is {plain_error:.3g}"
    )
    assert error <= CEILING[first.dtype] * max(scale, 1.0), f"{operation}: error {error:.3g} of {scale:.3g}"
