// The march: how a block's warps bring rows and take results away (march.h).
#pragma once

#include "share.cuh"

namespace involution {

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

// Whether a row of the map, or of those that are one from `row` on, has the thread's columns.
__device__ __forceinline__ bool has_columns(const Stream& s, const Share& share, int row, int height,
                                            int width) {
  return s.merged_rows == 1 || share.column < smaller(s.merged_rows, height - row) * width;
}

__device__ __forceinline__ int64_t block_offset(const Stream& s, const Place& at) {
  return at.batch * s.batch_stride + at.pack / s.packs_of_stride * s.pack_stride;
}

// Of the transposed operation's first and last rows of kernel values a chunk needs some rows of the kernel
// alone: those that reach its own rows of x. The others stay away, a third of the traffic of short chunks,
// and leave in the ring what was there: it is summed into rows of x that the block does not own.
struct WantedRows {
  int begin;  // rows of y of which something in the thread's piece is wanted
  int end;
  int all_begin;  // where the segments are points of the kernel: rows of which all of these are
  int all_end;

  __device__ __forceinline__ void make(const March& m, const Steps& steps, const Share& share) {
    const Stream& s = m.second;
    const int stride = m.stride[1], last_row = m.kernel[1] - 1, merged = s.merged_rows - 1;
    const int result_begin = steps.result_begin + m.padding[1], result_end = steps.result_end + m.padding[1];
    begin = all_begin = 0, end = all_end = m.output[1];
    if (s.whole) return;
    // The rows of the kernel that the piece has a part of.
    int first = 0, last = last_row;
    if (s.piece_columns == 0) {
      const WeightPitch& pitch = m.weight_pitch;
      int first_byte = share.piece * s.piece_bytes - s.phased * 8;
      const int last_byte = share.piece * s.piece_bytes + s.piece_bytes - 1;
      if (first_byte < 0) first_byte = 0;
      if (first_byte / pitch.group == last_byte / pitch.group) {
        first = first_byte % pitch.group / pitch.kernel_row;
        last = last_byte % pitch.group / pitch.kernel_row;
        if (last > last_row) last = last_row;
      }
    } else if (s.segments == m.kernel[1] * m.kernel[2] && s.slices == 1) {  // of one group
      all_begin = ceil_div(result_begin, stride) - merged;
      all_end = floor_div(result_end - 1 - last_row, stride) + 1;
    }
    const int lowest = ceil_div(result_begin - last, stride) - merged;
    if (lowest > begin) begin = lowest;
    end = smaller(end, floor_div(result_end - 1 - first, stride) + 1);
  }

  // The points of the kernel that are wanted of rows `row` to `row + merged_rows - 1`, with all of which a
  // stream's segments are.
  static __device__ __forceinline__ void copy(const March& m, const Steps& steps, const Share& share, int row,
                                              Spot to, Bytes from) {
    const Stream& s = m.second;
    const int first = steps.result_begin + m.padding[1] - (row + s.merged_rows - 1) * m.stride[1];
    const int end_row = steps.result_end + m.padding[1] - row * m.stride[1];
    const int first_point = first * m.kernel[2], end_point = end_row * m.kernel[2];
#pragma unroll 1
    for (int turn = 0, point = share.segment; turn < share.turns; ++turn, point += share.step) {
      if (point >= first_point && point < end_point) {
        if (s.piece_bytes == 16) {
          copy_async<16>(to, from);
        } else {
          copy_narrow_pieces(s.piece_bytes, to, from, 0, 0, 1);
        }
      }
      to += share.shared_step;
      from += share.step_bytes;
    }
  }
};

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

// The rows of an operand on their way into its ring, as one thread copies its share of them.
//
// A row has a slice for each slice of the kernel, from that depth of the tensor which the result's slice
// meets there; or, where the stream has but one, the result's own depth.
template <bool kTransposed>
struct Flow {
  int slice;
  Bytes tensor;  // where its first row begins
  Bytes from;    // the thread's first piece of the next row
  Spot to;       // its place in the ring,
  Spot end;      // and behind the ring's last row
  int row;       // of the map

  __device__ __forceinline__ Flow(const March& m, const Stream& s, const Place& at, bool follows_kernel,
                                  Bytes begin)
      : slice(follows_kernel ? source_slice<kTransposed>(m, at.slice, 0) : at.slice),
        tensor(begin + block_offset(s, at) + slice * s.depth_stride) {}

  // Row `first` of the map is the next, and goes to the index-th of the ring.
  __device__ __forceinline__ void start(const Stream& s, const Share& share, int first, int index) {
    from = tensor + first * s.row_stride + share.from;
    to = shared_memory() + s.base + share.offset + index * s.row_pitch;
    end = shared_memory() + s.base + share.offset + s.ring;
    row = first;
  }

  __device__ __forceinline__ void skip(const Stream& s, int rows, int64_t bytes, int pitch) {
    from += bytes;
    row += rows;
    to += pitch;
    if (to >= end) to -= s.ring;
  }

  // Zeros in what lies in front of the map and behind it, in every `between`-th row of the ring.
  __device__ __forceinline__ void clear_outside(const Stream& s, const Share& share, int between) const {
    if (share.before + share.behind == 0) return;
#pragma unroll 1
    for (Spot at = to; at < end; at += between * s.row_pitch) {
#pragma unroll 1
      for (int kd = 0; kd < s.slices; ++kd) {
        const Spot first = at + kd * s.slice_pitch;
        clear_pieces(s.piece_bytes, first - share.before * share.shared_step, share.shared_step,
                     share.before);
        clear_pieces(s.piece_bytes, first + share.turns * share.shared_step, share.shared_step, share.behind);
      }
    }
  }

  // The next row. A slice that does not exist is zeros, and so are rows of the source outside the map; those
  // of the other operand nothing reads.
  template <bool kZeros>
  __device__ __forceinline__ void copy(const March& m, const Stream& s, const Share& share, const Place& at,
                                       bool exists) const {
    if (s.slices > 1) return copy_slices<kZeros>(m, s, share, at, exists);
    if (slice < 0 || (kZeros && !exists)) {
      clear_pieces(s.piece_bytes, to, share.shared_step, share.turns);
    } else if (exists) {
      copy_row(s, share, to, from);
    }
  }

  template <bool kZeros>
  __device__ __forceinline__ void copy_slices(const March& m, const Stream& s, const Share& share,
                                              const Place& at, bool exists) const {
    Spot spot = to;
    Bytes begin = from;
    int of_kd = slice;
#pragma unroll 1
    for (int kd = 0; kd < s.slices; ++kd, spot += s.slice_pitch) {
      if (kd > 0) {
        const int other = source_slice<kTransposed>(m, at.slice, kd);
        begin += (other - of_kd) * s.depth_stride + s.kernel_slice_stride;
        of_kd = other;
      }
      if (of_kd < 0 || (kZeros && !exists)) {
        clear_pieces(s.piece_bytes, spot, share.shared_step, share.turns);
      } else if (exists) {
        copy_row(s, share, spot, begin);
      }
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
  Flow<kTransposed> source(m, m.source, at, true, source_tensor);
  Flow<kTransposed> second(m, m.second, at, kTransposed, second_tensor);
  Share source_share, second_share, result_share;
  WantedRows wanted;
  int source_rows = 0, between = 1;  // rows of the step, and from one that the thread copies to its next
  int64_t source_bytes = 0;          // the same in global memory
  int second_begin = 0;              // rows that exist, or that are wanted
  unsigned second_rows = m.output[1];
  const bool narrow = m.source.piece_bytes < 16 || (kTransposed && m.second.piece_bytes < 16);
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
      int team = 0, thread_of_team = thread, team_threads = threads;
      if (r == 0) {
        team = small_quotient(thread, m.team), between = m.teams;
        thread_of_team = thread - team * m.team, team_threads = m.team;
        source_rows = team < between ? small_quotient(m.source.first - team + between - 1, between) : 0;
      } else {
        thread -= m.consumers * 32, threads = m.producers * 32;
        thread_of_team = thread, team_threads = threads;
        source_rows = m.source.next, between = 1;
        result_share.make(m.result, at.strip, result_frame[2], thread, threads);
        result += block_offset(m.result, at) + at.slice * m.result.depth_stride +
                  result_row * m.result.row_stride + result_share.from;
      }
      source_bytes = between * m.source.row_stride;
      if (r < steps.count) {
        const int begun = r == 0 ? team : m.source.first;  // rows
        source_share.make(m.source, at.strip, source_frame[2], thread_of_team, team_threads);
        source.start(m.source, source_share, steps.source_row + begun, begun == m.source.rows ? 0 : begun);
        second_share.make(m.second, at.strip, m.output[2], thread, threads);
        second.start(m.second, second_share, steps.second_row + r * m.second.next * m.second.merged_rows,
                     r * m.second.next);
        if constexpr (kTransposed) {
          wanted.make(m, steps, second_share);
          second_begin = wanted.begin;
          second_rows = wanted.end > wanted.begin ? wanted.end - wanted.begin : 0;
        }
        if (r == 0 && narrow) {  // whose zeros would be many stores
          clear_ring(m.source);
          if (kTransposed) clear_ring(m.second);
          meet();
        } else if (r == 0) {
          if (team < m.teams) source.clear_outside(m.source, source_share, m.teams);
          if (kTransposed) second.clear_outside(m.second, second_share, 1);
        }
      }
    }
    if (r < steps.count) {
#pragma unroll 1
      for (int i = source_rows; i > 0; --i) {
        const bool exists = static_cast<unsigned>(source.row) < static_cast<unsigned>(source_frame[1]);
        source.template copy<true>(m, m.source, source_share, at, exists);
        source.skip(m.source, between, source_bytes, between * m.source.row_pitch);
      }
#pragma unroll 1
      for (int i = m.second.next; i > 0; --i) {
        bool exists = static_cast<unsigned>(second.row - second_begin) < second_rows;
        exists = exists && has_columns(m.second, second_share, second.row, m.output[1], m.output[2]);
        if (kTransposed && second.slice >= 0 &&
            (second.row < wanted.all_begin || second.row >= wanted.all_end)) {
          if (exists) WantedRows::copy(m, steps, second_share, second.row, second.to, second.from);
        } else {
          second.template copy<false>(m, m.second, second_share, at, exists);
        }
        second.skip(m.second, m.second.merged_rows, m.second.step_bytes, m.second.row_pitch);
      }
    }
    commit_copies();
    if (r == 0 && uniform(threadIdx.x / 32) < m.consumers) return;
    if (step > 0) {  // what was computed in the step before
      Spot from = shared_memory() + m.result.base + ((step - 1) & 1) * m.result.next * m.result.row_pitch +
                  result_share.offset;
#pragma unroll 1
      for (int i = m.result.next; i > 0; --i) {
        if (result_row >= steps.result_begin && result_row < steps.result_end &&
            has_columns(m.result, result_share, result_row, result_frame[1], result_frame[2])) {
          take_row(m.result, result_share, from, result);
        }
        result_row += m.result.merged_rows;
        result += m.result.step_bytes;
        from += m.result.row_pitch;
      }
      if (step == steps.count) return;
    }
    // The parts of a sum meet.
    if (kOperation == Operation::kInvolution && step >= 0 && m.parts > 1) meet();
  }
}

}  // namespace involution
