// Where a block of the march works (march.h), and which rows its steps meet.
#pragma once

#include "../problem.h"
#include "march.h"
#include "scalar.cuh"

namespace involution {

using Bytes = const unsigned char*;

// Where a block works: the grid is packs * strips, chunks * slices, images.
struct Place {
  int pack;
  int strip;
  int chunk;
  int slice;
  int batch;
};

__device__ __forceinline__ Place place_of(const March& m) {
  Place at;
  at.pack = blockIdx.x, at.strip = 0, at.chunk = blockIdx.y, at.slice = 0, at.batch = blockIdx.z;
  if (m.strips > 1) {
    at.strip = at.pack / m.packs;
    at.pack -= at.strip * m.packs;
  }
  if (m.slices > 1) {
    at.slice = at.chunk / m.chunks;
    at.chunk -= at.slice * m.chunks;
  }
  return at;
}

// Of numbers below a million that are not negative, in a third of the instructions of a division.
__device__ __forceinline__ int small_quotient(int value, int divisor) {
  return static_cast<int>(
      approximate_quotient(static_cast<float>(value) + 0.5f, static_cast<float>(divisor)));
}

// A position in a ring of rows, in bytes, and the one a row further on.
__device__ __forceinline__ int next_in_ring(int at, int row, int ring) {
  at += row;
  return at == ring ? 0 : at;
}

__device__ __forceinline__ int floor_div(int value, int divisor) {
  if (divisor == 1) return value;
  if (divisor == 2) return value >> 1;
  const int quotient = value / divisor;
  return quotient * divisor > value ? quotient - 1 : quotient;
}
__device__ __forceinline__ int ceil_div(int value, int divisor) { return -floor_div(-value, divisor); }

__device__ __forceinline__ int smaller(int a, int b) { return a < b ? a : b; }

// The rows of a chunk, `step_rows` rows of y a step. In the transposed operation a row o of y finishes the
// rows o*stride - padding + i of x, i < stride, the last of whose kernel rows it is.
struct Steps {
  int count;
  int source_row;  // the first
  int second_row;
  int result_row;
  int result_begin;  // rows of the result that the block owns
  int result_end;
};

template <bool kTransposed>
__device__ __forceinline__ Steps steps_of(const March& m, const Place& at) {
  const int height = kTransposed ? m.input[1] : m.output[1];
  const int stride = m.stride[1], padding = m.padding[1];
  Steps s;
  s.result_begin = at.chunk * m.chunk_rows;
  s.result_end = s.result_begin + m.chunk_rows < height ? s.result_begin + m.chunk_rows : height;
  if constexpr (kTransposed) {
    const int reaching = -floor_div(m.kernel[1] - 1 - padding - s.result_begin, stride);
    const int finishing = floor_div(s.result_begin + padding, stride);
    int first = reaching > 0 ? reaching : 0;
    if (first > finishing) first = finishing;
    if (m.second.whole) first = 0;
    s.count = floor_div(floor_div(s.result_end - 1 + padding, stride) - first + m.step_rows, m.step_rows);
    s.source_row = s.second_row = first;
    s.result_row = first * stride - padding;
  } else {
    s.count = floor_div(s.result_end - s.result_begin + m.step_rows - 1, m.step_rows);
    s.source_row = s.result_begin * stride - padding;
    s.second_row = s.result_row = s.result_begin;
  }
  return s;
}

// The slice of the source that slice `kd` of the kernel meets; -1 where there is none.
template <bool kTransposed>
__device__ __forceinline__ int source_slice(const March& m, int result_slice, int kd) {
  const int reach = kd * m.depth_dilation - m.padding[0];
  int slice;
  if constexpr (kTransposed) {
    const int reached = result_slice - reach;
    slice = reached / m.stride[0];
    if (reached < 0 || slice * m.stride[0] != reached) return -1;
  } else {
    slice = result_slice * m.stride[0] + reach;
  }
  return slice >= 0 && slice < (kTransposed ? m.output[0] : m.input[0]) ? slice : -1;
}

}  // namespace involution
