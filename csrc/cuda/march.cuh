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

// The rows of a chunk. A step of the transposed operation is one row o of y: it finishes the rows
// o*stride - padding + i of x, i < stride, the last of whose kernel rows it is.
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
    s.count = floor_div(s.result_end - 1 + padding, stride) - first + 1;
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
  int64_t from;    // in a row in global memory
  int64_t from_step;

  __device__ __forceinline__ Share(const Stream& s, int strip, int width, int thread, int threads) {
    step = threads / s.pieces;
    segment = thread / s.pieces;
    const int piece = thread - segment * s.pieces;
    if (segment >= step) segment = s.segments;  // nothing to do
    offset = segment * s.segment_pitch + piece * s.piece_pitch;
    shared_step = step * s.segment_pitch;
    const int first_column = s.column_origin + strip * s.column_step;
    from = segment * s.segment_stride + static_cast<int64_t>(piece) * s.piece_stride;
    from_step = step * s.segment_stride;
    if (s.piece_columns == 0) {
      from += first_column * s.segment_stride;
      begin = -first_column;
      count = width;
    } else {
      const int column = first_column + piece * s.piece_columns;
      from += static_cast<int64_t>(first_column) * (s.piece_stride / s.piece_columns);
      begin = 0;
      count = column >= 0 && column < width ? s.segments : 0;
    }
  }

  __device__ __forceinline__ bool exists(int at) const { return static_cast<unsigned>(at - begin) < count; }
};

template <int kBytes>
__device__ __forceinline__ void bring_pieces(const Share& share, int segments, Spot row, Bytes from,
                                             bool inside) {
  Spot to = row + share.offset;
  from += share.from;
#pragma unroll 4
  for (int segment = share.segment; segment < segments; segment += share.step) {
    copy_async<kBytes>(to, from, inside && share.exists(segment));
    to += share.shared_step;
    from += share.from_step;
  }
}

// Elements of two bytes have no asynchronous copy: several are loaded before the first is stored.
template <>
__device__ __forceinline__ void bring_pieces<2>(const Share& share, int segments, Spot row, Bytes from,
                                                bool inside) {
  constexpr int kAtOnce = 8;
  Spot to = row + share.offset;
  from += share.from;
  for (int segment = share.segment; segment < segments;) {
    uint16_t values[kAtOnce];
    const int first = segment;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const bool read = inside && segment < segments && share.exists(segment);
      values[i] = read ? *reinterpret_cast<const uint16_t*>(from) : uint16_t{0};
      segment += share.step;
      from += share.from_step;
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (first + i * share.step < segments) store_shared(to, values[i]);
      to += share.shared_step;
    }
  }
}

__device__ __forceinline__ void bring(const Stream& s, const Share& share, Spot row, Bytes from,
                                      bool inside) {
  switch (s.piece_bytes) {
    case 16:
      return bring_pieces<16>(share, s.segments, row, from, inside);
    case 8:
      return bring_pieces<8>(share, s.segments, row, from, inside);
    case 4:
      return bring_pieces<4>(share, s.segments, row, from, inside);
    default:
      return bring_pieces<2>(share, s.segments, row, from, inside);
  }
}

template <typename Word>
__device__ __forceinline__ void take_pieces(const Share& share, int segments, Spot row, unsigned char* to) {
  Spot from = row + share.offset;
  to += share.from;
#pragma unroll 4
  for (int segment = share.segment; segment < segments; segment += share.step) {
    if (share.exists(segment)) *reinterpret_cast<Word*>(to) = load_shared<Word>(from);
    from += share.shared_step;
    to += share.from_step;
  }
}

__device__ __forceinline__ void take(const Stream& s, const Share& share, Spot row, unsigned char* to) {
  switch (s.piece_bytes) {
    case 16:
      return take_pieces<uint4>(share, s.segments, row, to);
    case 8:
      return take_pieces<uint2>(share, s.segments, row, to);
    case 4:
      return take_pieces<uint32_t>(share, s.segments, row, to);
    default:
      return take_pieces<uint16_t>(share, s.segments, row, to);
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

__device__ __forceinline__ int64_t block_offset(const Stream& s, const Place& at) {
  return at.batch * s.batch_stride + at.pack / s.packs_of_stride * s.pack_stride;
}

// The rows of an operand, brought one after another.
//
// A row has a slice for each slice of the kernel, from that depth of the tensor which the result's slice
// meets there; or, where the stream has but one, the result's own depth.
template <bool kTransposed>
class Rows {
 public:
  __device__ __forceinline__ Rows(const March& m, const Stream& stream, const Share& share, const Place& at,
                                  bool follows_kernel, int height, int first_row, Bytes tensor)
      : m_(m),
        stream_(stream),
        share_(share),
        tensor_(tensor + block_offset(stream, at)),
        ring_(shared_memory() + stream.base),
        height_(height),
        row_(first_row),
        result_slice_(at.slice),
        slice_(follows_kernel ? source_slice<kTransposed>(m, at.slice, 0) : at.slice) {}

  __device__ __forceinline__ void next() {
    const bool row_inside = row_ >= 0 && row_ < height_;
    const Bytes row = tensor_ + row_ * stream_.row_stride;
    for (int kd = 0; kd < stream_.slices; ++kd) {
      const int slice = kd == 0 ? slice_ : source_slice<kTransposed>(m_, result_slice_, kd);
      bring(stream_, share_, ring_ + at_ + kd * stream_.slice_pitch,
            row + slice * stream_.depth_stride + kd * stream_.kernel_slice_stride, row_inside && slice >= 0);
    }
    ++row_;
    at_ = next_in_ring(at_, stream_.row_pitch, stream_.rows * stream_.row_pitch);
  }

 private:
  const March& m_;
  const Stream& stream_;
  const Share& share_;
  const Bytes tensor_;
  const Spot ring_;
  const int height_;
  int row_;
  int at_ = 0;
  const int result_slice_;
  const int slice_;
};

// What the warps do that copy: in each step they bring what is needed `stages - 1` steps later, and store
// what was computed in the step before.
template <Operation kOperation>
__device__ __forceinline__ void produce(const March& m, const Place& at, const Steps& steps, Bytes source,
                                        Bytes second, unsigned char* result) {
  constexpr bool kTransposed = kOperation == Operation::kTranspose;
  const int (&source_frame)[3] = kTransposed ? m.output : m.input;
  const int (&result_frame)[3] = kTransposed ? m.input : m.output;
  const int thread = threadIdx.x - m.consumers * 32, threads = m.producers * 32;
  const Share source_share(m.source, at.strip, source_frame[2], thread, threads);
  const Share second_share(m.second, at.strip, m.output[2], thread, threads);
  const Share result_share(m.result, at.strip, result_frame[2], thread, threads);
  Rows<kTransposed> source_rows(m, m.source, source_share, at, true, source_frame[1], steps.source_row,
                                source);
  Rows<kTransposed> second_rows(m, m.second, second_share, at, kTransposed, m.output[1], steps.second_row,
                                second);
  result += block_offset(m.result, at) + at.slice * m.result.depth_stride;
  int result_row = steps.result_row;
  const auto take_step = [&](int step) {
    Spot from = shared_memory() + m.result.base + (step & 1) * m.result.next * m.result.row_pitch;
    for (int i = 0; i < m.result.next; ++i, ++result_row, from += m.result.row_pitch) {
      if (result_row < steps.result_begin || result_row >= steps.result_end) continue;
      take(m.result, result_share, from, result + result_row * m.result.row_stride);
    }
  };

#pragma unroll 1
  for (int r = 0; r < steps.count + m.stages - 1; ++r) {
    const int step = r - (m.stages - 1);
    if (step >= 0) {
      wait_for_copies_but(m.stages - 2);
      meet();
    }
    if (r < steps.count) {
#pragma unroll 1
      for (int i = r == 0 ? m.source.first : m.source.next; i > 0; --i) source_rows.next();
#pragma unroll 1
      for (int i = m.second.next; i > 0; --i) second_rows.next();
    }
    commit_copies();
    if (step > 0) take_step(step - 1);
    // The parts of a sum meet.
    if (kOperation == Operation::kInvolution && step >= 0 && m.parts > 1) meet();
  }
  meet();
  take_step(steps.count - 1);
}

}  // namespace involution
