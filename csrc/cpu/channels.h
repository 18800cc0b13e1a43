// Involution and its transpose with vectors along the channels, for groups that fill these.
//
// A row of results is gathered from the rows of the source that it meets. With the channels innermost these
// are staged as they are met; else all at once, since channels and positions change places in squares.
#pragma once

#include "pixel_sums.h"

namespace involution::cpu::INVOLUTION_CPU_NAMESPACE {

// `count` elements that follow each other, widened; whole vectors are written.
template <typename T>
INVOLUTION_INLINE void widen_row(const T* from, Sum<T>* to, int64_t count) {
  constexpr int L = kLanes<T>;
  if (count < L) return store(to, load_some(from, count));
  // The last vector begins earlier where they do not come out even.
  for (int64_t i = 0; i < count; i += L)
    store(to + smaller(i, count - L), load(from + smaller(i, count - L)));
}

// Kernel values of `count` positions, widened; `points` of each position lie together. `ahead` are those that
// will be widened next.
template <typename T>
void widen_points(const T* from, int64_t stride, int64_t ahead, int64_t count, int64_t points, Sum<T>* to,
                  int64_t pitch) {
  for (int64_t i = 0; i < count; ++i) {
    expect_run(from + i * stride + ahead, points);
    widen_row(from + i * stride, to + i * pitch, points);
  }
}

// The kernel values of a row, widened: those of each row of the source that it meets, position after
// position, `pitch` for the kernel points of a row of the kernel, which lie together. Those that lie `ahead`
// will be widened next.
template <typename T>
void widen_kernel_rows(const T* weights, int64_t stride, int64_t ahead, Window positions, int64_t points,
                       const RowLinks& links, Sum<T>* to, int64_t pitch) {
  for (int64_t l = 0; l < links.row_count; ++l) {
    const T* from = weights + links.rows[l].weight + positions.first * stride;
    links.staged_rows[l] = {l * positions.count * pitch, links.rows[l].source};
    for (int64_t i = 0; i < positions.count; ++i, from += stride, to += pitch) {
      expect_line(from + ahead);
      widen_row(from, to, points);
    }
  }
}

// The kernel values of a row, widened: tap after tap, result after result, `pitch` for each. Those that lie
// `ahead` will be widened next.
template <typename T>
void stage_values(const T* weights, int64_t ahead, int64_t pitch, const RowLinks& links, Sum<T>* staged,
                  LinkedRow<Sum<T>>& row) {
  const int64_t length = row.phase.length, advance = row.advance;
  int64_t taps = 0;
  for (int64_t c = row.phase.begin; c < row.phase.end; ++c) {  // a row may meet none of the source
    links.staged_chains[c] = links.chains[c];
    links.staged_chains[c].weight = taps * pitch;
    links.staged_chains[c].turn = pitch - 1;
    taps += links.chains[c].count;
  }
  for (int64_t l = 0; l < links.row_count; ++l) {
    links.staged_rows[l] = {l * taps * pitch, links.rows[l].source};
    for (int64_t c = row.phase.begin; c < row.phase.end; ++c) {
      const TapChain& chain = links.chains[c];
      const int64_t step = advance + chain.turn;  // from tap to tap
      const T* values = weights + links.rows[l].weight + chain.weight;
      Sum<T>* to = staged + links.staged_rows[l].weight + links.staged_chains[c].weight;
      for (int64_t j = 0; advance != 1 && j < length; ++j) expect_line(values + ahead + j * advance);
      if (advance != 1 && step == 1 && chain.first <= 0 && chain.last >= length + chain.count - 1) {
        copy_in(values, 1, advance, to, pitch, chain.count, length);
        continue;
      }
      for (int64_t i = 0; i < chain.count; ++i) {
        if (advance == 1) expect_run(values + ahead + i * step, length);
        const int64_t begin = larger(0, chain.first - i), end = smaller(length, chain.last - i);
        if (begin >= end) continue;
        const T* from = values + i * step + begin * advance;
        if (advance == 1) {
          widen_row(from, to + i * pitch + begin, end - begin);
        } else {
          copy_in(from, 0, advance, to + i * pitch + begin, pitch, 1, end - begin);
        }
      }
    }
  }
  row.rows = links.staged_rows;
  row.chains = links.staged_chains;
  row.weights = staged;
  row.advance = 1;
}

// An item of involution or of its transpose.
template <int kVectors, typename T>
class PixelGather {
 public:
  // `next` is the item that this thread takes afterwards, or null.
  PixelGather(const Plan& plan, const Item& item, const Item* next, const T* source, const T* weights,
              T* result, unsigned char* scratch)
      : plan_(plan),
        item_(item),
        next_(next),
        strides_(plan.result_strides()),
        weight_strides_(plan.problem.w),
        transposed_(plan.operation == Operation::kTranspose),
        in_place_(!kWidens && strides_.channel == 1),
        positions_(window_of(plan, item, kWidth)),
        widening_(choose_widening()),
        found_(found_strides()),
        links_(plan, item, found_, scratch),
        staged_(reinterpret_cast<S*>(scratch)),
        rolling_(plan, item, source, reinterpret_cast<int64_t*>(links_.rest)),
        values_(reinterpret_cast<S*>(scratch + plan.weight_offset)),
        results_(reinterpret_cast<S*>(scratch + plan.result_offset)),
        source_(source),
        weights_(group_weights(plan, item, weights)),
        next_weights_(next == nullptr ? weights_ : group_weights(plan, *next, weights)),
        result_(first_channel(plan, item, strides_, result) + tile_offset(item, strides_.space)),
        next_result_(next == nullptr ? nullptr
                                     : first_channel(plan, *next, strides_, result) +
                                           tile_offset(*next, strides_.space)) {
    if (plan.rolling == 0) stage_pixels(plan, item, source, staged_);
    links_.collect(best_block<S, kVectors>);
    if constexpr (kWidens) {
      const int64_t block = links_.phases[0].block, block_values = block * plan.sums_pitch;
      widened_ = larger(1, kWidenedBytes / (block_values * static_cast<int64_t>(sizeof(S)))) * block;
    }
  }

  void run() {
    const int64_t length = item_.count[kWidth], rows = item_.count[kHeight];
    const int64_t group_stride = plan_.problem.channels_per_group * strides_.channel;
    // Rows that follow each other in memory leave together, for the sake of narrow ones.
    const bool dense = strides_.space[kHeight] == length * strides_.space[kWidth];
    const int64_t most = dense && item_.groups == 1 ? larger(1, plan_.row_pitch / length) : 1;
    // Results in place are computed for all groups block by block.
    const int64_t groups = in_place_ ? item_.groups : 1;
    begin_fetching();
    if (kWidens && plan_.few_values) widen_row(weights_, values_, plan_.points * plan_.tap_stride);
    for (int64_t d = 0; d < item_.count[kDepth]; ++d) {
      int64_t together;
      for (int64_t h = 0; h < rows; h += together) {
        together = smaller(most, rows - h);
        T* first = result_ + d * strides_.space[kDepth] + h * strides_.space[kHeight];
        for (int64_t r = 0; r < together; ++r) {
          meet_rows(d, h + r);
          fetch_rows(d, h + r);
          for (int64_t g = 0; g < item_.groups; g += groups) {
            T* to = first + g * group_stride;
            if (!in_place_ && strides_.space[kWidth] == 1) {
              // A share of the lines that the results of all these rows go to.
              const int64_t from = r * item_.channels / together, until = (r + 1) * item_.channels / together;
              expect(to + from * strides_.channel, strides_, together * length, until - from);
            }
            S* results = results_ + r * length * plan_.pixel_pitch;
            gather(d, h + r, g, groups, to + r * strides_.space[kHeight], results);
            if (!in_place_ && r + 1 == together) {
              copy_out(results_, plan_.pixel_pitch, to, strides_.space[kWidth], strides_.channel,
                       together * length, item_.channels);
            }
          }
        }
      }
    }
  }

 private:
  using S = Sum<T>;
  static constexpr bool kWidens = sizeof(T) != sizeof(S);
  static constexpr int64_t kWidenedBytes = 8 * 1024;

  // How narrow kernel values are widened, and in what units at a time.
  enum class Widening {
    kNone,
    kFew,         // all of an item
    kPoints,      // of some results of a row, position after position
    kKernelRows,  // of a row of results, whose kernel values belong to several rows of positions
    kTaps         // of a row of results, tap after tap
  };
  Widening choose_widening() const {
    if (!kWidens) return Widening::kNone;
    if (plan_.few_values) return Widening::kFew;
    if (plan_.tap_stride != 1) return Widening::kTaps;
    return transposed_ ? Widening::kKernelRows : Widening::kPoints;
  }

  // How kernel values are found once they are widened.
  WeightStrides found_strides() const {
    WeightStrides found = weight_strides_;
    const AxisPlan& width = plan_.axis[kWidth];
    if (widening_ == Widening::kPoints) {
      found.kernel[kHeight] = width.kernel;
      found.kernel[kDepth] = width.kernel * plan_.axis[kHeight].kernel;
      found.space[kDepth] = found.space[kHeight] = 0;
      found.space[kWidth] = plan_.sums_pitch;
    } else if (widening_ == Widening::kKernelRows) {
      found.space[kWidth] = plan_.values_pitch;
    }
    if (widening_ == Widening::kPoints || widening_ == Widening::kKernelRows) found.kernel[kWidth] = 1;
    return found;
  }

  // What the next item begins with: the rows of its source that are staged first, and kernel values, if they
  // are few: in the order of memory, a line once, where rows would fetch lines that they share with others.
  void begin_fetching() {
    if (next_ == nullptr) return;
    expect_source(plan_, next_, source_, fetches_.item);
    if (plan_.few_values && next_weights_ != weights_)
      fetches_.item.add(next_weights_, 1, 0, plan_.points * plan_.tap_stride);
    fetches_.item.start(item_.count[kDepth] * item_.count[kHeight] * item_.groups * links_.blocks());
  }

  // Lists the rows that the row (d, h) of results meets.
  INVOLUTION_INLINE void meet_rows(int64_t d, int64_t h) {
    const int64_t slots = plan_.axis[kHeight].slots;
    if (plan_.rolling == 0) {
      links_.meet_rows(
          d, h, [&](const Meeting& plane, const Meeting& row) { return plane.slot * slots + row.slot; });
    } else {
      links_.meet_rows(d, h, [&](const Meeting& plane, const Meeting& row) {
        return rolling_.find(plane.slot, plane.position, row.position,
                             [&](int64_t place, bool, const T* from) { stage_row(place, from); });
      });
    }
  }

  // What is fetched while the row (d, h) is computed: what the next row of the item meets first, and the
  // lines that its results go to, or those of the next item's first. Where the positions of results follow
  // each other, run() fetches the lines.
  INVOLUTION_INLINE void fetch_rows(int64_t d, int64_t h) {
    const bool apart = strides_.space[kWidth] != 1, last = h + 1 == item_.count[kHeight];
    if (plan_.rolling == 0 && !apart) return;
    fetches_.row.clear();
    if (plan_.rolling != 0 && !last) {
      links_.for_each(d, h + 1, [&](const Meeting& plane, const Meeting& row) {
        rolling_.fetch(plane.slot, plane.position, row.position, fetches_.row);
      });
    }
    if (apart && !last) {
      expect(result_ + d * strides_.space[kDepth] + (h + 1) * strides_.space[kHeight], strides_,
             item_.count[kWidth], channels_of(plan_, item_), fetches_.row);
    } else if (apart && next_result_ != nullptr) {
      expect(next_result_, strides_, next_->count[kWidth], channels_of(plan_, *next_), fetches_.row);
    }
    fetches_.row.start(item_.groups * links_.blocks());
  }

  // A row of all groups, or zeros.
  void stage_row(int64_t place, const T* from) {
    const int64_t slots = plan_.axis[kWidth].slots, pitch = plan_.pixel_pitch;
    const int64_t group_stride = plan_.problem.channels_per_group * plan_.source_strides().channel;
    for (int64_t g = 0; g < item_.groups; ++g) {
      S* to = staged_ + g * plan_.group_pitch + place * slots * pitch;
      if (from == nullptr) {
        zero_pixels(to, slots, pitch);
      } else {
        stage_pixel_rows(plan_, item_, from + g * group_stride, 1, to);
      }
    }
  }

  // A row of some groups' results of one phase, but for its kernel values.
  INVOLUTION_INLINE LinkedRow<S> link(const Phase& phase, const Target& target, int64_t group,
                                      int64_t groups) const {
    return {links_.rows,
            links_.chains,
            phase,
            &target,
            1,
            nullptr,
            weight_strides_.group,
            found_.space[kWidth],
            staged_ + group * plan_.group_pitch,
            plan_.group_pitch,
            groups,
            Expected::kNone,
            0,
            false};
  }

  // The row (d, h) of some groups' results, to `to` or to `results`.
  INVOLUTION_INLINE void gather(int64_t d, int64_t h, int64_t group, int64_t groups, T* to, S* results) {
    const int64_t phases = plan_.axis[kWidth].phases, pitch = plan_.pixel_pitch;
    const T* weights = weights_ + group * weight_strides_.group;
    if constexpr (kWidens) {
      if (widening_ == Widening::kPoints) return gather_points(d, h, group, results);
      if (widening_ == Widening::kKernelRows) {
        widen_kernel_rows(weights, weight_strides_.space[kWidth], next_row(d, h), positions_,
                          plan_.axis[kWidth].kernel, links_, values_, plan_.values_pitch);
      }
    }
    for (int64_t p = 0; p < links_.phase_count; ++p) {
      const Target target{0, 0, links_.row_count};
      LinkedRow<S> row = link(links_.phases[p], target, group, groups);
      if constexpr (!kWidens) {
        row.weights = weights;
        expect_values(d, h, row);
      } else if (widening_ == Widening::kFew) {
        row.weights = values_;
      } else if (widening_ == Widening::kKernelRows) {
        row.rows = links_.staged_rows;
        row.weights = values_ - positions_.first * plan_.values_pitch;
      } else {
        stage_values(weights, next_row(d, h), plan_.row_pitch, links_, values_, row);
      }
      if (!in_place_) {
        sum_row<kVectors>(row, RowResults<S>{results + p * pitch, 0, phases * pitch, pitch}, fetches_);
      } else if constexpr (!kWidens) {
        const RowResults<T> at{to + p * strides_.space[kWidth],
                               plan_.problem.channels_per_group * strides_.channel,
                               phases * strides_.space[kWidth], item_.channels};
        sum_row<kVectors>(row, at, fetches_);
      }
    }
  }

  // The row (d, h) of one group's results, with kernel values that are widened for a few blocks at a time:
  // those of a long row, or of many kernel points, would push the pixels out of the first-level cache.
  void gather_points(int64_t d, int64_t h, int64_t group, S* results) {
    const int64_t length = item_.count[kWidth], pitch = plan_.pixel_pitch;
    const int64_t stride = weight_strides_.space[kWidth];
    const T* weights = weights_ + group * weight_strides_.group + row_offset(d, h);
    const Target target{0, 0, links_.row_count};
    LinkedRow<S> row = link(links_.phases[0], target, group, 1);
    row.weights = values_ - item_.first[kWidth] * plan_.sums_pitch;
    for (int64_t j = 0; j < length; j += widened_) {
      row.phase.length = smaller(widened_, length - j);
      if (row.phase.length < row.phase.block) row.phase.block = best_block<S, kVectors>(row.phase.length);
      const int64_t ahead = length <= widened_ ? weight_strides_.space[kHeight] : widened_ * stride;
      widen_points(weights + j * stride, stride, ahead, row.phase.length, plan_.points, values_,
                   plan_.sums_pitch);
      sum_row<kVectors>(row, RowResults<S>{results + j * pitch, 0, pitch, pitch}, fetches_);
      row.source += widened_ * pitch;
    }
  }

  // To the kernel values of a row's first result, of an operation without phases.
  INVOLUTION_INLINE int64_t row_offset(int64_t d, int64_t h) const {
    return (item_.first[kDepth] + d) * weight_strides_.space[kDepth] +
           (item_.first[kHeight] + h) * weight_strides_.space[kHeight] +
           item_.first[kWidth] * weight_strides_.space[kWidth];
  }

  // From the kernel values of a row to those of the next of its phase, or to the next item's first.
  INVOLUTION_INLINE int64_t next_row(int64_t d, int64_t h) const {
    const int64_t phases = plan_.axis[kHeight].phases;
    if (h + phases < item_.count[kHeight]) return weight_strides_.space[kHeight];
    return next_weights_ - weights_ - d / plan_.axis[kDepth].phases * weight_strides_.space[kDepth] -
           h / phases * weight_strides_.space[kHeight];
  }

  // Which kernel values a row fetches.
  INVOLUTION_INLINE void expect_values(int64_t d, int64_t h, LinkedRow<S>& row) const {
    if (plan_.few_values) return;
    if (row.advance == 1) {
      row.expected = Expected::kRuns;
      row.ahead = next_row(d, h);
    } else if (plan_.tap_stride == 1 && (!transposed_ || plan_.axis[kHeight].source == 1)) {
      row.expected = Expected::kPositions;
      row.ahead = kBlocksAhead * row.phase.block * row.advance;
    } else if (plan_.tap_stride == 1) {
      // Of the rows of positions that a row of results meets the one behind the last is new.
      row.expected = Expected::kPositions;
      row.ahead = weight_strides_.space[kHeight];
    }
  }

  const Plan& plan_;
  const Item& item_;
  const Item* const next_;
  const ActivationStrides& strides_;
  const WeightStrides& weight_strides_;
  const bool transposed_;
  const bool in_place_;
  const Window positions_;  // along the width of the source, which kernel values of a transpose have
  const Widening widening_;
  const WeightStrides found_;
  RowLinks links_;
  S* const staged_;
  RollingSource<T> rolling_;
  S* const values_;
  S* const results_;
  const T* const source_;
  const T* const weights_;
  const T* const next_weights_;
  T* const result_;
  const T* const next_result_;
  int64_t widened_ = 0;  // results whose kernel values are widened together, position after position
  Fetches fetches_;
};

}  // namespace involution::cpu::INVOLUTION_CPU_NAMESPACE
