// Where a block of the march works (march.h), and which rows its steps meet.
#pragma once

#include <type_traits>

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
  at.strip = quotient(blockIdx.x, m.by_packs);
  at.pack = static_cast<int>(blockIdx.x) - at.strip * m.packs;
  at.slice = quotient(blockIdx.y, m.by_chunks);
  at.chunk = static_cast<int>(blockIdx.y) - at.slice * m.chunks;
  at.batch = blockIdx.z;
  return at;
}

// A position in a ring of rows, in bytes, and the one a row further on.
__device__ __forceinline__ int next_in_ring(int at, int row, int ring) {
  at += row;
  return at == ring ? 0 : at;
}

// A row divided by the stride, rounded down or up. `row` is no less than -kernel[1].
__device__ __forceinline__ int divided_row(const March& m, int row) {
  return quotient(row + m.row_bias, m.by_row_stride) - m.row_bias_quotient;
}
__device__ __forceinline__ int divided_row_up(const March& m, int row) {
  return divided_row(m, row + m.stride[1] - 1);
}

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
    const int reaching = divided_row_up(m, s.result_begin + padding - (m.kernel[1] - 1));
    const int finishing = divided_row(m, s.result_begin + padding);
    int first = reaching > 0 ? reaching : 0;
    if (first > finishing) first = finishing;
    if (m.second.whole) first = 0;
    s.count = quotient(divided_row(m, s.result_end - 1 + padding) - first + m.step_rows, m.by_step_rows);
    s.source_row = s.second_row = first;
    s.result_row = first * stride - padding;
  } else {
    s.count = quotient(s.result_end - s.result_begin + m.step_rows - 1, m.by_step_rows);
    s.source_row = s.result_begin * stride - padding;
    s.second_row = s.result_row = s.result_begin;
  }
  return s;
}

// The slice of the source that slice `kd` of the kernel meets; -1 where there is none.
template <bool kTransposed>
__device__ __forceinline__ int source_slice(const March& m, int result_slice, int kd) {
  if (m.flat) return 0;
  const int reach = kd * m.depth_dilation - m.padding[0];
  int slice;
  if constexpr (kTransposed) {
    const int reached = result_slice - reach;
    if (reached < 0) return -1;
    slice = quotient(reached, m.by_depth_stride);
    if (slice * m.stride[0] != reached) return -1;
  } else {
    slice = result_slice * m.stride[0] + reach;
  }
  return slice >= 0 && slice < (kTransposed ? m.output[0] : m.input[0]) ? slice : -1;
}

// Calls `walk`, in which are the loops of a kernel, with whether a position's values of a kernel row, of type
// T, lie side by side, as a type: each is compiled for itself.
template <typename T, typename Walk>
__device__ __forceinline__ void walk_values(const March& m, const Walk& walk) {
  if (m.weight_pitch.point == sizeof(T)) {
    walk(std::true_type{});
  } else {
    walk(std::false_type{});
  }
}

// The same for kernels that have one slice (kFlat); of those with several the values may lie in either way.
template <bool kIsFlat, bool kIsTogether>
struct Form {
  static constexpr bool kFlat = kIsFlat;
  static constexpr bool kTogether = kIsTogether;
};
template <typename T, typename Walk>
__device__ __forceinline__ void walk_form(const March& m, const Walk& walk) {
  if (m.kernel[0] > 1) {
    walk(Form<false, false>{});
  } else {
    walk_values<T>(m, [&](auto together) { walk(Form<true, decltype(together)::value>{}); });
  }
}

}  // namespace involution
