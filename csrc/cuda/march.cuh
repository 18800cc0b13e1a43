// The march: where a block works, and how its warps bring rows and take results away (march.h).
#pragma once

#include "../involution.h"
#include "march.h"
#include "scalar.cuh"

namespace involution {

using Bytes = const unsigned char*;

// Where a block works.
struct Place {
  int pack;
  int strip;
  int chunk;
  int slice;
  int batch;
};

__device__ __forceinline__ Place place_of(const March& m) {
  Place at;
  unsigned block = blockIdx.x;
  at.pack = block % m.packs, block /= m.packs;
  at.strip = block % m.strips, block /= m.strips;
  at.chunk = block % m.chunks, block /= m.chunks;
  at.slice = block % m.slices;
  at.batch = block / m.slices;
  return at;
}

// A position in a ring of rows, in bytes, and the one a row further on.
__device__ __forceinline__ int next_in_ring(int at, int row, int ring) {
  at += row;
  return at == ring ? 0 : at;
}

__device__ __forceinline__ int floor_div(int value, int divisor) {
  const int quotient = value / divisor;
  return quotient * divisor > value ? quotient - 1 : quotient;
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
    const int reaching = -floor_div(m.kernel[1] - 1 - padding - s.result_begin, stride);
    const int finishing = floor_div(s.result_begin + padding, stride);
    int first = reaching > 0 ? reaching : 0;
    if (first > finishing) first = finishing;
    if (m.second.whole) first = 0;
    s.count = (floor_div(s.result_end - 1 + padding, stride) - first + m.step_rows) / m.step_rows;
    s.source_row = s.second_row = first;
    s.result_row = first * stride - padding;
  } else {
    s.count = (s.result_end - s.result_begin + m.step_rows - 1) / m.step_rows;
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

// A thread's share of each row of a stream: the same piece of every step-th segment.
struct Share {
  int segment;  // the first
  int step;     // segments
  int offset;   // in a row in shared memory, of the first
  int shared_step;
  int begin;       // segments from here
  unsigned count;  // as many, exist
  int column;      // of the piece, where columns are pieces; else one that always exists
  int piece;
  int first_kernel_row;  // that the piece has a part of, where that is asked for
  int last_kernel_row;
  int from;  // in a row in global memory, in which plans have no more than 2 GiB
  int from_step;

  __device__ __forceinline__ Share(const Stream& s, int strip, int width, int thread, int threads) {
    step = threads / s.pieces;
    segment = thread / s.pieces;
    piece = thread - segment * s.pieces;
    if (segment >= step) segment = s.segments;  // nothing to do
    offset = segment * s.segment_pitch + piece * s.piece_pitch;
    shared_step = step * s.segment_pitch;
    const int first_column = s.column_origin + strip * s.column_step;
    const int segment_stride = static_cast<int>(s.segment_stride);
    from = segment * segment_stride + piece * s.piece_stride;
    from_step = step * segment_stride;
    begin = column = 0;
    count = s.segments;
    first_kernel_row = 0;
    last_kernel_row = 0x7fffffff;
    if (s.whole) return;
    if (s.piece_columns == 0) {
      from += first_column * segment_stride;
      begin = -first_column;
      count = width;
    } else {
      from += first_column * (s.piece_stride / s.piece_columns);
      column = first_column + piece * s.piece_columns;
    }
  }
};

template <int kBytes>
__device__ __forceinline__ void bring_pieces(Spot to, Bytes from, int shared_step, int from_step, int segment,
                                             int step, int segments, int begin, unsigned count) {
#pragma unroll 4
  for (; segment < segments; segment += step) {
    // Of a segment that begins at an odd multiple of 8 the piece begins in front of it.
    const auto address = reinterpret_cast<uintptr_t>(from) & ~static_cast<uintptr_t>(kBytes - 1);
    copy_async<kBytes>(to, reinterpret_cast<Bytes>(address), static_cast<unsigned>(segment - begin) < count);
    to += shared_step;
    from += from_step;
  }
}

// Elements of two bytes have no asynchronous copy: several are loaded before the first is stored.
template <>
__device__ __forceinline__ void bring_pieces<2>(Spot to, Bytes from, int shared_step, int from_step,
                                                int segment, int step, int segments, int begin,
                                                unsigned count) {
  constexpr int kAtOnce = 8;
  while (segment < segments) {
    uint16_t values[kAtOnce];
    int left = segment;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const bool read = segment < segments && static_cast<unsigned>(segment - begin) < count;
      values[i] = read ? *reinterpret_cast<const uint16_t*>(from) : uint16_t{0};
      segment += step;
      from += from_step;
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i, left += step) {
      if (left < segments) store_shared(to, values[i]);
      to += shared_step;
    }
  }
}

// One row of a thread's share; zeros where a segment does not exist. Not inlined: a kernel brings rows in
// several places, and a block's first pass over its code waits for it.
__device__ INVOLUTION_OUT_OF_LINE void bring(int piece_bytes, Spot to, Bytes from, int shared_step,
                                             int from_step, int segment, int step, int segments, int begin,
                                             unsigned count) {
  switch (piece_bytes) {
    case 16:
      return bring_pieces<16>(to, from, shared_step, from_step, segment, step, segments, begin, count);
    case 8:
      return bring_pieces<8>(to, from, shared_step, from_step, segment, step, segments, begin, count);
    case 4:
      return bring_pieces<4>(to, from, shared_step, from_step, segment, step, segments, begin, count);
    default:
      return bring_pieces<2>(to, from, shared_step, from_step, segment, step, segments, begin, count);
  }
}

template <typename Word>
__device__ __forceinline__ void take_pieces(Spot from, unsigned char* to, int shared_step, int to_step,
                                            int segment, int step, int segments, int begin, unsigned count) {
#pragma unroll 4
  for (; segment < segments; segment += step) {
    if (static_cast<unsigned>(segment - begin) < count)
      *reinterpret_cast<Word*>(to) = load_shared<Word>(from);
    from += shared_step;
    to += to_step;
  }
}

// One row of a thread's share from shared memory to the result.
__device__ INVOLUTION_OUT_OF_LINE void take(int piece_bytes, Spot from, unsigned char* to, int shared_step,
                                            int to_step, int segment, int step, int segments, int begin,
                                            unsigned count) {
  switch (piece_bytes) {
    case 16:
      return take_pieces<uint4>(from, to, shared_step, to_step, segment, step, segments, begin, count);
    case 8:
      return take_pieces<uint2>(from, to, shared_step, to_step, segment, step, segments, begin, count);
    case 4:
      return take_pieces<uint32_t>(from, to, shared_step, to_step, segment, step, segments, begin, count);
    default:
      return take_pieces<uint16_t>(from, to, shared_step, to_step, segment, step, segments, begin, count);
  }
}

__device__ __forceinline__ void wait_for_copies_but(int pending) {
  switch (pending) {
    case 0:
      return wait_for_copies<0>();
    case 1:
      return wait_for_copies<1>();
    case 2:
      return wait_for_copies<2>();
    default:
      return wait_for_copies<3>();
  }
}

// Whether the columns of a thread's pieces lie in a row, or in the rows that are one from `row` on.
__device__ __forceinline__ bool has_column(const Stream& s, const Share& share, int row, int height,
                                           int width) {
  const int rows = s.merged_rows < height - row ? s.merged_rows : height - row;
  return share.column >= 0 && share.column < rows * width;
}

__device__ __forceinline__ int64_t block_offset(const Stream& s, const Place& at) {
  return at.batch * s.batch_stride + at.pack / s.packs_of_stride * s.pack_stride;
}

// Of the transposed operation's first and last rows of kernel values a chunk needs some rows of the kernel
// alone: those that reach its own rows of x. The others stay away, a third of the traffic of short chunks.
class WantedKernelRows {
 public:
  __device__ __forceinline__ explicit WantedKernelRows(const Steps& steps) : steps_(steps) {}

  // The segments of `share` in rows `o` to `o + rows - 1`, from `begin` on.
  __device__ __forceinline__ unsigned segments(const March& m, const Share& share, int o, int rows,
                                               int& begin) const {
    const Stream& s = m.second;
    if (s.whole) return share.count;
    const int stride = m.stride[1], last_row = m.kernel[1] - 1;
    const int from = steps_.result_begin + m.padding[1] - (o + rows - 1) * stride;
    const int to = steps_.result_end + m.padding[1] - 1 - o * stride;
    const int first = from > 0 ? from : 0, last = to < last_row ? to : last_row;
    if (first > last) return 0;
    if (s.piece_columns == 0) {
      return share.first_kernel_row <= last && share.last_kernel_row >= first ? share.count : 0;
    }
    if (s.segments != m.kernel[1] * m.kernel[2]) return share.count;  // several groups
    begin = first * m.kernel[2];
    return (last - first + 1) * m.kernel[2];
  }

 private:
  const Steps& steps_;
};

// The rows of the kernel that a piece of one position's kernel values holds points of.
__device__ __forceinline__ void find_kernel_rows(const March& m, Share& share) {
  const Stream& s = m.second;
  if (s.piece_columns != 0) return;
  const WeightPitch& pitch = m.weight_pitch;
  int first = share.piece * s.piece_bytes - s.phased * 8;
  const int last = share.piece * s.piece_bytes + s.piece_bytes - 1;
  if (first < 0) first = 0;
  if (first / pitch.group != last / pitch.group) return;  // of two groups: any row
  share.first_kernel_row = first % pitch.group / pitch.kernel_row;
  share.last_kernel_row = last % pitch.group / pitch.kernel_row;
}

// How far behind the beginning of its slot in shared memory a position's kernel values begin, in row `row`;
// `first` is slot_phase of column and block.
template <bool kTransposed>
__device__ __forceinline__ unsigned slot_phase(const March& m, const Place& at, int column) {
  const Stream& s = m.second;
  const int slice = kTransposed ? source_slice<true>(m, at.slice, 0) : at.slice;
  return static_cast<unsigned>(block_offset(s, at) + slice * s.depth_stride + column * s.segment_stride);
}
__device__ __forceinline__ int phase_in_row(const Stream& s, unsigned first, int row) {
  return (first + row * static_cast<unsigned>(s.row_stride)) & (s.phased * 8u);
}

// The rows of an operand, brought one after another.
//
// A row has a slice for each slice of the kernel, from that depth of the tensor which the result's slice
// meets there; or, where the stream has but one, the result's own depth.
template <bool kTransposed>
class Rows {
 public:
  // `frame`: of the tensor's positions.
  __device__ __forceinline__ Rows(const March& m, const Stream& stream, const Place& at, bool follows_kernel,
                                  const int (&frame)[3], int first_row, Bytes tensor)
      : m_(m),
        stream_(stream),
        at_(at),
        frame_(frame),
        tensor_(tensor + block_offset(stream, at)),
        row_(first_row),
        slice_(follows_kernel ? source_slice<kTransposed>(m, at.slice, 0) : at.slice) {}

  __device__ __forceinline__ void next(const Share& share, const WantedKernelRows* wanted) {
    const bool inside =
        row_ >= 0 && row_ < frame_[1] && has_column(stream_, share, row_, frame_[1], frame_[2]);
    int begin = share.begin;
    unsigned count = inside ? share.count : 0;
    if (wanted != nullptr && inside) {
      count = wanted->segments(m_, share, row_, stream_.merged_rows, begin);
    }
    const Bytes row = tensor_ + row_ * stream_.row_stride + share.from;
    const Spot to = shared_memory() + stream_.base + in_ring_ + share.offset;
#pragma unroll 1
    for (int kd = 0; kd < stream_.slices; ++kd) {
      const int slice = kd == 0 ? slice_ : source_slice<kTransposed>(m_, at_.slice, kd);
      bring(stream_.piece_bytes, to + kd * stream_.slice_pitch,
            row + slice * stream_.depth_stride + kd * stream_.kernel_slice_stride, share.shared_step,
            share.from_step, share.segment, share.step, stream_.segments, begin, slice >= 0 ? count : 0);
    }
    row_ += stream_.merged_rows;
    in_ring_ = next_in_ring(in_ring_, stream_.row_pitch, stream_.rows * stream_.row_pitch);
  }

  __device__ __forceinline__ void next(const Share& share, int count,
                                       const WantedKernelRows* wanted = nullptr) {
#pragma unroll 1
    for (; count > 0; --count) next(share, wanted);
  }

 private:
  const March& m_;
  const Stream& stream_;
  const Place& at_;
  const int (&frame_)[3];
  const Bytes tensor_;
  int row_;
  int in_ring_ = 0;
  const int slice_;
};

// Both operands of a block.
template <Operation kOperation>
struct Operands {
  static constexpr bool kTransposed = kOperation == Operation::kTranspose;

  __device__ __forceinline__ Operands(const March& m, const Place& at, const Steps& steps,
                                      Bytes source_tensor, Bytes second_tensor)
      : source(m, m.source, at, true, kTransposed ? m.output : m.input, steps.source_row, source_tensor),
        second(m, m.second, at, kTransposed, m.output, steps.second_row, second_tensor),
        wanted(steps) {}

  __device__ __forceinline__ void bring_step(const March& m, const Share& source_share,
                                             const Share& second_share, int source_rows) {
    source.next(source_share, source_rows);
    second.next(second_share, m.second.next, kTransposed ? &wanted : nullptr);
    commit_copies();
  }

  Rows<kTransposed> source;
  Rows<kTransposed> second;
  const WantedKernelRows wanted;
};

// What the first step needs, brought by all threads of a block: else the few warps that copy would take
// longer for it than for anything else on a small map.
template <Operation kOperation>
__device__ __forceinline__ void bring_first_step(const March& m, const Place& at,
                                                 Operands<kOperation>& operands) {
  const int threads = (m.consumers + m.producers) * 32;
  const Share source_share(m.source, at.strip, (kOperation == Operation::kTranspose ? m.output : m.input)[2],
                           threadIdx.x, threads);
  Share second_share(m.second, at.strip, m.output[2], threadIdx.x, threads);
  if constexpr (kOperation == Operation::kTranspose) find_kernel_rows(m, second_share);
  operands.bring_step(m, source_share, second_share, m.source.first);
}

// What the warps do that copy: in each step they bring what is needed `stages - 1` steps later, and store
// what was computed in the step before.
template <Operation kOperation>
__device__ __forceinline__ void produce(const March& m, const Place& at, const Steps& steps,
                                        Operands<kOperation>& operands, unsigned char* result) {
  const int thread = threadIdx.x - m.consumers * 32, threads = m.producers * 32;
  const Share source_share(m.source, at.strip, (kOperation == Operation::kTranspose ? m.output : m.input)[2],
                           thread, threads);
  Share second_share(m.second, at.strip, m.output[2], thread, threads);
  if constexpr (kOperation == Operation::kTranspose) find_kernel_rows(m, second_share);
  const int height = kOperation == Operation::kTranspose ? m.input[1] : m.output[1];
  const int width = kOperation == Operation::kTranspose ? m.input[2] : m.output[2];
  const Share result_share(m.result, at.strip, width, thread, threads);
  result += block_offset(m.result, at) + at.slice * m.result.depth_stride;
  int result_row = steps.result_row;
  const auto take_step = [&](int step) {
    Spot from = shared_memory() + m.result.base + (step & 1) * m.result.next * m.result.row_pitch;
#pragma unroll 1
    for (int i = 0; i < m.result.next; ++i) {
      if (result_row >= steps.result_begin && result_row < steps.result_end &&
          has_column(m.result, result_share, result_row, height, width)) {
        take(m.result.piece_bytes, from + result_share.offset,
             result + result_row * m.result.row_stride + result_share.from, result_share.shared_step,
             result_share.from_step, result_share.segment, result_share.step, m.result.segments,
             result_share.begin, result_share.count);
      }
      result_row += m.result.merged_rows;
      from += m.result.row_pitch;
    }
  };

#pragma unroll 1
  for (int r = 1; r < steps.count + m.stages - 1; ++r) {
    const int step = r - (m.stages - 1);
    if (step >= 0) {
      wait_for_copies_but(m.stages - 2);
      meet();
    }
    if (r < steps.count) {
      operands.bring_step(m, source_share, second_share, m.source.next);
    } else {
      commit_copies();
    }
    if (step > 0) take_step(step - 1);
    // The parts of a sum meet.
    if (kOperation == Operation::kInvolution && step >= 0 && m.parts > 1) meet();
  }
  meet();
  take_step(steps.count - 1);
}

}  // namespace involution
