// Local correlation: weight[tap, j] = sum over channels of query[c, j] * key[c, tap + j].
//
// The sums of some taps, of one row of results or of two that share their keys, lie in registers while the
// channels run: a vector of the query serves all of these taps, and a vector of the key both rows.
#pragma once

#include "item.h"

namespace involution::cpu::INVOLUTION_CPU_NAMESPACE {

// Taps at a time: eight multiply-adds under way hide each other's latency.
constexpr int kMostTaps = 8;
constexpr int kMostPairedTaps = kBlock / 2;

// Where the sums of a row go: to memory where they follow each other there, else to `sums`, one row of
// `pitch` for each tap, which also holds the sums of earlier channels.
template <typename T>
struct Correlation {
  const Sum<T>* query;  // rows of `pitch`, channel by channel and for each row of results
  int64_t query_row;
  const Sum<T>* key;
  int64_t key_pitch;
  int64_t channels;
  int64_t length;
  int64_t pitch;
  bool first;  // there are no earlier channels
  T* direct;   // or null
};

template <int kFirst, int kLast, int kTaps, typename T>
void correlate_taps(const Correlation<T>& all, const Tap* taps, Sum<T>* sums, int64_t sums_row) {
  using S = Sum<T>;
  constexpr int kRows = kLast - kFirst;
  for (int64_t j = 0; j < all.length; j += kLanes<T>) {
    Vector<S> sum[kRows][kTaps] = {};
    if (!all.first) {
#pragma GCC unroll 2
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
        for (int t = 0; t < kTaps; ++t) sum[r][t] = load(sums + (kFirst + r) * sums_row + t * all.pitch + j);
      }
    }
    const S* key[kTaps];
#pragma GCC unroll 8
    for (int t = 0; t < kTaps; ++t) key[t] = all.key + taps[t].source + j;
    const S* query = all.query + kFirst * all.query_row + j;
    int64_t offset = 0;
    for (int64_t c = 0; c < all.channels; ++c) {
      Vector<S> value[kRows];
#pragma GCC unroll 2
      for (int r = 0; r < kRows; ++r) value[r] = load(query + r * all.query_row);
#pragma GCC unroll 8
      for (int t = 0; t < kTaps; ++t) {
        Vector<S> other = load(key[t] + offset);
        if constexpr (kRows > 1) keep_in_register(other);
#pragma GCC unroll 2
        for (int r = 0; r < kRows; ++r) sum[r][t] += value[r] * other;
      }
      query += all.pitch;
      offset += all.key_pitch;
    }
#pragma GCC unroll 2
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int t = 0; t < kTaps; ++t) {
        if (all.direct != nullptr) {
          store_some(all.direct + taps[t].weight[kFirst + r] + j, sum[r][t], all.length - j);
        } else {
          store(sums + (kFirst + r) * sums_row + t * all.pitch + j, sum[r][t]);
        }
      }
    }
  }
}

// `count` taps, at most kTaps.
template <int kFirst, int kLast, int kTaps, typename T>
INVOLUTION_INLINE void correlate_some(const Correlation<T>& all, const Tap* taps, int64_t count, Sum<T>* sums,
                                      int64_t sums_row) {
  if constexpr (kTaps > 1) {
    if (count < kTaps) return correlate_some<kFirst, kLast, kTaps - 1>(all, taps, count, sums, sums_row);
  }
  correlate_taps<kFirst, kLast, kTaps>(all, taps, sums, sums_row);
}

// A stretch of taps, in parts as even as can be.
template <int kFirst, int kLast, typename T>
INVOLUTION_INLINE void correlate_stretch(const Correlation<T>& all, const Tap* taps, int64_t count,
                                         Sum<T>* sums, int64_t sums_row) {
  constexpr int kMost = kLast - kFirst == 1 ? kMostTaps : kMostPairedTaps;
  const int64_t parts = (count + kMost - 1) / kMost;
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t t = part * count / parts, end = (part + 1) * count / parts;
    correlate_some<kFirst, kLast, kMost>(all, taps + t, end - t, sums + t * all.pitch, sums_row);
  }
}

// The sums of one row of results, to kernel values that do not follow each other in memory.
template <typename T>
INVOLUTION_INLINE void write_sums(const TapList& list, int row, const Sum<T>* sums, int64_t pitch, T* weights,
                                  int64_t stride, int64_t length) {
  const Tap* const taps = list.taps;
  for (int64_t s = 0, begin = 0; s < list.stretch_count; begin += list.stretches[s++].count) {
    if ((list.stretches[s].rows >> row & 1) == 0) continue;
    const int64_t end = begin + list.stretches[s].count;
    for (int64_t t = begin; t < end;) {
      int64_t together = 1;
      while (t + together < end && taps[t + together].weight[row] - taps[t + together - 1].weight[row] == 1) {
        ++together;
      }
      copy_out(sums + t * pitch, pitch, weights + taps[t].weight[row], 1, stride, together, length);
      t += together;
    }
  }
}

template <typename T>
INVOLUTION_INLINE void correlate_at(const Plan& plan, const Item& item, const Rows& at, TapList& list,
                                    const T* query, T* weights, bool last, unsigned char* scratch) {
  using S = Sum<T>;
  S* sums = reinterpret_cast<S*>(scratch + plan.weight_offset);
  S* row_query = reinterpret_cast<S*>(scratch + plan.result_offset);
  const ActivationStrides& strides = plan.problem.y;
  const int64_t pitch = plan.row_pitch;
  const int64_t query_row = item.channels * pitch;
  const int64_t weight_stride = plan.problem.w.space[kWidth];
  for (int64_t row = 0; row < at.count; ++row) {
    S* to = row_query + row * query_row;
    for (int64_t c = 0; c < item.channels; ++c) {
      for (int64_t j = at.length; j < pitch; ++j) to[c * pitch + j] = 0;
    }
    copy_in(query + row * strides.space[kHeight], strides.channel, strides.space[kWidth], to, pitch,
            item.channels, at.length);
  }
  list.collect(at);
  const bool direct = last && weight_stride == 1;
  const Correlation<T> all{row_query,
                           query_row,
                           reinterpret_cast<const S*>(scratch),
                           plan.channel_pitch,
                           item.channels,
                           at.length,
                           pitch,
                           item.channel == 0,
                           direct ? weights : nullptr};
  // The second row's sums lie behind the first's; a tap of one row alone leaves its place in the other's
  // unused.
  const int64_t sums_row = list.tap_count * pitch;
  for (int64_t s = 0, t = 0; s < list.stretch_count; t += list.stretches[s++].count) {
    const Stretch& stretch = list.stretches[s];
    if (stretch.rows == 3) {
      correlate_stretch<0, 2>(all, list.taps + t, stretch.count, sums + t * pitch, sums_row);
    } else if (stretch.rows == 1) {
      correlate_stretch<0, 1>(all, list.taps + t, stretch.count, sums + t * pitch, sums_row);
    } else {
      correlate_stretch<1, 2>(all, list.taps + t, stretch.count, sums + t * pitch, sums_row);
    }
  }
  if (!last || direct) return;
  for (int row = 0; row < at.count; ++row) {
    write_sums(list, row, sums + row * sums_row, pitch, weights, weight_stride, at.length);
  }
}

template <typename T>
void correlate_item(const Plan& plan, Item& item, const T* query, const T* key, T* weights,
                    unsigned char* scratch) {
  TapList list(plan, item, scratch);
  const ActivationStrides& strides = plan.problem.y;
  weights += item.batch * plan.problem.w.batch + item.group * plan.problem.w.group;
  query += item.batch * strides.batch + item.group * plan.problem.channels_per_group * strides.channel;
  for (int axis = 0; axis < 3; ++axis) query += item.first[axis] * strides.space[axis];

  for (int64_t block = 0; block < plan.channel_blocks; ++block) {
    set_channels(plan, block, item);
    stage(plan, item, key, reinterpret_cast<Sum<T>*>(scratch));
    for (int64_t d = 0; d < item.count[kDepth]; ++d) {
      int64_t together;
      for (int64_t h = 0; h < item.count[kHeight]; h += together) {
        together = plan.paired != 0 && h + 1 < item.count[kHeight] ? 2 : 1;
        const T* from =
            query + item.channel * strides.channel + d * strides.space[kDepth] + h * strides.space[kHeight];
        correlate_at(plan, item, Rows{d, h, together, 0, item.count[kWidth]}, list, from, weights,
                     block == plan.channel_blocks - 1, scratch);
      }
    }
  }
}

}  // namespace involution::cpu::INVOLUTION_CPU_NAMESPACE
