// The march: how the warps that copy bring rows and take results away (march.h).
#pragma once

#include "share.cuh"

namespace involution {

__device__ __forceinline__ void wait_for_copies_but(int pending) {
  if (pending == 0) {
    wait_for_copies<0>();
  } else if (pending == 1) {
    wait_for_copies<1>();
  } else {
    wait_for_copies<2>();
  }
}

// Whether a row of the map, or of those that are one from `row` on, has the thread's columns.
__device__ __forceinline__ bool has_columns(const Stream& s, const Share& share, int row, int height,
                                            int width) {
  return s.merged_rows == 1 || share.column < smaller(s.merged_rows, height - row) * width;
}

__device__ __forceinline__ int64_t block_offset(const Stream& s, const Place& at, int slice) {
  int64_t offset = at.batch * s.batch_stride + quotient(at.pack, s.by_packs_of_stride) * s.pack_stride;
  if (slice > 0) offset += slice * s.depth_stride;
  return offset;
}

// Of the transposed operation's first and last rows of kernel values a chunk needs some rows of the kernel
// alone: those that reach its own rows of x. The others stay away, a third of the traffic of short chunks,
// and leave in the ring what was there: it is summed into rows of x that the block does not own.
struct WantedRows {
  int begin;  // rows of y of which something in the thread's piece is wanted
  int end;
  int all_begin;  // where the segments are points of the kernel: rows of which all of these are
  int all_end;

  __device__ __forceinline__ WantedRows(const March& m, const Steps& steps, const Share& share) {
    const Stream& s = m.second;
    const int last_row = m.kernel[1] - 1, merged = s.merged_rows - 1;
    const int result_begin = steps.result_begin + m.padding[1], result_end = steps.result_end + m.padding[1];
    begin = all_begin = 0, end = all_end = m.output[1];
    if (s.whole) return;
    // The rows of the kernel that the piece has a part of.
    int first = 0, last = last_row;
    if (s.piece_columns == 0) {
      const int last_byte = share.piece * s.piece_bytes + s.piece_bytes - 1;
      int first_byte = share.piece * s.piece_bytes - s.phased * 8;
      if (first_byte < 0) first_byte = 0;
      const int group = quotient(first_byte, m.by_group_bytes);
      if (group == quotient(last_byte, m.by_group_bytes)) {
        const int of_group = group * m.weight_pitch.group;
        first = quotient(first_byte - of_group, m.by_row_bytes);
        last = smaller(quotient(last_byte - of_group, m.by_row_bytes), last_row);
      }
    } else if (s.segments == m.kernel[1] * m.kernel[2] && s.slices == 1) {  // of one group
      all_begin = divided_row_up(m, result_begin) - merged;
      all_end = divided_row(m, result_end - 1 - last_row) + 1;
    }
    const int lowest = divided_row_up(m, result_begin - last) - merged;
    if (lowest > begin) begin = lowest;
    end = smaller(end, divided_row(m, result_end - 1 - first) + 1);
  }

  // The points of the kernel that are wanted of rows `row` to `row + merged_rows - 1`, with all of which a
  // stream's segments are.
  static __device__ __forceinline__ void copy(const March& m, const Steps& steps, const Share& share, int row,
                                              Spot to, Bytes from) {
    const Stream& s = m.second;
    const int first = steps.result_begin + m.padding[1] - (row + s.merged_rows - 1) * m.stride[1];
    const int end_row = steps.result_end + m.padding[1] - row * m.stride[1];
    const int first_point = first * m.kernel[2], end_point = end_row * m.kernel[2];
    const auto turns_below = [&](int point) {  // the thread's turns for points in front of this one
      const int points = point - share.segment;
      return points > 0 ? smaller(share.turns, quotient(points + s.step - 1, s.by_step)) : 0;
    };
    const int begin = turns_below(first_point), end = turns_below(end_point);
    if (begin >= end) return;
    copy_row<false>(s, to + begin * s.step_pitch, from + begin * s.step_stride, end - begin);
  }
};

// How far behind the beginning of its slot in shared memory a position's kernel values begin, in row `row`;
// `first` is slot_phase of column and block.
template <bool kTransposed>
__device__ __forceinline__ unsigned slot_phase(const March& m, const Place& at, int column) {
  const Stream& s = m.second;
  const int slice = kTransposed ? source_slice<true>(m, at.slice, 0) : at.slice;
  return static_cast<unsigned>(block_offset(s, at, slice) + column * s.segment_stride);
}
__device__ __forceinline__ int phase_in_row(const Stream& s, unsigned first, int row) {
  return (first + row * static_cast<unsigned>(s.row_stride)) & (s.phased * 8u);
}

// The rows of an operand on their way into its ring, as one thread copies its share of them.
//
// A row has a slice for each slice of the kernel, from that depth of the tensor which the result's slice
// meets there; or, where the stream has but one, the result's own depth.
template <bool kTransposed, bool kPhased>
struct Flow {
  const Share share;
  const int slice;  // -1: there is none
  Bytes from;       // the thread's first piece of the next row
  Spot to;          // its place in the ring,
  Spot end;         // and behind the ring's last row
  int row;          // of the map

  // The next row is row `first` of the map, and goes to the index-th of the ring.
  __device__ __forceinline__ Flow(const March& m, const Stream& s, const Place& at, int frame_width,
                                  bool follows_kernel, int first, int index, int thread, Bytes tensor)
      : share(s, at.strip, frame_width, thread),
        slice(follows_kernel ? source_slice<kTransposed>(m, at.slice, 0) : at.slice),
        from(tensor + block_offset(s, at, slice) + first * s.row_stride + share.from),
        to(shared_memory() + s.base + share.offset + index * s.row_pitch),
        end(shared_memory() + s.base + share.offset + s.ring),
        row(first) {}

  // `rows` further on, of which each may be several that are one.
  __device__ __forceinline__ void skip(const Stream& s, int rows) {
    from += rows * s.next_stride;
    row += rows * s.merged_rows;
    to += rows * s.row_pitch;
    if (to >= end) to -= s.ring;
  }

  // Zeros in what lies in front of the map and behind it, in every row of the ring and slice of a row.
  __device__ __forceinline__ void clear_outside(const Stream& s) const {
#pragma unroll 1
    for (int turn = -share.before; turn < share.turns + share.behind; ++turn) {
      if (turn == 0) turn = share.turns;
      if (turn == share.turns + share.behind) return;
      Spot at = end - s.ring + turn * s.step_pitch;
#pragma unroll 4
      for (int line = s.rows * s.slices; line > 0; --line, at += s.slice_pitch) clear_pieces(s, at, 1);
    }
  }

  // The next row. A slice that does not exist is zeros, and so are rows of the source outside the map; those
  // of the other operand nothing reads.
  template <bool kZeros>
  __device__ __forceinline__ void copy(const March& m, const Stream& s, const Place& at, bool exists) const {
    if (s.slices > 1) return copy_slices<kZeros>(m, s, at, exists);
    if (slice < 0 || (kZeros && !exists)) {
      clear_pieces(s, to, share.turns);
    } else if (exists) {
      copy_row<kPhased>(s, to, from, share.turns);
    }
  }

  template <bool kZeros>
  __device__ __forceinline__ void copy_slices(const March& m, const Stream& s, const Place& at,
                                              bool exists) const {
    Spot spot = to;
    Bytes begin = from;
    int of_kd = slice > 0 ? slice : 0;
#pragma unroll 1
    for (int kd = 0; kd < s.slices; ++kd, spot += s.slice_pitch, begin += s.kernel_slice_stride) {
      const int other = source_slice<kTransposed>(m, at.slice, kd);
      if (other < 0 || (kZeros && !exists)) {
        clear_pieces(s, spot, share.turns);
      } else if (exists) {
        begin += (other - of_kd) * s.depth_stride;
        of_kd = other;
        copy_row<false>(s, spot, begin, share.turns);
      }
    }
  }
};

// The steps of a warp that copies. All that it started up to `stages - 1` steps ago is there, all warps meet,
// and it goes on: `bring()` starts the rows of a further step, if there is one, and `take(step)` carries away
// what was computed in the step before.
template <Operation kOperation, typename Bring, typename Take>
__device__ __forceinline__ void walk_steps(const March& m, const Steps& steps, const Bring& bring,
                                           const Take& take) {
#pragma unroll 1
  for (int r = 0;; ++r) {
    const int step = r - (m.stages - 1);
    if (step >= 0) {
      wait_for_copies_but(m.stages - 2);
      meet();
    }
    if (r < steps.count) bring();
    commit_copies();
    if (step > 0) take(step - 1);
    if (step == steps.count) return;
    // The parts of a sum meet.
    if (kOperation == Operation::kInvolution && step >= 0 && m.parts > 1) meet();
  }
}

// The rows of the source from the first-th on that the block needs, each as a whole by one of several teams
// of m.team threads, which take turns. `thread` counts the teams' threads.
template <Operation kOperation>
class SourceRows {
 public:
  __device__ __forceinline__ SourceRows(const March& m, const Place& at, const Steps& steps, int first,
                                        int teams, int thread, Bytes tensor)
      : m_(m),
        at_(at),
        frame_(kOperation == Operation::kTranspose ? m.output : m.input),
        begin_(steps.source_row),
        zeros_until_(m.cleared ? begin_ + m.source.rows : begin_),
        teams_(teams),
        team_(quotient(thread, m.by_team)),
        flow_(m, m.source, at, frame_[2], true, begin_ + first + team_, first + team_,
              thread - team_ * m.team, tensor) {}

  __device__ __forceinline__ void clear_outside() const {
    if (team_ == 0) flow_.clear_outside(m_.source);
  }

  // Up to the end-th.
  __device__ __forceinline__ void bring(int end) {
    if (team_ >= teams_) return;
#pragma unroll 1
    for (; flow_.row < begin_ + end; flow_.skip(m_.source, teams_)) {
      const bool exists = static_cast<unsigned>(flow_.row) < static_cast<unsigned>(frame_[1]);
      if (exists || flow_.row >= zeros_until_) flow_.template copy<true>(m_, m_.source, at_, exists);
    }
  }

 private:
  const March& m_;
  const Place& at_;
  const int (&frame_)[3];
  const int begin_;
  const int zeros_until_;  // places in the ring for rows in front of this one are zeros already
  const int teams_;
  const int team_;
  Flow<kOperation == Operation::kTranspose, false> flow_;
};

// Brings the rows of the source, but for those that only the first step needs.
template <Operation kOperation>
__device__ __forceinline__ void bring_source(const March& m, const Place& at, const Steps& steps, int thread,
                                             Bytes tensor) {
  int end = m.source.first;
  SourceRows<kOperation> rows(m, at, steps, m.halo, m.source_teams, thread, tensor);
  rows.bring(end);
  if (!m.cleared) rows.clear_outside();  // while these are on their way
  const auto bring = [&] {
    rows.bring(end);
    end += m.source.next;
  };
  walk_steps<kOperation>(m, steps, bring, [](int) {});
}

// Brings the rows of the other operand.
template <Operation kOperation>
__device__ __forceinline__ void bring_second(const March& m, const Place& at, const Steps& steps, int thread,
                                             Bytes tensor) {
  constexpr bool kTransposed = kOperation == Operation::kTranspose;
  constexpr bool kPhased = kOperation != Operation::kCorrelation;  // layout_rows.cpp
  Flow<kTransposed, kPhased> flow(m, m.second, at, m.output[2], kTransposed, steps.second_row, 0, thread,
                                  tensor);
  int begin = 0, rows = m.output[1];  // that exist, or are wanted
  int all_begin = 0, all_end = m.output[1];
  if constexpr (kTransposed) {
    if (!m.cleared) flow.clear_outside(m.second);
    const WantedRows wanted(m, steps, flow.share);
    begin = wanted.begin;
    rows = wanted.end > begin ? wanted.end - begin : 0;
    all_begin = wanted.all_begin, all_end = wanted.all_end;
  }
  const auto bring = [&] {
#pragma unroll 1
    for (int i = m.second.next; i > 0; --i) {
      bool exists = static_cast<unsigned>(flow.row - begin) < static_cast<unsigned>(rows);
      exists = exists && has_columns(m.second, flow.share, flow.row, m.output[1], m.output[2]);
      if (kTransposed && flow.slice >= 0 && (flow.row < all_begin || flow.row >= all_end)) {
        if (exists) WantedRows::copy(m, steps, flow.share, flow.row, flow.to, flow.from);
      } else {
        flow.template copy<false>(m, m.second, at, exists);
      }
      flow.skip(m.second, 1);
    }
  };
  walk_steps<kOperation>(m, steps, bring, [](int) {});
}

// Carries the rows of the result away, a step late; and, with nothing to do at first, brings the rows of the
// source that only the first step needs.
template <Operation kOperation>
__device__ __forceinline__ void take_result(const March& m, const Place& at, const Steps& steps, int thread,
                                            Bytes source, unsigned char* tensor) {
  const Stream& s = m.result;
  if (m.halo > 0) SourceRows<kOperation>(m, at, steps, 0, m.halo_teams, thread, source).bring(m.halo);
  const int (&frame)[3] = kOperation == Operation::kTranspose ? m.input : m.output;
  const Share share(s, at.strip, frame[2], thread);
  int row = steps.result_row;
  unsigned char* to = tensor + block_offset(s, at, at.slice) + row * s.row_stride + share.from;
  const Spot results = shared_memory() + s.base + share.offset;
  const auto take = [&](int step) {
    Spot from = results + (step & 1) * s.next * s.row_pitch;
#pragma unroll 1
    for (int i = s.next; i > 0; --i) {
      if (row >= steps.result_begin && row < steps.result_end &&
          has_columns(s, share, row, frame[1], frame[2])) {
        take_row(s, from, to, share.turns);
      }
      row += s.merged_rows;
      to += s.next_stride;
      from += s.row_pitch;
    }
  };
  walk_steps<kOperation>(m, steps, [] {}, take);
}

}  // namespace involution
