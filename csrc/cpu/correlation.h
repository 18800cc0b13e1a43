// Local correlation: weight[tap, j] = sum over channels of query[c, j] * key[c, tap + j].
//
// The sums of some taps, of one row of results or of two that share their keys, lie in registers while the
// channels run: a vector of the query serves all of these taps, and a vector of the key both rows.
#pragma once

#include "item.h"

namespace involution::cpu::INVOLUTION_CPU_NAMESPACE {

// Taps at a time: eight multiply-adds under way hide each other's latency.
constexpr int kMostTaps = 8;
constexpr int64_t kShortRow = 32;
constexpr int kMostPairedTaps = kRegisters < 32 ? (kRegisters - 4) / 2 : kMostTaps;

// Where the sums of a row go: to memory where they follow each other there, else to `sums`, one row of
// `pitch` for each tap, which also holds the sums of earlier channels.
template <typename T>
struct Correlation {
  using S = Sum<T>;
  const S* query;       // read in whole vectors
  int64_t query_pitch;  // from channel to channel
  int64_t query_row;    // and from row to row of results
  const S* key;
  int64_t key_pitch;
  int64_t channels;
  int64_t length;
  int64_t pitch;
  bool first;         // there are no earlier channels
  T* direct;          // or null
  int64_t ahead;      // from `direct` to the rows after these
  int64_t first_row;  // 1 if the second row alone is computed
};

// The results from j on that a vector holds, of kRows rows: the first, the second, or both.
template <int kRows, int kTaps, typename V, typename T>
INVOLUTION_INLINE void correlate_vector(const Correlation<T>& all, const Tap* taps, Sum<T>* sums,
                                        int64_t sums_row, int64_t j) {
  using S = Sum<T>;
  const int64_t first_row = kRows == 1 ? all.first_row : 0;
  V sum[kRows][kTaps] = {};
  if (!all.first) {
#pragma GCC unroll 2
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int t = 0; t < kTaps; ++t)
        sum[r][t] = load_as<V>(sums + (first_row + r) * sums_row + t * all.pitch + j);
    }
  }
  const S* key[kTaps];
#pragma GCC unroll 8
  for (int t = 0; t < kTaps; ++t) {
    key[t] = all.key + taps[t].source + j;
    if (all.direct == nullptr) continue;
#pragma GCC unroll 2
    for (int r = 0; r < kRows; ++r) expect_line(all.direct + taps[t].weight[first_row + r] + j + all.ahead);
  }
  const S* query = all.query + first_row * all.query_row + j;
  int64_t offset = 0;
  for (int64_t c = 0; c < all.channels; ++c) {
    V value[kRows];
#pragma GCC unroll 2
    for (int r = 0; r < kRows; ++r) value[r] = load_as<V>(query + r * all.query_row);
#pragma GCC unroll 8
    for (int t = 0; t < kTaps; ++t) {
      V other = load_as<V>(key[t] + offset);
      if constexpr (kRows > 1) keep_in_register(other);
#pragma GCC unroll 2
      for (int r = 0; r < kRows; ++r) sum[r][t] += value[r] * other;
    }
    query += all.query_pitch;
    offset += all.key_pitch;
  }
#pragma GCC unroll 2
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int t = 0; t < kTaps; ++t) {
      if (all.direct != nullptr) {
        store_narrowed(all.direct + taps[t].weight[first_row + r] + j, sum[r][t], all.length - j);
      } else {
        store_as(sums + (first_row + r) * sums_row + t * all.pitch + j, sum[r][t], all.pitch - j);
      }
    }
  }
}

template <int kRows, int kTaps, typename T>
void correlate_taps(const Correlation<T>& all, const Tap* taps, Sum<T>* sums, int64_t sums_row) {
  using S = Sum<T>;
  for (int64_t j = 0; j < all.length; j += kLanes<S>) {
    if (kHasHalves && 2 * (all.length - j) <= kLanes<S>) {
      correlate_vector<kRows, kTaps, HalfVector<S>>(all, taps, sums, sums_row, j);
    } else {
      correlate_vector<kRows, kTaps, Vector<S>>(all, taps, sums, sums_row, j);
    }
  }
}

// `count` taps, at most kTaps.
template <int kRows, int kTaps, typename T>
INVOLUTION_INLINE void correlate_some(const Correlation<T>& all, const Tap* taps, int64_t count, Sum<T>* sums,
                                      int64_t sums_row) {
  if constexpr (kTaps > 1) {
    if (count < kTaps) return correlate_some<kRows, kTaps - 1>(all, taps, count, sums, sums_row);
  }
  correlate_taps<kRows, kTaps>(all, taps, sums, sums_row);
}

// A stretch of taps, in parts as even as can be.
template <int kRows, typename T>
INVOLUTION_INLINE void correlate_stretch(const Correlation<T>& all, const Tap* taps, int64_t count,
                                         Sum<T>* sums, int64_t sums_row) {
  constexpr int kMost = kRows == 1 ? kMostTaps : kMostPairedTaps;
  const int64_t parts = (count + kMost - 1) / kMost;
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t t = part * count / parts, end = (part + 1) * count / parts;
    correlate_some<kRows, kMost>(all, taps + t, end - t, sums + t * all.pitch, sums_row);
  }
}

// Calls visit(first tap, taps) for the taps of one row of results whose kernel values lie side by side.
template <typename Visit>
INVOLUTION_INLINE void for_each_run(const TapList& list, int row, const Visit& visit) {
  const Tap* const taps = list.taps;
  int64_t begin = 0, count = 0;
  for (int64_t s = 0, t = 0; s < list.stretch_count; ++s) {
    const int64_t end = t + list.stretches[s].count;
    if ((list.stretches[s].rows >> row & 1) == 0) {
      t = end;
      continue;
    }
    for (; t < end; ++t) {
      if (count > 0 && (t != begin + count || taps[t].weight[row] - taps[t - 1].weight[row] != 1)) {
        visit(begin, count);
        count = 0;
      }
      if (count++ == 0) begin = t;
    }
  }
  if (count > 0) visit(begin, count);
}

// The lines of the cache that write_sums will write to; so many stores would wait for them one by one.
template <typename T>
INVOLUTION_INLINE void expect_weights(const TapList& list, int row, const T* weights, int64_t stride,
                                      int64_t length) {
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T));
  for_each_run(list, row, [&](int64_t t, int64_t count) {
    const T* first = weights + list.taps[t].weight[row];
    for (int64_t j = 0; j < length; ++j) {
      for (int64_t i = 0; i < count + kLine - 1; i += kLine)
        expect_line(first + j * stride + smaller(i, count - 1));
    }
  });
}

// The sums of one row of results, to kernel values that do not follow each other in memory.
template <typename T>
INVOLUTION_INLINE void write_sums(const TapList& list, int row, const Sum<T>* sums, int64_t pitch, T* weights,
                                  int64_t stride, int64_t length) {
  for_each_run(list, row, [&](int64_t t, int64_t count) {
    copy_out(sums + t * pitch, pitch, weights + list.taps[t].weight[row], 1, stride, count, length);
  });
}

// `key` and `weights` are those of the rows at hand; the list's taps begin there.
template <typename T>
INVOLUTION_INLINE void correlate_at(const Plan& plan, const Item& item, int64_t rows, const TapList& list,
                                    const T* query, const T* query_end, const Sum<T>* key, T* weights,
                                    bool last, unsigned char* scratch) {
  using S = Sum<T>;
  S* sums = reinterpret_cast<S*>(scratch + plan.weight_offset);
  S* row_query = reinterpret_cast<S*>(scratch + plan.result_offset);
  const ActivationStrides& strides = plan.problem.y;
  const WeightStrides& weight_strides = plan.problem.w;
  const int64_t pitch = plan.row_pitch;
  const int64_t weight_stride = weight_strides.space[kWidth];
  const int64_t length = item.count[kWidth];
  const S* in_place = nullptr;
  if constexpr (sizeof(T) == sizeof(S)) {
    // Long rows are read at once, and found in the cache. The last vector may read what follows a row, but
    // nothing outside of the tensor.
    const int64_t last_row = (rows - 1) * strides.space[kHeight] + (item.channels - 1) * strides.channel;
    if (strides.space[kWidth] == 1 && length <= kShortRow && query_end - query >= last_row + pitch)
      in_place = query;
  }
  const int64_t query_pitch = in_place != nullptr ? strides.channel : pitch;
  const int64_t query_row = in_place != nullptr ? strides.space[kHeight] : item.channels * pitch;
  for (int64_t row = 0; in_place == nullptr && row < rows; ++row) {
    S* to = row_query + row * query_row;
    for (int64_t c = 0; c < item.channels; ++c) {
      for (int64_t j = length; j < pitch; ++j) to[c * pitch + j] = 0;
    }
    copy_in(query + row * strides.space[kHeight], strides.channel, strides.space[kWidth], to, pitch,
            item.channels, length);
  }
  T* const direct = last && weight_stride == 1 ? weights : nullptr;
  Correlation<T> all{in_place != nullptr ? in_place : row_query,
                     query_pitch,
                     query_row,
                     key,
                     plan.channel_pitch,
                     item.channels,
                     length,
                     pitch,
                     item.channel == 0,
                     direct,
                     rows * weight_strides.space[kHeight],
                     0};
  if (last && weight_stride != 1) {
    for (int row = 0; row < rows; ++row) expect_weights(list, row, weights, weight_stride, length);
  }
  // The second row's sums lie behind the first's; a tap of one row alone leaves its place in the other's
  // unused.
  const int64_t sums_row = list.tap_count * pitch;
  for (int64_t s = 0, t = 0; s < list.stretch_count; t += list.stretches[s++].count) {
    const Stretch& stretch = list.stretches[s];
    all.first_row = stretch.rows == 2 ? 1 : 0;
    if (stretch.rows == 3) {
      correlate_stretch<2>(all, list.taps + t, stretch.count, sums + t * pitch, sums_row);
    } else {
      correlate_stretch<1>(all, list.taps + t, stretch.count, sums + t * pitch, sums_row);
    }
  }
  if (!last || direct != nullptr) return;
  for (int row = 0; row < rows; ++row) {
    write_sums(list, row, sums + row * sums_row, pitch, weights, weight_stride, length);
  }
}

template <typename T>
void correlate_item(const Plan& plan, Item& item, const Item* next, const T* query, const T* key, T* weights,
                    unsigned char* scratch) {
  FetchQueue ahead;
  expect_source(plan, next, key, ahead);
  ahead.start(item.count[kDepth] * item.count[kHeight]);
  TapList list(plan, item, scratch);
  const ActivationStrides& strides = plan.problem.y;
  const WeightStrides& weight_strides = plan.problem.w;
  Sum<T>* staged = reinterpret_cast<Sum<T>*>(scratch);
  weights = group_weights(plan, item, weights);
  const T* const query_end = query + plan.query_extent;
  query = first_channel(plan, item, strides, query) + tile_offset(item, strides.space);

  for (int64_t block = 0; block < plan.channel_blocks; ++block) {
    set_channels(plan, block, item);
    stage(plan, item, key, staged);
    // All rows meet the taps of the first, moved by as many rows.
    int64_t collected = 0;
    for (int64_t d = 0; d < item.count[kDepth]; ++d) {
      int64_t together;
      for (int64_t h = 0; h < item.count[kHeight]; h += together) {
        together = plan.paired != 0 && h + 1 < item.count[kHeight] ? 2 : 1;
        if (together != collected) list.collect(Rows{0, 0, together, 0, item.count[kWidth]});
        collected = together;
        const T* from =
            query + item.channel * strides.channel + d * strides.space[kDepth] + h * strides.space[kHeight];
        for (int64_t r = 0; r < together; ++r) {
          ahead.step();
          expect(from + (together + r) * strides.space[kHeight], strides, item.count[kWidth], item.channels);
        }
        correlate_at(plan, item, together, list, from, query_end,
                     staged + (d * plan.axis[kHeight].slots + h) * plan.axis[kWidth].slots,
                     weights + d * weight_strides.space[kDepth] + h * weight_strides.space[kHeight],
                     block == plan.channel_blocks - 1, scratch);
      }
    }
  }
}

}  // namespace involution::cpu::INVOLUTION_CPU_NAMESPACE
