"""The problems that are measured, their tensors, and the bytes that an ideal implementation moves."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

OPERATIONS = ("forward", "input_gradient", "weight_gradient")
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
# In which storage format the activations (input, output and its gradient) and the kernel tensor are.
LAYOUTS = {
    "contiguous": (False, False),
    "channels_last": (True, True),
    "activations_last": (True, False),
    "kernels_last": (False, True),
}
# The two in which the tensors differ, and the shape that is measured in them by default.
MIXED_LAYOUTS = [name for name, (activations, kernels) in LAYOUTS.items() if activations != kernels]
MIXED_SHAPE = "rednet-1"


@dataclass(frozen=True)
class Case:
    """One problem: ``(batch, channels, *input_size)``, windows with half the kernel as padding."""

    name: str
    batch: int
    channels: int
    input_size: tuple[int, ...]
    kernel_size: tuple[int, ...]
    strides: int = 1
    group_width: int = 16  # channels that share a kernel

    @property
    def axes(self) -> int:
        return len(self.kernel_size)

    @property
    def groups(self) -> int:
        return self.channels // self.group_width

    @property
    def stride(self) -> tuple[int, ...]:
        return (self.strides,) * self.axes

    @property
    def padding(self) -> tuple[int, ...]:
        return tuple(size // 2 for size in self.kernel_size)

    @property
    def dilation(self) -> tuple[int, ...]:
        return (1,) * self.axes

    @property
    def output_size(self) -> tuple[int, ...]:
        return tuple(
            (size + 2 * (k // 2) - k) // self.strides + 1
            for size, k in zip(self.input_size, self.kernel_size, strict=True)
        )

    @property
    def points(self) -> int:
        """Kernel points, ``|K|``."""
        return math.prod(self.kernel_size)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.batch, self.channels, *self.input_size)

    @property
    def output_shape(self) -> tuple[int, ...]:
        return (self.batch, self.channels, *self.output_size)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return (self.batch, self.groups, *self.kernel_size, *self.output_size)

    @property
    def multiply_adds(self) -> int:
        return math.prod(self.output_shape) * self.points

    def ideal_bytes(self, item_size: int) -> int:
        """Each of the three tensors once: the same for all three operations, which read two and write one.

        With stride 1 this is ``(2*Cg + |K|) * item_size`` for every output position and group.
        """
        shapes = (self.input_shape, self.output_shape, self.weight_shape)
        return item_size * sum(math.prod(shape) for shape in shapes)

    def __str__(self) -> str:
        space = "x".join(map(str, self.input_size))
        kernel = "x".join(map(str, self.kernel_size))
        stride = f" stride {self.strides}" if self.strides != 1 else ""
        return f"{self.name}: batch {self.batch}, {self.channels} channels, {space}, kernel {kernel}{stride}"


def _rednet(name: str, channels: int, side: int, kernel: int = 7, strides: int = 1) -> Case:
    return Case(f"rednet-{name}", 1, channels, (side, side), (kernel, kernel), strides)


# The involutions of RedNet-50 (Li et al., CVPR 2021) for images of 224x224 pixels: the stem, the four stages
# and the first block of stages 2 to 4, which halves the map.
REDNET = (
    _rednet("stem", 32, 112, kernel=3),
    _rednet("1", 64, 56),
    _rednet("2-down", 128, 56, strides=2),
    _rednet("2", 128, 28),
    _rednet("3-down", 256, 28, strides=2),
    _rednet("3", 256, 14),
    _rednet("4-down", 512, 14, strides=2),
    _rednet("4", 512, 7),
)
OTHERS = (
    Case("detection", 2, 256, (200, 336), (7, 7)),
    Case("mask-head", 512, 256, (14, 14), (7, 7)),
    Case("sequence", 8, 512, (4096,), (31,)),
    Case("volume", 2, 64, (16, 56, 56), (3, 7, 7)),
)
# The same for a CPU, with fewer positions, so that the formulas that they are compared with end too; and one so
# small that a call's own cost is what it takes.
OTHERS_ON_CPU = (
    Case("detection", 1, 256, (50, 84), (7, 7)),
    Case("mask-head", 16, 256, (14, 14), (7, 7)),
    Case("sequence", 1, 512, (1024,), (31,)),
    Case("volume", 1, 64, (8, 28, 28), (3, 7, 7)),
    Case("tiny", 1, 16, (6, 6), (3, 3)),
)
BATCHES = (1, 32, 256)


def select(patterns: Sequence[str], batches: Sequence[int], device: str = "cuda") -> list[Case]:
    """The cases of a kind of device whose names match a pattern, RedNet's at each of the batch sizes.

    Raises:
        ValueError: A pattern matches nothing.
    """
    others = OTHERS if device == "cuda" else OTHERS_ON_CPU
    names = [case.name for case in (*REDNET, *others)]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ValueError(f"No shape is called {pattern!r}; there are {', '.join(names)}.")

    def wanted(case: Case) -> bool:
        return any(fnmatch.fnmatchcase(case.name, pattern) for pattern in patterns)

    rednet = [replace(case, batch=batch) for batch in batches for case in REDNET if wanted(case)]
    return rednet + [case for case in others if wanted(case)]


@dataclass(frozen=True)
class Tensors:
    """What the three operations read: ``x`` the input, ``w`` the kernels, ``y`` the output's gradient."""

    x: Tensor
    w: Tensor
    y: Tensor

    def copies(self, count: int) -> Iterator[Tensors]:
        """These tensors, then copies of them in other places and the same storage format."""
        yield self
        for _ in range(count - 1):
            yield Tensors(*(torch.empty_like(t).copy_(t) for t in (self.x, self.w, self.y)))


def _stored(tensor: Tensor, inner: int) -> Tensor:
    """The same values with axes 1 to ``inner - 1`` innermost in memory, in their order."""
    axes = range(tensor.dim())
    order = [0, *axes[inner:], *axes[1:inner]]
    return tensor.permute(order).contiguous().permute([order.index(axis) for axis in axes])


def make_tensors(case: Case, dtype: torch.dtype, layout: str, device: torch.device, seed: int = 0) -> Tensors:
    """Normally distributed values; the kernels are scaled so that every result is of the order of one."""
    activations_last, kernels_last = LAYOUTS[layout]
    generator = torch.Generator(device).manual_seed(seed)

    def normal(shape: tuple[int, ...]) -> Tensor:
        # Half types are drawn as such: on large cases a float32 of the same size might not fit beside them.
        return torch.randn(shape, dtype=dtype, device=device, generator=generator)

    x, y = normal(case.input_shape), normal(case.output_shape)
    w = normal(case.weight_shape).mul_(case.points**-0.5)
    if activations_last:
        x, y = _stored(x, 2), _stored(y, 2)
    if kernels_last:
        w = _stored(w, 2 + case.axes)
    return Tensors(x, w, y)


def smallest(case: Case) -> Case:
    """The same kernel on one position of one channel: a call of it is overhead alone."""
    return replace(case, batch=1, channels=1, group_width=1, input_size=(1,) * case.axes)
