// The march: where a block works, and how its warps bring rows and take results away (march.h).
#pragma once

#include "../involution.h"
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

// A thread's share of each row of a stream: the same piece of every step-th segment.
struct Share {
  int segment;  // the first
  int turns;    // segments of the thread
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

  __device__ __forceinline__ void make(const Stream& s, int strip, int width, int thread, int threads) {
    step = small_quotient(threads, s.pieces);
    segment = small_quotient(thread, s.pieces);
    piece = thread - segment * s.pieces;
    if (segment >= step) segment = s.segments;  // nothing to do
    turns = small_quotient(s.segments - segment + step - 1, step);
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

// A kernel's first pass over its code waits for that code, and most blocks are short, so there is little of
// it: what is not the usual case is not unrolled.
template <int kBytes>
__device__ __forceinline__ void bring_pieces(const Share& share, int segments, Spot to, Bytes from, int begin,
                                             unsigned count) {
  // Of a segment that begins at an odd multiple of 8 the piece begins in front of it.
  const auto aligned = [](Bytes at) {
    return reinterpret_cast<Bytes>(reinterpret_cast<uintptr_t>(at) & ~static_cast<uintptr_t>(kBytes - 1));
  };
  constexpr int kUnroll = kBytes == 16 ? 4 : 2;
  int segment = share.segment;
  if (begin <= 0 && static_cast<int>(count) + begin >= segments) {
    // (A loop whose turns are counted takes half the instructions of one that looks for its end.)
#pragma unroll kUnroll
    for (int turn = share.turns; turn > 0; --turn) {
      copy_async<kBytes>(to, aligned(from));
      to += share.shared_step;
      from += share.from_step;
    }
    return;
  }
#pragma unroll 1
  for (; segment < segments; segment += share.step) {
    copy_or_clear<kBytes>(to, aligned(from), static_cast<unsigned>(segment - begin) < count);
    to += share.shared_step;
    from += share.from_step;
  }
}

// Elements of two bytes have no asynchronous copy: several are loaded before the first is stored.
template <>
__device__ __forceinline__ void bring_pieces<2>(const Share& share, int segments, Spot to, Bytes from,
                                                int begin, unsigned count) {
  constexpr int kAtOnce = 4;
  int segment = share.segment;
#pragma unroll 1
  while (segment < segments) {
    uint16_t values[kAtOnce];
    int left = segment;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const bool read = segment < segments && static_cast<unsigned>(segment - begin) < count;
      values[i] = read ? *reinterpret_cast<const uint16_t*>(from) : uint16_t{0};
      segment += share.step;
      from += share.from_step;
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i, left += share.step) {
      if (left < segments) store_shared(to, values[i]);
      to += share.shared_step;
    }
  }
}

// One row of a thread's share; zeros where a segment does not exist.
__device__ __forceinline__ void bring(const Stream& s, const Share& share, Spot to, Bytes from, int begin,
                                      unsigned count) {
  if (s.piece_bytes == 16) {
    bring_pieces<16>(share, s.segments, to, from, begin, count);
  } else if (s.piece_bytes == 8) {
    bring_pieces<8>(share, s.segments, to, from, begin, count);
  } else if (s.piece_bytes == 4) {
    bring_pieces<4>(share, s.segments, to, from, begin, count);
  } else {
    bring_pieces<2>(share, s.segments, to, from, begin, count);
  }
}

template <typename Word>
__device__ __forceinline__ void take_pieces(const Share& share, int segments, Spot from, unsigned char* to) {
#pragma unroll 2
  for (int segment = share.segment; segment < segments; segment += share.step) {
    if (static_cast<unsigned>(segment - share.begin) < share.count) {
      *reinterpret_cast<Word*>(to) = load_shared<Word>(from);
    }
    from += share.shared_step;
    to += share.from_step;
  }
}

// One row of a thread's share from shared memory to the result.
__device__ __forceinline__ void take(const Stream& s, const Share& share, Spot from, unsigned char* to) {
  if (s.piece_bytes == 16) {
    take_pieces<uint4>(share, s.segments, from, to);
  } else if (s.piece_bytes == 8) {
    take_pieces<uint2>(share, s.segments, from, to);
  } else if (s.piece_bytes == 4) {
    take_pieces<uint32_t>(share, s.segments, from, to);
  } else {
    take_pieces<uint16_t>(share, s.segments, from, to);
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

// The rows of an operand.
//
// A row has a slice for each slice of the kernel, from that depth of the tensor which the result's slice
// meets there; or, where the stream has but one, the result's own depth.
template <bool kTransposed>
struct Rows {
  int slice;
  int row;      // the first
  Bytes first;  // where it begins

  __device__ __forceinline__ Rows(const March& m, const Stream& stream, const Place& at, bool follows_kernel,
                                  int first_row, Bytes tensor)
      : slice(follows_kernel ? source_slice<kTransposed>(m, at.slice, 0) : at.slice),
        row(first_row),
        first(tensor + block_offset(stream, at) + slice * stream.depth_stride +
              first_row * stream.row_stride) {}

  // The index-th row, to `in_ring` bytes behind the beginning of the ring.
  __device__ __forceinline__ void bring_row(const March& m, const Stream& stream, const int (&frame)[3],
                                            const Place& at, int index, int in_ring, const Share& share,
                                            const WantedKernelRows* wanted) const {
    const int of_map = row + index * stream.merged_rows;
    const bool inside = of_map >= 0 && of_map < frame[1] &&
                        (stream.piece_columns == 0 || has_column(stream, share, of_map, frame[1], frame[2]));
    int begin = share.begin;
    unsigned count = inside ? share.count : 0;
    if (wanted != nullptr && count > 0) {
      count = wanted->segments(m, share, of_map, stream.merged_rows, begin);
    }
    Spot to = shared_memory() + stream.base + in_ring + share.offset;
    Bytes from = first + static_cast<int64_t>(index * stream.merged_rows) * stream.row_stride + share.from;
#pragma unroll 1
    for (int kd = 0, of_kd = slice;;) {  // the slices of a kernel with a depth
      bring(stream, share, to, from, begin, of_kd >= 0 ? count : 0);
      if (++kd == stream.slices) break;
      const int other = source_slice<kTransposed>(m, at.slice, kd);
      from += (other - of_kd) * stream.depth_stride + stream.kernel_slice_stride;
      to += stream.slice_pitch;
      of_kd = other;
    }
  }
};

// Brings the rows of both operands, `stages - 1` steps ahead, and stores what was computed a step before. All
// warps bring the first step, which is the longest by far on a small map, each team of warps other rows of
// the source; then those that compute return.
template <Operation kOperation>
__device__ __forceinline__ void produce(const March& m, const Place& at, const Steps& steps,
                                        Bytes source_tensor, Bytes second_tensor, unsigned char* result) {
  constexpr bool kTransposed = kOperation == Operation::kTranspose;
  const int (&source_frame)[3] = kTransposed ? m.output : m.input;
  const int (&result_frame)[3] = kTransposed ? m.input : m.output;
  const Rows<kTransposed> source(m, m.source, at, true, steps.source_row, source_tensor);
  const Rows<kTransposed> second(m, m.second, at, kTransposed, steps.second_row, second_tensor);
  const WantedKernelRows wanted(steps);
  result += block_offset(m.result, at) + at.slice * m.result.depth_stride;

  Share source_share, second_share, result_share;
  // Rows of the source: where the next is in the ring, the next, the end of the step's, from one to the next.
  int source_at = 0, source_row = 0, source_end = m.source.first, between = 1;
  int second_at = 0, second_row = 0;
  int result_row = steps.result_row;

#pragma unroll 1
  for (int r = 0;; ++r) {
    const int step = r - (m.stages - 1);
    if (step >= 0) {
      wait_for_copies_but(m.stages - 2);
      meet();
    }
    if (r < 2) {
      int thread = threadIdx.x, threads = (m.consumers + m.producers) * 32;
      int thread_of_team = thread, team_threads = threads;
      if (r == 0) {
        const int team = small_quotient(thread, m.team);
        thread_of_team = thread - team * m.team, team_threads = m.team;
        source_at = team * m.source.row_pitch, source_row = team < m.teams ? team : m.source.first;
        between = m.teams;
      } else {
        thread -= m.consumers * 32, threads = m.producers * 32;
        thread_of_team = thread, team_threads = threads;
        source_at = m.source.first == m.source.rows ? 0 : m.source.first * m.source.row_pitch;
        source_row = m.source.first, between = 1;
        result_share.make(m.result, at.strip, result_frame[2], thread, threads);
      }
      source_share.make(m.source, at.strip, source_frame[2], thread_of_team, team_threads);
      second_share.make(m.second, at.strip, m.output[2], thread, threads);
      if (kTransposed) find_kernel_rows(m, second_share);
    }
    if (r < steps.count) {
#pragma unroll 1
      for (; source_row < source_end; source_row += between) {
        source.bring_row(m, m.source, source_frame, at, source_row, source_at, source_share, nullptr);
        source_at += between * m.source.row_pitch;
        if (source_at >= m.source.rows * m.source.row_pitch) source_at -= m.source.rows * m.source.row_pitch;
      }
      source_end += m.source.next;
#pragma unroll 1
      for (int i = 0; i < m.second.next; ++i, ++second_row) {
        second.bring_row(m, m.second, m.output, at, second_row, second_at, second_share,
                         kTransposed ? &wanted : nullptr);
        second_at = next_in_ring(second_at, m.second.row_pitch, m.second.rows * m.second.row_pitch);
      }
    }
    commit_copies();
    if (r == 0 && uniform(threadIdx.x / 32) < m.consumers) return;
    if (step > 0) {  // what was computed in the step before
      Spot from = shared_memory() + m.result.base + ((step - 1) & 1) * m.result.next * m.result.row_pitch +
                  result_share.offset;
#pragma unroll 1
      for (int i = 0; i < m.result.next; ++i) {
        if (result_row >= steps.result_begin && result_row < steps.result_end &&
            has_column(m.result, result_share, result_row, result_frame[1], result_frame[2])) {
          take(m.result, result_share, from, result + result_row * m.result.row_stride + result_share.from);
        }
        result_row += m.result.merged_rows;
        from += m.result.row_pitch;
      }
      if (step == steps.count) return;
    }
    // The parts of a sum meet.
    if (kOperation == Operation::kInvolution && step >= 0 && m.parts > 1) meet();
  }
}

}  // namespace involution
