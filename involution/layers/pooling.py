"""Average pooling of blocks, of which the last along each axis may be incomplete."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .._composition import is_known


class BlockAverage(nn.Module):
    """Averages over blocks of a map, so that every size ``In`` has its ``ceil(In / size)``.

    What remains at the end of an axis is averaged alone, as by ``nn.AvgPool2d(size, ceil_mode=True,
    count_include_pad=False)``. It is written without ``ceil_mode``, because Inductor decides by an example's size
    whether there is an incomplete block and compiles that case alone; where sizes are open, torch.compile guards the
    decision and AOTInductor does not. Half types work on the CPU too, for which torch has no ``avg_pool3d``.

    Args:
        size (tuple of int): Size of a block along each axis.
    """

    def __init__(self, size: Sequence[int]) -> None:
        super().__init__()
        self.size = tuple(size)

    def forward(self, input: Tensor) -> Tensor:
        """``(B, C, *In)`` to ``(B, C, *ceil(In / size))``."""
        return _block_average(input, self.size)

    def extra_repr(self) -> str:
        """The argument, for printing."""
        return str(self.size)


# One node to torch.fx, because what it does depends on the tensor that it gets.
@fx.wrap
def _block_average(input: Tensor, size: tuple[int, ...]) -> Tensor:
    blocks = [(length + step - 1) // step for length, step in zip(input.shape[2:], size, strict=True)]
    missing = [
        count * step - length for count, length, step in zip(blocks, input.shape[2:], size, strict=True)
    ]
    # A trace or a compiled program is for other sizes too, which may not be multiples of the block's where the
    # example's are; and a compiler that was asked would compile once more for these.
    recorded = torch.jit.is_tracing() or torch.compiler.is_compiling()
    if not recorded and all(is_known(amount == 0) for amount in missing):
        return _pool(input, size)
    padded = F.pad(input, [amount for count in reversed(missing) for amount in (0, count)])
    factors = []
    for axis, (count, step) in enumerate(zip(blocks, size, strict=True)):
        first = torch.arange(count, device=input.device) * step
        inside = (input.shape[2 + axis] - first).clamp(max=step)
        shape = [-1 if other == axis else 1 for other in range(len(size))]
        factors.append((step / inside).to(input.dtype).view(shape))
    return _pool(padded, size) * math.prod(factors[1:], start=factors[0])


def _pool(input: Tensor, size: tuple[int, ...]) -> Tensor:
    pool: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(size) - 1]
    if len(size) == 3 and input.device.type == "cpu" and input.dtype in (torch.float16, torch.bfloat16):
        return pool(input.float(), size, size).to(input.dtype)
    return pool(input, size, size)
