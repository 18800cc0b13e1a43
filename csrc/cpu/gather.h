// Involution and its transpose: result[c, j] = sum over taps of weight[tap, j] * source[c, tap + j].
//
// A block of sums lies in registers: some channels by some vectors along the row. Each vector of kernel
// values is loaded once for all channels of the block.
#pragma once

#include "item.h"

namespace involution::cpu::INVOLUTION_CPU_NAMESPACE {

// One row of results of one phase, and what it is made of.
template <typename W, typename S>
struct GatherRow {
  const Tap* taps;
  int64_t tap_count;
  const W* weights;
  int64_t ahead;  // to the kernel values that the next row will read
  const S* source;
  int64_t source_pitch;
  int64_t length;
  int64_t all_from, all_to;  // results for which every tap has a kernel value
};

template <int kChannels, int kVectors, bool kAll, typename W, typename S, typename R>
INVOLUTION_INLINE void gather_block(const GatherRow<W, S>& row, int64_t channel, int64_t j, R* result,
                                    int64_t result_pitch) {
  constexpr int L = kLanes<S>;
  Vector<S> sums[kChannels][kVectors] = {};
  for (int64_t t = 0; t < row.tap_count; ++t) {
    const Tap& tap = row.taps[t];
    const W* weights = row.weights + tap.weight + j;
    __builtin_prefetch(weights + row.ahead);
    Vector<S> weight[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      if constexpr (kAll) {
        weight[v] = load(weights + v * L);
      } else {
        const int64_t first = larger(0, tap.first - j - v * L), last = smaller(L, tap.last - j - v * L);
        weight[v] = last <= first ? Vector<S>{} : load_lanes(weights + v * L, first, last);
      }
    }
    const S* source = row.source + channel * row.source_pitch + tap.source + j;
#pragma GCC unroll 16
    for (int c = 0; c < kChannels; ++c) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sums[c][v] += weight[v] * load(source + v * L);
      source += row.source_pitch;
    }
  }
#pragma GCC unroll 16
  for (int c = 0; c < kChannels; ++c) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      store_some(result + (channel + c) * result_pitch + j + v * L, sums[c][v], row.length - j - v * L);
    }
  }
}

// The row's channels from `channel` on, kChannels at a time while there are so many; returns the next one.
template <int kChannels, typename W, typename S, typename R>
int64_t gather_channels(const GatherRow<W, S>& row, int64_t channel, int64_t channels, R* result,
                        int64_t result_pitch) {
  constexpr int L = kLanes<S>;
  constexpr int kVectors = kBlock / kChannels < 4 ? kBlock / kChannels : 4;
  for (; channel + kChannels <= channels; channel += kChannels) {
    int64_t j = 0;
    while (j < row.length) {
      if (j < row.all_from || j + L > row.all_to) {
        gather_block<kChannels, 1, false>(row, channel, j, result, result_pitch);
        j += L;
      } else if (kVectors > 1 && j + kVectors * L <= row.all_to) {
        gather_block<kChannels, kVectors, true>(row, channel, j, result, result_pitch);
        j += kVectors * L;
      } else {
        gather_block<kChannels, 1, true>(row, channel, j, result, result_pitch);
        j += L;
      }
    }
  }
  return channel;
}

template <typename W, typename S, typename R>
INVOLUTION_INLINE void gather_row(const GatherRow<W, S>& row, int64_t channels, R* result,
                                  int64_t result_pitch) {
  int64_t channel = 0;
  if constexpr (kBlock >= 16) channel = gather_channels<16>(row, channel, channels, result, result_pitch);
  channel = gather_channels<8>(row, channel, channels, result, result_pitch);
  channel = gather_channels<4>(row, channel, channels, result, result_pitch);
  channel = gather_channels<2>(row, channel, channels, result, result_pitch);
  gather_channels<1>(row, channel, channels, result, result_pitch);
}

// The kernel values of a row, widened and dense, where they do not follow each other in memory.
template <typename T>
INVOLUTION_INLINE void stage_weights(const T* weights, const WeightStrides& strides, Tap* taps, int64_t count,
                                     int64_t pitch, int64_t length, Sum<T>* staged) {
  for (int64_t t = 0; t < count;) {
    // Taps that are evenly spaced in memory, and exist for the same results, move together.
    int64_t together = 1;
    while (t + together < count && taps[t + together].weight - taps[t + together - 1].weight == 1 &&
           taps[t + together].first == taps[t].first && taps[t + together].last == taps[t].last) {
      ++together;
    }
    const int64_t first = taps[t].first, last = taps[t].last;
    Sum<T>* to = staged + t * pitch;
    const T* from = weights + taps[t].weight + first * strides.space[kWidth];
    if (first < last) copy_in(from, 1, strides.space[kWidth], to + first, pitch, together, last - first);
    for (int64_t i = t; i < t + together; ++i) {
      // Zeros take the place of what does not exist; the source there is zero as well.
      for (int64_t j = 0; j < smaller(first, length); ++j) staged[i * pitch + j] = 0;
      for (int64_t j = larger(0, last); j < pitch; ++j) staged[i * pitch + j] = 0;
      taps[i] = Tap{i * pitch, taps[i].source, 0, pitch};
    }
    t += together;
  }
}

template <typename T>
void gather_item(const Plan& plan, const Item& item, const T* weights, T* result, unsigned char* scratch) {
  using S = Sum<T>;
  const S* staged = reinterpret_cast<const S*>(scratch);
  S* staged_weights = reinterpret_cast<S*>(scratch + plan.weight_offset);
  S* row_results = reinterpret_cast<S*>(scratch + plan.result_offset);
  Tap* taps = reinterpret_cast<Tap*>(scratch + plan.tap_offset);

  const AxisPlan& width = plan.axis[kWidth];
  const WeightStrides& weight_strides = plan.problem.w;
  const ActivationStrides& strides = plan.result_strides();
  const int64_t channel = item.group * plan.problem.channels_per_group + item.channel;
  weights += item.batch * weight_strides.batch + item.group * weight_strides.group;
  result += item.batch * strides.batch + channel * strides.channel;
  const bool weights_in_place = weight_strides.space[kWidth] == 1;
  const bool results_in_place = strides.space[kWidth] == 1 && width.phases == 1;

  for (int64_t d = 0; d < item.count[kDepth]; ++d) {
    for (int64_t h = 0; h < item.count[kHeight]; ++h) {
      T* to = result + (item.first[kDepth] + d) * strides.space[kDepth] +
              (item.first[kHeight] + h) * strides.space[kHeight] + item.first[kWidth] * strides.space[kWidth];
      for (int64_t phase = 0; phase < smaller(width.phases, item.count[kWidth]); ++phase) {
        const int64_t length = (item.count[kWidth] - phase + width.phases - 1) / width.phases;
        const int64_t count = collect_taps(plan, item, d, h, phase, length, taps);
        if (!weights_in_place) {
          stage_weights(weights, weight_strides, taps, count, plan.row_pitch, length, staged_weights);
        }
        int64_t all_from = 0, all_to = weights_in_place ? length : plan.row_pitch;
        for (int64_t t = 0; t < count; ++t) {
          all_from = larger(all_from, taps[t].first);
          all_to = smaller(all_to, taps[t].last);
        }
        const auto run = [&](const auto* row_weights, int64_t ahead, auto* out, int64_t pitch) {
          using W = typename Pointee<decltype(row_weights)>::type;
          const GatherRow<W, S> row{taps,   count,    row_weights, ahead, staged, plan.channel_pitch,
                                    length, all_from, all_to};
          gather_row(row, item.channels, out, pitch);
        };
        const int64_t ahead = weight_strides.space[kHeight];
        if (weights_in_place && results_in_place) {
          run(weights, ahead, to, strides.channel);
          continue;
        }
        if (weights_in_place) {
          run(weights, ahead, row_results, plan.row_pitch);
        } else {
          run(static_cast<const S*>(staged_weights), 0, row_results, plan.row_pitch);
        }
        copy_out(row_results, plan.row_pitch, to + phase * strides.space[kWidth], strides.channel,
                 strides.space[kWidth] * width.phases, item.channels, length);
      }
    }
  }
}

}  // namespace involution::cpu::INVOLUTION_CPU_NAMESPACE
