// What a row of results is made of, for kernels with vectors along the channels: rows of the source, and
// chains of taps along these.
#pragma once

#include "pixels.h"

namespace involution::cpu::INVOLUTION_CPU_NAMESPACE {

// A row of the source that a row of results meets: where its kernel values begin, and its pixels.
struct RowLink {
  int64_t weight;
  int64_t source;
};

// Taps whose sources lie side by side. Tap i meets, for result j of a row, the kernel value at weight +
// (i + j)*advance + i*turn and the pixel i + j of those at `source`. The transposed operation has kernel
// values for the pixels first <= i + j < last alone.
struct TapChain {
  int64_t weight;
  int64_t turn;
  int64_t source;
  int64_t count;
  int64_t first;
  int64_t last;

  // Tap i by itself, with kernel values `advance` apart and pixels `pitch` apart.
  INVOLUTION_INLINE TapChain tap(int64_t i, int64_t advance, int64_t pitch) const {
    return {weight + i * (advance + turn), 0, source + i * pitch, 1, first - i, last - i};
  }
};

// The chains of the results that have the same phase along the width.
struct Phase {
  int64_t begin;
  int64_t end;
  int64_t length;  // results of a row
  int64_t block;   // how many of them are computed together
};

// Results at `to` that are the sums over some of a row's links.
struct Target {
  int64_t to;
  int64_t begin;
  int64_t end;
};

static_assert(sizeof(RowLink) == kRowLinkBytes && sizeof(TapChain) == kTapChainBytes &&
                  sizeof(Phase) == kPhaseBytes && sizeof(Target) == kTargetBytes,
              "the plan makes room for them");

// Where a kernel index of an axis meets a result: its kernel values, the position that it reads, and the
// slot.
struct Meeting {
  int64_t weight;
  int64_t position;
  int64_t slot;
};

class RowLinks {
 public:
  // Kernel values are found by `strides`.
  RowLinks(const Plan& plan, const Item& item, const WeightStrides& strides, unsigned char* scratch)
      : phases(reinterpret_cast<Phase*>(scratch + plan.stretch_offset)),
        phase_count(smaller(plan.axis[kWidth].phases, item.count[kWidth])),
        chains(reinterpret_cast<TapChain*>(phases +
                                           smaller(plan.axis[kWidth].phases, plan.axis[kWidth].result))),
        staged_chains(chains + plan.axis[kWidth].chain_count),
        rows(reinterpret_cast<RowLink*>(scratch + plan.tap_offset)),
        staged_rows(rows + plan.rows_sharing * plan.axis[kDepth].kernel * plan.axis[kHeight].kernel),
        rest(reinterpret_cast<unsigned char*>(staged_rows + (staged_rows - rows))),
        plan_(plan),
        item_(item),
        strides_(strides),
        transposed_(plan.operation == Operation::kTranspose) {}

  // The chains of every phase; best_block(length) says how many of its results are computed together.
  template <typename BestBlock>
  INVOLUTION_INLINE void collect(const BestBlock& best_block) {
    const AxisPlan& width = plan_.axis[kWidth];
    int64_t c = 0;
    for (int64_t p = 0; p < phase_count; ++p) {
      const int64_t length = (item_.count[kWidth] - p + width.phases - 1) / width.phases;
      Phase& phase = phases[p] = {c, c, length, best_block(length)};
      for (; c < width.chain_count && width.chain[c].first.phase == p; phase.end = ++c)
        chains[c] = link(width.chain[c], length);
    }
  }

  // Calls visit(along the depth, along the height) for every row of the source that the row (deep, high) of
  // the tile's results meets.
  template <typename Visit>
  INVOLUTION_INLINE void for_each(int64_t deep, int64_t high, const Visit& visit) const {
    const AxisPlan& depth = plan_.axis[kDepth];
    const AxisPlan& height = plan_.axis[kHeight];
    const Result d(depth, deep), h(height, high);
    for (int64_t kd = 0; kd < depth.kernel; ++kd) {
      Meeting plane;
      if (!meet(kDepth, depth.run[kd], kd, d, plane)) continue;
      for (int64_t kh = 0; kh < height.kernel; ++kh) {
        Meeting row;
        if (meet(kHeight, height.run[kh], kh, h, row)) visit(plane, row);
      }
    }
  }

  // Lists those rows; place(along the depth, along the height) says where each is staged.
  template <typename Place>
  INVOLUTION_INLINE void meet_rows(int64_t deep, int64_t high, const Place& place) {
    const int64_t row_pitch = plan_.axis[kWidth].slots * plan_.pixel_pitch;
    row_count = 0;
    for_each(deep, high, [&](const Meeting& plane, const Meeting& row) {
      rows[row_count++] = {plane.weight + row.weight, place(plane, row) * row_pitch};
    });
  }

  // Blocks of a row of results, each counted once for every chain.
  int64_t blocks() const {
    int64_t count = 0;
    for (int64_t p = 0; p < phase_count; ++p)
      count += (phases[p].length + phases[p].block - 1) / phases[p].block *
               larger(1, phases[p].end - phases[p].begin);
    return count;
  }

  Phase* const phases;  // of the width
  const int64_t phase_count;
  TapChain* const chains;
  TapChain* const staged_chains;  // room for those of a row whose kernel values are staged
  RowLink* const rows;
  RowLink* const staged_rows;
  unsigned char* const rest;  // room for which rows are staged, or for targets
  int64_t row_count = 0;

 private:
  // Result j of a tile is the number `index` of its phase.
  struct Result {
    INVOLUTION_INLINE Result(const AxisPlan& along, int64_t j)
        : index(along.phases == 1 ? j : j / along.phases), phase(j - index * along.phases) {}
    int64_t index;
    int64_t phase;
  };

  INVOLUTION_INLINE TapChain link(const Chain& chain, int64_t length) const {
    const AxisPlan& width = plan_.axis[kWidth];
    const int64_t step = chain.kernel_step * strides_.kernel[kWidth];
    const int64_t weight = chain.kernel * strides_.kernel[kWidth];
    const int64_t source = chain.first.slot * plan_.pixel_pitch;
    if (!transposed_) {
      return {weight + item_.first[kWidth] * strides_.space[kWidth],
              step - strides_.space[kWidth],
              source,
              chain.count,
              0,
              length + chain.count - 1};
    }
    const int64_t position = chain.first.position + item_.tile[kWidth] * width.shift;
    return {weight + position * strides_.space[kWidth],
            step,
            source,
            chain.count,
            -position,
            width.source - position};
  }

  // Whether kernel index k of an axis meets a result.
  INVOLUTION_INLINE bool meet(int axis, const Run& run, int64_t k, const Result& result,
                              Meeting& meeting) const {
    const AxisPlan& along = plan_.axis[axis];
    if (run.phase != result.phase) return false;
    const int64_t position = run.position + item_.tile[axis] * along.shift + result.index * along.step;
    if (transposed_ && (position < 0 || position >= along.source)) return false;
    const int64_t at = transposed_ ? position : item_.first[axis] + result.index;
    meeting = {k * strides_.kernel[axis] + at * strides_.space[axis], position, run.slot + result.index};
    return true;
  }

  const Plan& plan_;
  const Item& item_;
  const WeightStrides& strides_;
  const bool transposed_;
};

}  // namespace involution::cpu::INVOLUTION_CPU_NAMESPACE
