"""Average pooling that rounds its size up, in a form that AOTInductor compiles rightly for every size.

Inductor decides by the example's size whether a pooling with ``ceil_mode`` has an incomplete window at the end, and
compiles one case; where shapes are open, torch.compile guards that decision and AOTInductor does not. A package made
of an example that the stride divides would read beyond the end of maps that it does not divide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_POOLS: dict[Any, int] = {
    torch.ops.aten.avg_pool1d.default: 1,
    torch.ops.aten.avg_pool2d.default: 2,
    torch.ops.aten.avg_pool3d.default: 3,
}
# Where ceil_mode is among the arguments.
_CEIL_MODE: dict[Any, int] = {
    **dict.fromkeys(_POOLS, 4),
    torch.ops.aten.max_pool1d.default: 5,
    torch.ops.aten.max_pool2d.default: 5,
    torch.ops.aten.max_pool3d.default: 5,
}


def pool_padded(input: Tensor, size: Sequence[int]) -> Tensor:
    """Averages over windows of ``size``, side by side, of which the last may be incomplete, along each axis.

    As ``avg_pool(input, size, size, ceil_mode=True)``: the mean of the complete windows of a map with zeros behind
    it, times ``size / (positions inside the map)``.
    """
    axes = len(size)
    pool: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[axes - 1]
    pads: list[int] = []
    result_scale: list[Tensor] = []
    for axis, step in enumerate(size):
        length = input.shape[2 + axis]
        windows = (length + step - 1) // step
        pads = [0, windows * step - length, *pads]
        inside = (length - torch.arange(windows, device=input.device) * step).clamp(max=step)
        shape = [-1 if other == axis else 1 for other in range(axes)]
        result_scale.append((step / inside).to(input.dtype).view(shape))
    return pool(F.pad(input, pads), tuple(size), tuple(size)) * math.prod(
        result_scale[1:], start=result_scale[0]
    )


def _decomposition(axes: int) -> Any:
    def pool(
        input: Tensor,
        kernel_size: Sequence[int],
        stride: Sequence[int] = (),
        padding: Sequence[int] = (0,),
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Any:
        sizes = tuple(kernel_size) * (axes // len(kernel_size))
        steps = tuple(stride or kernel_size)
        steps *= axes // len(steps)
        batched = input.dim() == axes + 2
        if not ceil_mode or not batched or sizes != steps or any(padding) or divisor_override is not None:
            return NotImplemented
        return pool_padded(input, sizes)

    return pool


def without_ceil_mode(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program with every average pooling that has ``ceil_mode`` written as one that has not.

    Raises:
        NotImplementedError: a pooling with ``ceil_mode`` remains: one of maxima, or one whose windows overlap or
            begin before the map.
    """
    if not _with_ceil_mode(program):
        return program
    rewritten = program.run_decompositions({pool: _decomposition(axes) for pool, axes in _POOLS.items()})
    remaining = _with_ceil_mode(rewritten)
    if remaining:
        raise NotImplementedError(
            f"AOTInductor compiles pooling with ceil_mode for some sizes only, and the model has {remaining[0]} so. "
            "Pad the map and pool without ceil_mode instead."
        )
    return rewritten


def _with_ceil_mode(program: torch.export.ExportedProgram) -> list[str]:
    found = []
    for node in program.graph.nodes:
        place = _CEIL_MODE.get(node.target)
        if place is not None and (node.args[place : place + 1] == (True,) or node.kwargs.get("ceil_mode")):
            found.append(str(node.target))
    return found
