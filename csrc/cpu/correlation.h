// Local correlation: weight[tap, j] = sum over channels of query[c, j] * key[c, tap + j].
//
// The sums of some taps lie in registers while the channels run; a vector of the query serves all of them.
#pragma once

#include "item.h"

namespace involution::cpu::INVOLUTION_CPU_NAMESPACE {

constexpr int kMostTaps = 8;

// Vectors of query and key that follow each other by their pitches, channel by channel.
template <typename S>
struct Operands {
  const S* query;
  int64_t query_pitch;
  const S* key;
  int64_t key_pitch;
  int64_t channels;
};

// `before` holds the sums of earlier channels, or is null; a row of sums for each tap is `pitch` long.
template <int kTaps, typename S, typename Store>
INVOLUTION_INLINE void correlate_taps(const Operands<S>& operands, const Tap* taps, int64_t j,
                                      const S* before, int64_t pitch, const Store& store_sum) {
  Vector<S> sums[kTaps];
  int64_t offsets[kTaps];
#pragma GCC unroll 8
  for (int t = 0; t < kTaps; ++t) {
    sums[t] = before == nullptr ? Vector<S>{} : load(before + t * pitch + j);
    offsets[t] = taps[t].source + j;
  }
  const S* key = operands.key;
  const S* query = operands.query + j;
  for (int64_t c = 0; c < operands.channels; ++c) {
    const Vector<S> value = load(query);
#pragma GCC unroll 8
    for (int t = 0; t < kTaps; ++t) sums[t] += value * load(key + offsets[t]);
    query += operands.query_pitch;
    key += operands.key_pitch;
  }
#pragma GCC unroll 8
  for (int t = 0; t < kTaps; ++t) store_sum(t, sums[t]);
}

// All taps of a row. Results go to memory where they follow each other there, else to `sums`.
template <int kTaps, typename T>
void correlate_row(const Operands<Sum<T>>& operands, const Tap* taps, int64_t length, bool first,
                   Sum<T>* sums, int64_t pitch, T* direct) {
  for (int64_t j = 0; j < length; j += kLanes<T>) {
    const Sum<T>* before = first ? nullptr : sums;
    if (direct != nullptr) {
      correlate_taps<kTaps>(operands, taps, j, before, pitch, [&](int t, Vector<T> value) {
        store_some(direct + taps[t].weight + j, value, length - j);
      });
    } else {
      correlate_taps<kTaps>(operands, taps, j, before, pitch,
                            [&](int t, Vector<T> value) { store(sums + t * pitch + j, value); });
    }
  }
}

template <typename T>
INVOLUTION_INLINE void correlate_some(int64_t count, const Operands<Sum<T>>& operands, const Tap* taps,
                                      int64_t length, bool first, Sum<T>* sums, int64_t pitch, T* direct) {
  switch (count) {
    case 1:
      return correlate_row<1>(operands, taps, length, first, sums, pitch, direct);
    case 2:
      return correlate_row<2>(operands, taps, length, first, sums, pitch, direct);
    case 3:
      return correlate_row<3>(operands, taps, length, first, sums, pitch, direct);
    case 4:
      return correlate_row<4>(operands, taps, length, first, sums, pitch, direct);
    case 5:
      return correlate_row<5>(operands, taps, length, first, sums, pitch, direct);
    case 6:
      return correlate_row<6>(operands, taps, length, first, sums, pitch, direct);
    case 7:
      return correlate_row<7>(operands, taps, length, first, sums, pitch, direct);
    default:
      return correlate_row<8>(operands, taps, length, first, sums, pitch, direct);
  }
}

template <typename T>
void correlate_item(const Plan& plan, Item& item, const T* query, const T* key, T* weights,
                    unsigned char* scratch) {
  using S = Sum<T>;
  S* staged = reinterpret_cast<S*>(scratch);
  S* sums = reinterpret_cast<S*>(scratch + plan.weight_offset);
  S* row_query = reinterpret_cast<S*>(scratch + plan.result_offset);
  Tap* taps = reinterpret_cast<Tap*>(scratch + plan.tap_offset);

  const WeightStrides& weight_strides = plan.problem.w;
  const ActivationStrides& strides = plan.problem.y;
  const int64_t group_channel = item.group * plan.problem.channels_per_group;
  weights += item.batch * weight_strides.batch + item.group * weight_strides.group;
  query += item.batch * strides.batch + group_channel * strides.channel;
  const bool in_place = weight_strides.space[kWidth] == 1;
  const int64_t length = item.count[kWidth];
  const int64_t pitch = plan.row_pitch;
  // As even parts of at most kMostTaps as there are.
  const int64_t parts = (plan.points + kMostTaps - 1) / kMostTaps;

  for (int64_t block = 0; block < plan.channel_blocks; ++block) {
    set_channels(plan, block, item);
    stage(plan, item, key, staged);
    const bool last = block == plan.channel_blocks - 1;
    for (int64_t d = 0; d < item.count[kDepth]; ++d) {
      for (int64_t h = 0; h < item.count[kHeight]; ++h) {
        const T* from =
            query + item.channel * strides.channel + (item.first[kDepth] + d) * strides.space[kDepth] +
            (item.first[kHeight] + h) * strides.space[kHeight] + item.first[kWidth] * strides.space[kWidth];
        for (int64_t c = 0; c < item.channels; ++c) {
          for (int64_t j = length; j < pitch; ++j) row_query[c * pitch + j] = 0;
        }
        copy_in(from, strides.channel, strides.space[kWidth], row_query, pitch, item.channels, length);
        collect_taps(plan, item, d, h, 0, length, taps);
        const Operands<S> operands{row_query, pitch, staged, plan.channel_pitch, item.channels};
        for (int64_t part = 0; part < parts; ++part) {
          const int64_t t = part * plan.points / parts, end = (part + 1) * plan.points / parts;
          correlate_some(end - t, operands, taps + t, length, block == 0, sums + t * pitch, pitch,
                         last && in_place ? weights : nullptr);
        }
        if (!last || in_place) continue;
        for (int64_t t = 0; t < plan.points;) {
          int64_t together = 1;
          while (t + together < plan.points &&
                 taps[t + together].weight - taps[t + together - 1].weight == 1) {
            ++together;
          }
          copy_out(sums + t * pitch, pitch, weights + taps[t].weight, 1, weight_strides.space[kWidth],
                   together, length);
          t += together;
        }
      }
    }
  }
}

}  // namespace involution::cpu::INVOLUTION_CPU_NAMESPACE
