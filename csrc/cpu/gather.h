// Involution and its transpose: result[c, j] = sum over taps of weight[tap, j] * source[c, tap + j].
//
// A block of sums lies in registers: some channels by some vectors along one row, or along two rows that
// share their source. Each vector of kernel values is loaded once for all channels of the block, and each
// vector of the source once for both rows: unaligned loads of it, one for each multiply-add, would be the
// limit.
#pragma once

#include "item.h"

namespace involution::cpu::INVOLUTION_CPU_NAMESPACE {

// The rows of results of one phase, and what they are made of.
template <typename W, typename S>
struct GatherRows {
  const Tap* taps;
  const Stretch* stretches;
  int64_t stretch_count;
  const W* weights;
  int64_t ahead;  // to the kernel values that the next rows will read
  const S* source;
  int64_t source_pitch;
  int64_t length;
  int64_t all_from, all_to;  // results for which every tap has a kernel value
};

template <typename R>
struct ResultRows {
  R* first;
  int64_t channel_pitch;
  int64_t row_pitch;
};

template <int kVectors, bool kAll, typename W>
INVOLUTION_INLINE void load_weights(const W* weights, const Tap& tap, int64_t j,
                                    Vector<W> (&weight)[kVectors]) {
  constexpr int L = kLanes<W>;
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    if constexpr (kAll) {
      weight[v] = load(weights + v * L);
    } else {
      const int64_t first = larger(0, tap.first - j - v * L), last = smaller(L, tap.last - j - v * L);
      weight[v] = last <= first ? Vector<W>{} : load_lanes(weights + v * L, first, last);
    }
  }
}

// The taps that belong to the rows kFirst <= r < kLast.
template <int kFirst, int kLast, bool kAll, int kRows, int kChannels, int kVectors, typename W, typename S>
INVOLUTION_INLINE void gather_stretch(const GatherRows<W, S>& rows, const Tap* taps, int64_t count,
                                      int64_t channel, int64_t j,
                                      Vector<S> (&sums)[kRows][kChannels][kVectors]) {
  constexpr int L = kLanes<S>;
  const W* const weights = rows.weights + j;
  const S* const sources = rows.source + channel * rows.source_pitch + j;
  for (int64_t t = 0; t < count; ++t) {
    Vector<W> weight[kLast - kFirst][kVectors];
#pragma GCC unroll 2
    for (int r = kFirst; r < kLast; ++r) {
      const W* const from = weights + taps[t].weight[r];
      expect_line(from + rows.ahead);
      load_weights<kVectors, kAll>(from, taps[t], j, weight[r - kFirst]);
    }
    const S* source = sources + taps[t].source;
#pragma GCC unroll 16
    for (int c = 0; c < kChannels; ++c) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        Vector<S> value = load(source + v * L);
        if constexpr (kLast - kFirst > 1) keep_in_register(value);
#pragma GCC unroll 2
        for (int r = kFirst; r < kLast; ++r) sums[r][c][v] += weight[r - kFirst][v] * value;
      }
      source += rows.source_pitch;
    }
  }
}

template <int kRows, int kChannels, int kVectors, bool kAll, typename W, typename S, typename R>
INVOLUTION_INLINE void gather_block(const GatherRows<W, S>& rows, int64_t channel, int64_t j,
                                    const ResultRows<R>& results) {
  Vector<S> sums[kRows][kChannels][kVectors] = {};
  const Tap* taps = rows.taps;
  for (int64_t s = 0; s < rows.stretch_count; ++s) {
    const Stretch& stretch = rows.stretches[s];
    if constexpr (kRows == 1) {
      gather_stretch<0, 1, kAll>(rows, taps, stretch.count, channel, j, sums);
    } else if (stretch.rows == 3) {
      gather_stretch<0, 2, kAll>(rows, taps, stretch.count, channel, j, sums);
    } else if (stretch.rows == 1) {
      gather_stretch<0, 1, kAll>(rows, taps, stretch.count, channel, j, sums);
    } else {
      gather_stretch<1, 2, kAll>(rows, taps, stretch.count, channel, j, sums);
    }
    taps += stretch.count;
  }
#pragma GCC unroll 2
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int c = 0; c < kChannels; ++c) {
      R* to = results.first + r * results.row_pitch + (channel + c) * results.channel_pitch + j;
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const int64_t lanes = rows.length - j - v * kLanes<S>;
        if (kAll && kVectors > 1) {
          store(to + v * kLanes<S>, sums[r][c][v]);
        } else {
          store_some(to + v * kLanes<S>, sums[r][c][v], lanes);
        }
      }
    }
  }
}

// The rows' channels from `channel` on, kChannels at a time while there are so many; returns the next one.
template <int kRows, int kChannels, typename W, typename S, typename R>
int64_t gather_channels(GatherRows<W, S>& rows, int64_t channel, int64_t channels,
                        const ResultRows<R>& results) {
  constexpr int L = kLanes<S>;
  constexpr int kRoom = kBlock / kRows / kChannels;
  constexpr int kVectors = kRoom < 4 ? kRoom : 4;
  for (; channel + kChannels <= channels; channel += kChannels) {
    int64_t j = 0;
    while (j < rows.length) {
      if (kVectors > 1 && j >= rows.all_from && j + kVectors * L <= smaller(rows.all_to, rows.length)) {
        gather_block<kRows, kChannels, kVectors, true>(rows, channel, j, results);
        j += kVectors * L;
      } else {
        if (j >= rows.all_from && j + L <= rows.all_to) {
          gather_block<kRows, kChannels, 1, true>(rows, channel, j, results);
        } else {
          gather_block<kRows, kChannels, 1, false>(rows, channel, j, results);
        }
        j += L;
      }
    }
    rows.ahead = 0;  // fetched once
  }
  return channel;
}

template <int kRows, typename W, typename S, typename R>
INVOLUTION_INLINE void gather_rows(GatherRows<W, S> rows, int64_t channels, const ResultRows<R>& results) {
  // Groups of more channels than this have vectors along these.
  constexpr int kMost = 3 * kLanes<S> / 4;
  int64_t channel = 0;
  if constexpr (kMost >= 8) channel = gather_channels<kRows, 8>(rows, channel, channels, results);
  if constexpr (kMost >= 4) channel = gather_channels<kRows, 4>(rows, channel, channels, results);
  channel = gather_channels<kRows, 2>(rows, channel, channels, results);
  gather_channels<kRows, 1>(rows, channel, channels, results);
}

// The kernel values of some taps of one row, widened and dense, where they do not follow each other in
// memory.
template <typename T>
INVOLUTION_INLINE void stage_weights(const T* weights, int64_t stride, Tap* taps, int64_t count, int row,
                                     int64_t place, int64_t pitch, Sum<T>* staged) {
  for (int64_t t = 0; t < count;) {
    // Kernel points that lie side by side, and exist for the same results, move together.
    int64_t together = 1;
    while (t + together < count && taps[t + together].weight[row] - taps[t + together - 1].weight[row] == 1 &&
           taps[t + together].first == taps[t].first && taps[t + together].last == taps[t].last) {
      ++together;
    }
    const int64_t first = taps[t].first, last = taps[t].last;
    Sum<T>* to = staged + place + t * pitch;
    const T* from = weights + taps[t].weight[row] + first * stride;
    if (first < last) copy_in(from, 1, stride, to + first, pitch, together, last - first);
    for (int64_t i = 0; i < together; ++i) {
      // Zeros take the place of what does not exist; the source there is zero as well.
      for (int64_t j = 0; j < smaller(first, pitch); ++j) to[i * pitch + j] = 0;
      for (int64_t j = larger(0, last); j < pitch; ++j) to[i * pitch + j] = 0;
      taps[t + i].weight[row] = place + (t + i) * pitch;
    }
    t += together;
  }
}

template <typename T>
INVOLUTION_INLINE void stage_weights(const T* weights, int64_t stride, TapList& list, int64_t pitch,
                                     Sum<T>* staged) {
  int64_t place = 0;
  Tap* taps = list.taps;
  for (int64_t s = 0; s < list.stretch_count; ++s) {
    const Stretch& stretch = list.stretches[s];
    for (int row = 0; row < 2; ++row) {
      if ((stretch.rows >> row & 1) == 0) continue;
      stage_weights(weights, stride, taps, stretch.count, row, place, pitch, staged);
      place += stretch.count * pitch;
    }
    for (int64_t t = 0; t < stretch.count; ++t) {
      taps[t].first = 0;
      taps[t].last = pitch;
    }
    taps += stretch.count;
  }
}

// The results that begin at `to`.
template <typename T>
INVOLUTION_INLINE void gather_at(const Plan& plan, const Item& item, const Rows& at, TapList& list,
                                 const T* weights, T* to, unsigned char* scratch) {
  using S = Sum<T>;
  S* staged_weights = reinterpret_cast<S*>(scratch + plan.weight_offset);
  S* row_results = reinterpret_cast<S*>(scratch + plan.result_offset);
  const WeightStrides& weight_strides = plan.problem.w;
  const ActivationStrides& strides = plan.result_strides();
  const bool weights_in_place = weight_strides.space[kWidth] == 1;
  const bool results_in_place = strides.space[kWidth] == 1 && plan.axis[kWidth].phases == 1;

  list.collect(at);
  if (!weights_in_place) {
    stage_weights(weights, weight_strides.space[kWidth], list, plan.row_pitch, staged_weights);
  }
  GatherRows<T, S> rows{list.taps,
                        list.stretches,
                        list.stretch_count,
                        weights,
                        at.count * weight_strides.space[kHeight],
                        reinterpret_cast<const S*>(scratch),
                        plan.channel_pitch,
                        at.length,
                        0,
                        weights_in_place ? at.length : plan.row_pitch};
  for (int64_t t = 0; t < list.tap_count; ++t) {
    rows.all_from = larger(rows.all_from, list.taps[t].first);
    rows.all_to = smaller(rows.all_to, list.taps[t].last);
  }
  const auto run = [&](const auto& with, const auto& results) {
    if (at.count == 2) {
      gather_rows<2>(with, item.channels, results);
    } else {
      gather_rows<1>(with, item.channels, results);
    }
  };
  if (weights_in_place && results_in_place) {
    run(rows, ResultRows<T>{to, strides.channel, strides.space[kHeight]});
    return;
  }
  const ResultRows<S> results{row_results, plan.row_pitch, item.channels * plan.row_pitch};
  if (weights_in_place) {
    run(rows, results);
  } else {
    run(GatherRows<S, S>{rows.taps, rows.stretches, rows.stretch_count, staged_weights, 0, rows.source,
                         rows.source_pitch, rows.length, rows.all_from, rows.all_to},
        results);
  }
  for (int64_t row = 0; row < at.count; ++row) {
    copy_out(row_results + row * results.row_pitch, plan.row_pitch,
             to + row * strides.space[kHeight] + at.phase * strides.space[kWidth], strides.channel,
             strides.space[kWidth] * plan.axis[kWidth].phases, item.channels, at.length);
  }
}

template <typename T>
void gather_item(const Plan& plan, const Item& item, const Item* next, const T* source, const T* weights,
                 T* result, unsigned char* scratch) {
  stage(plan, item, source, reinterpret_cast<Sum<T>*>(scratch));
  FetchQueue ahead;
  expect_source(plan, next, source, ahead);
  ahead.start(item.count[kDepth] * item.count[kHeight]);
  TapList list(plan, item, scratch);
  const AxisPlan& width = plan.axis[kWidth];
  const ActivationStrides& strides = plan.result_strides();
  weights = group_weights(plan, item, weights);
  result = first_channel(plan, item, strides, result) + tile_offset(item, strides.space);

  for (int64_t d = 0; d < item.count[kDepth]; ++d) {
    int64_t together;
    for (int64_t h = 0; h < item.count[kHeight]; h += together) {
      together = plan.paired != 0 && h + 1 < item.count[kHeight] ? 2 : 1;
      T* to = result + d * strides.space[kDepth] + h * strides.space[kHeight];
      for (int64_t r = 0; r < together; ++r) ahead.step();
      for (int64_t phase = 0; phase < smaller(width.phases, item.count[kWidth]); ++phase) {
        const int64_t length = (item.count[kWidth] - phase + width.phases - 1) / width.phases;
        gather_at(plan, item, Rows{d, h, together, phase, length}, list, weights, to, scratch);
      }
    }
  }
}

}  // namespace involution::cpu::INVOLUTION_CPU_NAMESPACE
