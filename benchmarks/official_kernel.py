"""The published CUDA kernels of involution, written anew from their design, as CuPy compiles them.

One thread computes one element of the result from global memory. The source is compiled anew for each shape, and
every size in it is a literal, so that the compiler turns the divisions of an index into multiplications and unrolls
the loops over the kernel. It serves contiguous maps of two dimensions in float32 and float64, with 32-bit indices.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

THREADS = 1024  # of a block
TYPES = {torch.float32: "float", torch.float64: "double"}


@dataclass(frozen=True)
class Problem:
    """The sizes that the source has as literals; pairs are (height, width)."""

    batch: int
    channels: int
    groups: int
    input_size: tuple[int, int]
    output_size: tuple[int, int]
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def result_shape(self, operation: str) -> tuple[int, ...]:
        """The shape of what an operation computes."""
        if operation == "weight_gradient":
            return (self.batch, self.groups, *self.kernel_size, *self.output_size)
        frame = self.output_size if operation == "forward" else self.input_size
        return (self.batch, self.channels, *frame)

    @property
    def largest(self) -> int:
        """Elements of the largest of the three tensors."""
        return max(
            math.prod(self.result_shape(name)) for name in ("forward", "input_gradient", "weight_gradient")
        )


SOURCE = """
// The window of output (oy, ox) has its kernel point (ky, kx) at this row and column of the input.
#define ROW(oy, ky) ((oy) * STRIDE_Y - PADDING_Y + (ky) * DILATION_Y)
#define COLUMN(ox, kx) ((ox) * STRIDE_X - PADDING_X + (kx) * DILATION_X)

#define INPUT(n, c, iy, ix) ((((n) * CHANNELS + (c)) * HEIGHT + (iy)) * WIDTH + (ix))
#define OUTPUT(n, c, oy, ox) ((((n) * CHANNELS + (c)) * OUT_HEIGHT + (oy)) * OUT_WIDTH + (ox))
#define WEIGHT(n, g, ky, kx, oy, ox) \\
  ((((((n) * GROUPS + (g)) * KERNEL_Y + (ky)) * KERNEL_X + (kx)) * OUT_HEIGHT + (oy)) * OUT_WIDTH + (ox))

extern "C" __global__ void __launch_bounds__(THREADS) forward(const Value* x, const Value* w, Value* y) {
  const int index = blockIdx.x * THREADS + threadIdx.x;
  if (index >= BATCH * CHANNELS * OUT_HEIGHT * OUT_WIDTH) return;
  const int ox = index % OUT_WIDTH;
  const int oy = index / OUT_WIDTH % OUT_HEIGHT;
  const int c = index / (OUT_WIDTH * OUT_HEIGHT) % CHANNELS;
  const int n = index / (OUT_WIDTH * OUT_HEIGHT * CHANNELS);
  const int g = c / (CHANNELS / GROUPS);
  Value sum = 0;
#pragma unroll
  for (int ky = 0; ky < KERNEL_Y; ++ky) {
#pragma unroll
    for (int kx = 0; kx < KERNEL_X; ++kx) {
      const int iy = ROW(oy, ky);
      const int ix = COLUMN(ox, kx);
      if (iy < 0 || iy >= HEIGHT || ix < 0 || ix >= WIDTH) continue;
      sum += w[WEIGHT(n, g, ky, kx, oy, ox)] * x[INPUT(n, c, iy, ix)];
    }
  }
  y[index] = sum;
}

extern "C" __global__ void __launch_bounds__(THREADS) input_gradient(const Value* y, const Value* w, Value* x) {
  const int index = blockIdx.x * THREADS + threadIdx.x;
  if (index >= BATCH * CHANNELS * HEIGHT * WIDTH) return;
  const int ix = index % WIDTH;
  const int iy = index / WIDTH % HEIGHT;
  const int c = index / (WIDTH * HEIGHT) % CHANNELS;
  const int n = index / (WIDTH * HEIGHT * CHANNELS);
  const int g = c / (CHANNELS / GROUPS);
  Value sum = 0;
#pragma unroll
  for (int ky = 0; ky < KERNEL_Y; ++ky) {
#pragma unroll
    for (int kx = 0; kx < KERNEL_X; ++kx) {
      // The output whose kernel point (ky, kx) lies here, if it is one of those that the strides leave.
      const int scaled_y = iy - ROW(0, ky);
      const int scaled_x = ix - COLUMN(0, kx);
      if (scaled_y < 0 || scaled_x < 0 || scaled_y % STRIDE_Y != 0 || scaled_x % STRIDE_X != 0) continue;
      const int oy = scaled_y / STRIDE_Y;
      const int ox = scaled_x / STRIDE_X;
      if (oy >= OUT_HEIGHT || ox >= OUT_WIDTH) continue;
      sum += w[WEIGHT(n, g, ky, kx, oy, ox)] * y[OUTPUT(n, c, oy, ox)];
    }
  }
  x[index] = sum;
}

extern "C" __global__ void __launch_bounds__(THREADS) weight_gradient(const Value* y, const Value* x, Value* w) {
  const int index = blockIdx.x * THREADS + threadIdx.x;
  if (index >= BATCH * GROUPS * KERNEL_Y * KERNEL_X * OUT_HEIGHT * OUT_WIDTH) return;
  const int ox = index % OUT_WIDTH;
  const int oy = index / OUT_WIDTH % OUT_HEIGHT;
  const int kx = index / (OUT_WIDTH * OUT_HEIGHT) % KERNEL_X;
  const int ky = index / (OUT_WIDTH * OUT_HEIGHT * KERNEL_X) % KERNEL_Y;
  const int g = index / (OUT_WIDTH * OUT_HEIGHT * KERNEL_X * KERNEL_Y) % GROUPS;
  const int n = index / (OUT_WIDTH * OUT_HEIGHT * KERNEL_X * KERNEL_Y * GROUPS);
  const int iy = ROW(oy, ky);
  const int ix = COLUMN(ox, kx);
  Value sum = 0;
  if (iy >= 0 && iy < HEIGHT && ix >= 0 && ix < WIDTH) {
#pragma unroll
    for (int c = g * (CHANNELS / GROUPS); c < (g + 1) * (CHANNELS / GROUPS); ++c) {
      sum += y[OUTPUT(n, c, oy, ox)] * x[INPUT(n, c, iy, ix)];
    }
  }
  w[index] = sum;
}
"""


def source(problem: Problem, dtype: torch.dtype) -> str:
    """The three kernels ``forward``, ``input_gradient`` and ``weight_gradient`` for one problem."""
    literals = {"THREADS": THREADS, "BATCH": problem.batch, "CHANNELS": problem.channels}
    literals.update(GROUPS=problem.groups, HEIGHT=problem.input_size[0], WIDTH=problem.input_size[1])
    literals.update(OUT_HEIGHT=problem.output_size[0], OUT_WIDTH=problem.output_size[1])
    for name in ("kernel_size", "stride", "padding", "dilation"):
        height, width = getattr(problem, name)
        short = name.removesuffix("_size").upper()
        literals.update({f"{short}_Y": height, f"{short}_X": width})
    lines = [f"#define {name} {value}" for name, value in literals.items()]
    return "\n".join([*lines, f"typedef {TYPES[dtype]} Value;", SOURCE])


def why_not(problem: Problem, dtype: torch.dtype) -> str | None:
    """Why these kernels cannot take a problem here, or None."""
    if dtype not in TYPES:
        return f"the published kernels have float32 and float64, not {str(dtype).removeprefix('torch.')}"
    if problem.largest > 2**31 - THREADS:
        return f"their indices have 32 bits, too few for a tensor of {problem.largest:,} elements"
    if importlib.util.find_spec("cupy") is None:
        return "it needs CuPy, which is not installed"
    return None


@functools.cache
def _kernel(operation: str, problem: Problem, dtype: torch.dtype) -> Any:
    import cupy

    return cupy.RawModule(code=source(problem, dtype)).get_function(operation)


def run(operation: str, problem: Problem, a: Tensor, b: Tensor) -> Tensor:
    """An operation on contiguous CUDA tensors: ``(x, w)``, ``(y, w)`` or ``(y, x)``, on torch's current stream."""
    import cupy

    result = a.new_empty(problem.result_shape(operation))
    blocks = -(-result.numel() // THREADS)
    with cupy.cuda.ExternalStream(torch.cuda.current_stream(a.device).cuda_stream):
        _kernel(operation, problem, a.dtype)(
            (blocks,), (THREADS,), (a.data_ptr(), b.data_ptr(), result.data_ptr())
        )
    return result
