"""The operators of involution as standard ONNX operators (opset 18 and later).

There is a function for each operator, as ``torch.onnx.export(custom_translation_table=...)`` takes them: it gets the
values of the graph, and what it calls is added to the graph.

Each operator is a loop over kernel points. A trip takes one shifted copy of the map and one point's kernels,
multiplies them, and adds the product to the result (or, for local correlation, sums it over the channels of a group).
So it needs the memory of a few maps, whatever the kernel's size. The same sum written out point after point is a graph
of four nodes for each point, and ONNX Runtime computes all products before the first sum: as much memory as the
unfolded map, and no less time.

Sizes are those of the tensors at run time. ``padding`` counts zeros in front (negative: positions left out), and a
window may reach beyond the map on either side. float16 and bfloat16 are summed in float32.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import onnx_ir as ir
from onnxscript import graph, opset18, script
from onnxscript.onnx_types import TensorType
from onnxscript.values import Opset

op: Any = opset18  # which types each tensor by its elements

# A tensor of the graph, with a shape and a dtype; the exporter reads annotations, a checker of types could not.
if TYPE_CHECKING:
    Value = Any
else:
    Value = TensorType
Size = Sequence[int]

# ---- the loops ----
#
# They become functions of the model, of a domain of their own, which the exporter's optimiser puts in the place of
# their calls.
_LOOPS = Opset("involution", 1)


@script(_LOOPS)
def sum_of_products(
    map: Value, starts: Value, span: Value, axes: Value, stride: Value, kernels: Value, total: Value
) -> Value:
    """``total + sum over k of kernels[:, :, :, k] * map[..., starts[k] : starts[k] + span : stride]``."""
    for point in range(op.Squeeze(op.Shape(starts, start=0, end=1))):
        start = op.Gather(starts, point, axis=0)
        shifted = op.Slice(map, start, start + span, axes, stride)
        # Cast one point at a time: the kernels are the largest tensor of all.
        total = total + shifted * op.CastLike(op.Gather(kernels, point, axis=3), map)
    return total


@script(_LOOPS)
def stack_of_scores(
    map: Value, starts: Value, span: Value, axes: Value, stride: Value, query: Value, like: Value
) -> Value:
    """``(K, B, G, *Out)``: the sums over ``c`` of ``query * map[..., starts[k] : starts[k] + span : stride]``."""
    channel_axis = op.Constant(value_ints=[2])

    @graph()
    def score(start: Value) -> Value:
        shifted = op.Slice(map, start, op.Add(start, span), axes, stride)
        return op.CastLike(op.ReduceSum(op.Mul(query, shifted), channel_axis, keepdims=0), like)

    return op.Scan(starts, body=score, num_scan_inputs=1)


@script(_LOOPS)
def sum_of_spread_products(
    map: Value,
    kernels: Value,
    offsets: Value,
    reach: Value,
    spread_axes: Value,
    zeros: Value,
    spread: Value,
    none: Value,
    total: Value,
) -> Value:
    """``total`` and at each ``o * stride + offsets[k]`` the sums of ``kernels[:, :, :, k] * map`` at ``o``."""
    for point in range(op.Squeeze(op.Shape(offsets, start=0, end=1))):
        product = map * op.CastLike(op.Gather(kernels, point, axis=3), map)
        apart = op.Reshape(op.Pad(op.Unsqueeze(product, spread_axes), zeros), spread, allowzero=1)
        front = op.Gather(offsets, point, axis=0)
        total = total + op.Pad(apart, op.Concat(none, front, none, reach - front, axis=0))
    return total


# ---- the operators ----


def involution(input: Value, weight: Value, stride: Size, padding: Size, dilation: Size) -> Value:
    """``y = dT/dy(x, w)`` of ``(B, C, *In)`` and ``(B, G, *K, *Out)``."""
    window = _window("involution", weight.shape[2 : 2 + len(stride)], stride, padding, dilation)
    groups, out = op.Shape(weight, start=1, end=2), op.Shape(weight, start=2 + len(stride))
    slices = _slices_by_point(input, groups, out, window)
    zeros = _zeros(slices[0], _grouped(input, groups), out)
    total = sum_of_products(*slices, _kernels_by_point(weight, out, window), zeros)
    return op.CastLike(_view(total, op.Shape(input, start=0, end=2), out), input)


def local_correlation(
    query: Value, key: Value, kernel_size: Size, groups: int, stride: Size, padding: Size, dilation: Size
) -> Value:
    """``w = dT/dw(y, x)`` of ``(B, C, *Out)`` and ``(B, C, *In)``."""
    window = _window("local_correlation", kernel_size, stride, padding, dilation)
    out = op.Shape(query, start=2)
    group_count = _ints([groups])
    slices = _slices_by_point(key, group_count, out, window)
    grouped = op.CastLike(_view(query, _grouped(query, group_count), out), slices[0])
    by_point = stack_of_scores(*slices, grouped, query)
    by_group = op.Transpose(by_point, perm=[1, 2, 0, *range(3, 3 + len(stride))])
    sizes = op.Concat(op.Shape(query, start=0, end=1), group_count, _ints(kernel_size), out, axis=0)
    return op.Reshape(by_group, sizes, allowzero=1)


def involution_transpose(
    input: Value,
    weight: Value,
    output_size: Sequence[int],
    stride: Size,
    padding: Size,
    dilation: Size,
) -> Value:
    """``x = dT/dx(y, w)`` of ``(B, C, *Out)`` and ``(B, G, *K, *Out)``, of the sizes ``In``."""
    window = _window("involution_transpose", weight.shape[2 : 2 + len(stride)], stride, padding, dilation)
    axes = len(stride)
    groups, space = op.Shape(weight, start=1, end=2), op.Shape(input, start=2)
    map = _wide(_view(input, _grouped(input, groups), space), input)
    # The frame of all windows, and from it the part that is asked for, with zeros where that goes beyond.
    apart = op.Mul(space, list(stride))
    frame = op.Add(apart, window.reach)
    # An axis behind each of the space, on which zeros follow the position.
    behind = list(range(4, 4 + 2 * axes, 2))
    total = sum_of_spread_products(
        map,
        _kernels_by_point(weight, space, window),
        _table(window.offsets),
        window.reach,
        behind,
        [0] * (3 + 2 * axes) + [0, 0, 0] + [amount for step in stride for amount in (0, step - 1)],
        op.Concat(_grouped(input, groups), apart, axis=0),
        [0, 0, 0],
        _zeros(map, _grouped(input, groups), frame),
    )
    merged = op.CastLike(_view(total, op.Shape(input, start=0, end=2), frame), input)
    stop = op.Add(_sizes(output_size), window.front)  # padding in front of x is what the frame begins with
    lacking = op.Sub(stop, op.Add(frame, window.left_out))
    padded = _pad(merged, window.left_out, lacking)
    return op.Slice(padded, window.front, stop, list(range(2, 2 + axes)))


# ---- what they share ----


class _Window(NamedTuple):
    """A sliding window, one integer for each axis; ``padding`` counts zeros in front."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    @property
    def reach(self) -> list[int]:
        """From a window's first position to its last, along each axis."""
        return [(size - 1) * step for size, step in zip(self.kernel_size, self.dilation, strict=True)]

    @property
    def offsets(self) -> list[list[int]]:
        """Where each kernel point lies, from its window's first position; points in row-major order."""
        points = itertools.product(*(range(size) for size in self.kernel_size))
        return [[k * step for k, step in zip(point, self.dilation, strict=True)] for point in points]

    @property
    def front(self) -> list[int]:
        """The zeros in front."""
        return [max(0, amount) for amount in self.padding]

    @property
    def left_out(self) -> list[int]:
        """The positions left out in front."""
        return [max(0, -amount) for amount in self.padding]


def _window(operator: str, kernel_size: Size, stride: Size, padding: Size, dilation: Size) -> _Window:
    """The window, of which nothing may depend on the sizes of tensors."""
    window = _Window(tuple(kernel_size), tuple(stride), tuple(padding), tuple(dilation))
    for name, values in window._asdict().items():
        if not all(isinstance(value, int) for value in values):
            raise TypeError(
                f"The {name} of {operator} is {values}, which depends on the sizes of tensors. The export to ONNX "
                "needs integers that do not; only the sizes of maps can be left open."
            )
    return window


def _slices_by_point(
    map: Value, groups: Value, out: Value, window: _Window
) -> tuple[Value, Value, Value, Value, Value]:
    """A padded map ``(B, G, C / G, *Padded)`` and what takes each point's shifted copy of it.

    Returns:
        The map; where each point's copy starts, how far it reaches, its axes and its steps.
    """
    span = op.Add(op.Mul(op.Sub(out, [1]), list(window.stride)), [1])
    # Zeros up to where the last window ends. If the map goes on behind it, no copy takes anything from there.
    last = [reach + skipped for reach, skipped in zip(window.reach, window.left_out, strict=True)]
    end = op.Add(span, last)
    behind = op.Sub(op.Sub(end, op.Shape(map, start=2)), window.front)
    padded = _pad(map, window.front, behind)
    grouped = _wide(_view(padded, _grouped(map, groups), op.Shape(padded, start=2)), map)
    starts = [[o + skip for o, skip in zip(row, window.left_out, strict=True)] for row in window.offsets]
    axes = list(range(3, 3 + len(window.stride)))
    return grouped, _table(starts), span, axes, list(window.stride)


def _kernels_by_point(weight: Value, space: Value, window: _Window) -> Value:
    """``(B, G, *K, *space)`` as ``(B, G, 1, prod(K), *space)``, of which a point's are ``(B, G, 1, *space)``."""
    return _view(weight, op.Shape(weight, start=0, end=2), _ints([1, math.prod(window.kernel_size)]), space)


def _grouped(map: Value, groups: Value) -> Value:
    """The sizes ``B, G, C / G`` of a map ``(B, C, *space)``."""
    width = op.Div(op.Shape(map, start=1, end=2), groups)
    return op.Concat(op.Shape(map, start=0, end=1), groups, width, axis=0)


def _zeros(like: Value, leading: Value, space: Value) -> Value:
    """Zeros of these sizes, in the type of another tensor."""
    return op.CastLike(op.ConstantOfShape(op.Concat(leading, space, axis=0)), like)


def _view(tensor: Value, *sizes: Value) -> Value:
    """The tensor in a shape of these sizes; a zero among them is a zero."""
    return op.Reshape(tensor, op.Concat(*sizes, axis=0), allowzero=1)


def _pad(map: Value, front: Size, behind: Value) -> Value:
    """Zeros in front of and behind the space of ``(B, C, *space)``; none where ``behind`` is negative."""
    return op.Pad(map, op.Concat(_ints([0, 0, *front, 0, 0]), op.Max(behind, _ints([0])), axis=0))


def _wide(tensor: Value, like: Value) -> Value:
    """In float32 where ``like`` is of a half type."""
    half = like.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    return op.Cast(tensor, to=ir.DataType.FLOAT) if half else tensor


def _ints(values: Size) -> Value:
    """A 1-d constant."""
    return op.Constant(value_ints=list(values))


def _table(rows: Sequence[Size]) -> Value:
    """A 2-d constant."""
    return op.Constant(value=ir.tensor(rows, ir.DataType.INT64))


def _sizes(sizes: Sequence[Value | int]) -> Value:
    """Sizes, of which some are known and others are of the graph, as one tensor."""
    return op.Concat(
        *(op.Reshape(size, [1]) if isinstance(size, ir.Value) else _ints([size]) for size in sizes), axis=0
    )
