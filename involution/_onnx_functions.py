"""The three operations as functions of standard ONNX operators (opset 18 and later).

Each is a Loop over kernel points. A trip takes one shifted copy of the map and one point's kernels, multiplies
them, and adds the product to the result (or, for local correlation, sums it over the channels of a group), so it
needs the memory of a few maps, whatever the kernel's size. The same sum written out point after point is a graph
of four nodes for each point, and ONNX Runtime computes all products before the first sum: as much memory as the
unfolded map, and no less time.

Frames are independent, as in the dispatcher operators: sizes are those of the tensors at run time, ``padding``
counts zeros in front (negative: positions left out), and a window may reach beyond the map on either side.
float16 and bfloat16 are summed in float32.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import onnx
from onnx import TensorProto, helper

DOMAIN = "involution"  # of the functions, which are inlined before anyone sees the model


class Window(NamedTuple):
    """A sliding window, one integer per axis; ``padding`` counts zeros in front."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    @property
    def axes(self) -> int:
        """How many spatial axes there are."""
        return len(self.kernel_size)

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


class _Nodes:
    """Nodes in the order in which they are asked for: ``op.Add(a, b)`` adds one and gives its output's name."""

    def __init__(self, prefix: str = "") -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.prefix = prefix

    def __getattr__(self, operator: str) -> Callable[..., str]:
        def add(*inputs: str, **attributes: Any) -> str:
            output = f"{self.prefix}{operator.lower()}_{len(self.nodes)}"
            self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
            return output

        return add

    def ints(self, values: Sequence[int]) -> str:
        """A 1-d constant."""
        return self.Constant(value_ints=list(values))

    def table(self, rows: Sequence[Sequence[int]]) -> str:
        """A 2-d constant."""
        values = [value for row in rows for value in row]
        shape = [len(rows), len(rows[0])]
        return self.Constant(value=helper.make_tensor("", TensorProto.INT64, shape, values))

    def join(self, *sizes: str) -> str:
        """1-d tensors of sizes, one behind the other."""
        return self.Concat(*sizes, axis=0)

    def cast(self, tensor: str, dtype: int, to: int) -> str:
        """The tensor in another type, or itself where that is its own."""
        return tensor if dtype == to else self.Cast(tensor, to=to)

    def view(self, tensor: str, *sizes: str) -> str:
        """The tensor in a shape of these sizes; a zero among them is a zero."""
        return self.Reshape(tensor, self.join(*sizes), allowzero=1)

    def pad(self, tensor: str, leading: int, front: str, behind: str) -> str:
        """Zeros in front of and behind the axes that follow the leading ones."""
        none = self.ints([0] * leading)
        return self.Pad(tensor, self.join(none, front, none, behind))

    def sum_over(self, trips: int, body: Callable[[_Nodes, str], str], shape: str, dtype: int) -> str:
        """The sum of what ``body(op, trip)`` gives, of the given shape."""
        zero = self.ConstantOfShape(shape, value=helper.make_tensor("", dtype, [1], [0]))
        op = _Nodes("trip_")
        total = op.Add("total", body(op, "trip"))
        return self._loop(trips, op, total, dtype, zero)

    def stack_over(self, trips: int, body: Callable[[_Nodes, str], str], dtype: int) -> str:
        """What ``body(op, trip)`` gives, one behind the other along a new first axis."""
        op = _Nodes("trip_")
        return self._loop(trips, op, body(op, "trip"), dtype)

    def _loop(self, trips: int, op: _Nodes, result: str, dtype: int, *states: str) -> str:
        inputs = [
            helper.make_tensor_value_info("trip", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            *(helper.make_tensor_value_info("total", dtype, None) for _ in states),
        ]
        outputs = [
            helper.make_tensor_value_info(op.Identity("go"), TensorProto.BOOL, []),
            helper.make_tensor_value_info(result, dtype, None),
        ]
        always = self.Constant(value=helper.make_tensor("", TensorProto.BOOL, [], [True]))
        body = helper.make_graph(op.nodes, "trip", inputs, outputs)
        return self.Loop(self.Constant(value_int=trips), always, *states, body=body)


class _Activation:
    """The sizes of a ``(B, C, *space)`` tensor whose channels are divided into groups."""

    def __init__(self, op: _Nodes, tensor: str, groups: str) -> None:
        self.batch = op.Shape(tensor, start=0, end=1)
        self.channels = op.Shape(tensor, start=1, end=2)
        self.space = op.Shape(tensor, start=2)
        self.leading = op.join(self.batch, groups, op.Div(self.channels, groups))

    def grouped(self, op: _Nodes, tensor: str, space: str) -> str:
        """``(B, C, *space)`` as ``(B, G, C / G, *space)``."""
        return op.view(tensor, self.leading, space)

    def merged(self, op: _Nodes, tensor: str, space: str) -> str:
        """``(B, G, C / G, *space)`` as ``(B, C, *space)``."""
        return op.view(tensor, self.batch, self.channels, space)


def _shifted_by_point(
    op: _Nodes, x: str, sizes: _Activation, frame: str, window: Window
) -> Callable[[_Nodes, str], str]:
    """What gives the shifted copy ``(B, G, C / G, *frame)`` of the map ``x`` that a kernel point meets."""
    one, stride = op.ints([1]), op.ints(window.stride)
    span = op.Add(op.Mul(op.Sub(frame, one), stride), one)  # how far the positions of one point reach
    # Zeros up to where the last window ends. If the map goes on behind it, no copy takes anything from there.
    front = op.ints(window.front)
    last = [reach + skipped for reach, skipped in zip(window.reach, window.left_out, strict=True)]
    end = op.Add(span, op.ints(last))
    behind = op.Max(op.Sub(end, op.Add(front, sizes.space)), op.ints([0]))
    padded = op.pad(x, 2, front, behind)
    grouped = sizes.grouped(op, padded, op.Shape(padded, start=2))
    starts = op.table(
        [[o + skip for o, skip in zip(row, window.left_out, strict=True)] for row in window.offsets]
    )
    axes = op.ints(range(3, 3 + window.axes))

    def shifted(op: _Nodes, point: str) -> str:
        start = op.Gather(starts, point, axis=0)
        return op.Slice(grouped, start, op.Add(start, span), axes, stride)

    return shifted


def _kernel_by_point(
    op: _Nodes, sizes: _Activation, groups: str, frame: str, window: Window, dtype: int, wide: int
) -> Callable[[_Nodes, str], str]:
    """What gives a kernel point's values of ``w`` everywhere, ``(B, G, 1, *frame)``."""
    by_point = op.view("w", sizes.batch, groups, op.ints([1, len(window.offsets)]), frame)
    # Cast one point at a time: w is the largest tensor of all.
    return lambda op, point: op.cast(op.Gather(by_point, point, axis=3), dtype, wide)


def involution(window: Window, dtype: int, opset: int) -> onnx.FunctionProto:
    """``y = dT/dy(x, w)`` as a function of ``(B, C, *In)`` and ``(B, G, *K, *Out)``."""
    op, wide = _Nodes(), _summed_in(dtype)
    groups = op.Shape("w", start=1, end=2)
    frame = op.Shape("w", start=2 + window.axes)
    sizes = _Activation(op, "x", groups)
    shifted = _shifted_by_point(op, op.cast("x", dtype, wide), sizes, frame, window)
    kernel = _kernel_by_point(op, sizes, groups, frame, window, dtype, wide)

    def product(op: _Nodes, point: str) -> str:
        return op.Mul(shifted(op, point), kernel(op, point))

    total = op.sum_over(len(window.offsets), product, op.join(sizes.leading, frame), wide)
    result = sizes.merged(op, op.cast(total, wide, dtype), frame)
    return _function("involution", ["x", "w"], op, result, opset)


def local_correlation(window: Window, dtype: int, opset: int, groups: int) -> onnx.FunctionProto:
    """``w = dT/dw(y, x)`` as a function of ``(B, C, *Out)`` and ``(B, C, *In)``."""
    op, wide = _Nodes(), _summed_in(dtype)
    group_count = op.ints([groups])
    frame = op.Shape("y", start=2)
    sizes = _Activation(op, "x", group_count)
    shifted = _shifted_by_point(op, op.cast("x", dtype, wide), sizes, frame, window)
    query = sizes.grouped(op, op.cast("y", dtype, wide), frame)
    channel_axis = op.ints([2])

    def score(op: _Nodes, point: str) -> str:
        product = op.Mul(query, shifted(op, point))
        return op.cast(op.ReduceSum(product, channel_axis, keepdims=0), wide, dtype)

    by_point = op.stack_over(len(window.offsets), score, dtype)
    by_group = op.Transpose(by_point, perm=[1, 2, 0, *range(3, 3 + window.axes)])
    result = op.view(by_group, sizes.batch, group_count, op.ints(window.kernel_size), frame)
    return _function("local_correlation", ["y", "x"], op, result, opset)


def involution_transpose(window: Window, dtype: int, opset: int) -> onnx.FunctionProto:
    """``x = dT/dx(y, w)`` as a function of ``(B, C, *Out)``, ``(B, G, *K, *Out)`` and the result's sizes ``In``."""
    op, wide = _Nodes(), _summed_in(dtype)
    groups = op.Shape("w", start=1, end=2)
    sizes = _Activation(op, "y", groups)
    y = sizes.grouped(op, op.cast("y", dtype, wide), sizes.space)
    kernel = _kernel_by_point(op, sizes, groups, sizes.space, window, dtype, wide)
    spread_out = _zeros_between(op, sizes, window)
    fronts, reach = op.table(window.offsets), op.ints(window.reach)

    def spread(op: _Nodes, point: str) -> str:
        product = spread_out(op, op.Mul(y, kernel(op, point)))
        front = op.Gather(fronts, point, axis=0)
        return op.pad(product, 3, front, op.Sub(reach, front))

    # The frame of all windows, and from it the part that is asked for, with zeros where it goes beyond.
    extent = op.Add(op.Mul(sizes.space, op.ints(window.stride)), reach)
    total = op.sum_over(len(window.offsets), spread, op.join(sizes.leading, extent), wide)
    merged = sizes.merged(op, op.cast(total, wide, dtype), extent)
    start = op.ints(window.front)  # padding in front of x is what the windows' frame begins with
    stop = op.Add(start, "size")
    lacking = op.Sub(stop, op.Add(op.ints(window.left_out), extent))
    padded = op.pad(merged, 2, op.ints(window.left_out), op.Max(lacking, op.ints([0])))
    result = op.Slice(padded, start, stop, op.ints(range(2, 2 + window.axes)))
    return _function("involution_transpose", ["y", "w", "size"], op, result, opset)


def _zeros_between(op: _Nodes, sizes: _Activation, window: Window) -> Callable[[_Nodes, str], str]:
    """What puts ``stride - 1`` zeros behind every position of a ``(B, G, C / G, *space)`` tensor."""
    if all(step == 1 for step in window.stride):
        return lambda op, tensor: tensor
    behind_each = op.ints(range(4, 4 + 2 * window.axes, 2))
    none = op.ints([0] * (2 * window.axes))
    zeros = op.ints([amount for step in window.stride for amount in (0, step - 1)])
    strided = op.Mul(sizes.space, op.ints(window.stride))

    def spread_out(op: _Nodes, tensor: str) -> str:
        apart = op.pad(op.Unsqueeze(tensor, behind_each), 3, none, zeros)
        return op.view(apart, sizes.leading, strided)

    return spread_out


def _summed_in(dtype: int) -> int:
    return TensorProto.FLOAT if dtype in (TensorProto.FLOAT16, TensorProto.BFLOAT16) else dtype


def _function(name: str, inputs: list[str], op: _Nodes, result: str, opset: int) -> onnx.FunctionProto:
    return helper.make_function(DOMAIN, name, inputs, [result], op.nodes, [helper.make_opsetid("", opset)])
