// Local correlation with vectors of quads, 16 bytes that hold a few channels of one position:
//
//   weight[j, tap] = sum over channels of query[j, c] * key[tap + j, c]
//
// A vector has as many positions that follow each other as it has quads. Products are summed over the quads
// of a position first, and then within each quad, for as many kernel points together as a quad has elements:
// their sums end up side by side, one quad for each position, and no element ever leaves its quad. Nothing
// depends on how wide the map is, and where the kernel points are innermost in memory the sums go there as
// they are.
#pragma once

#include "item.h"

namespace involution::cpu::INVOLUTION_CPU_NAMESPACE {

// Sums of neighbours within every quad, those of `a` in front of those of `b`.
template <int kSize, typename V, int... kLane>
INVOLUTION_INLINE V add_neighbours(V a, V b, LaneList<kLane...>) {
  constexpr int kAll = sizeof...(kLane), kHalf = kSize / 2;
  return shuffle<V, (kLane / kSize * kSize + kLane % kHalf * 2 + (kLane % kSize < kHalf ? 0 : kAll))...>(a,
                                                                                                         b) +
         shuffle<V, (kLane / kSize * kSize + kLane % kHalf * 2 + (kLane % kSize < kHalf ? 1 : kAll + 1))...>(
             a, b);
}

// Element i of every quad of the result is the sum of that quad of sums[i].
template <int kSize, typename V>
INVOLUTION_INLINE V fold(const V* sums) {
  using Lanes = typename MakeLaneList<kQuads * kSize>::type;
  if constexpr (kSize == 2) {
    return add_neighbours<kSize>(sums[0], sums[1], Lanes{});
  } else {
    const V front = add_neighbours<kSize>(sums[0], sums[1], Lanes{});
    const V back = add_neighbours<kSize>(sums[2], sums[3], Lanes{});
    return add_neighbours<kSize>(front, back, Lanes{});
  }
}

// A row of results. Quad q of position j lies at j*kQuad + q*step.
template <typename S>
struct QuadRow {
  const S* query;
  int64_t query_step;
  const S* key;  // the pixel that the first result and the first kernel point meet
  int64_t key_step;
  int64_t quads;
  const int64_t* taps;  // from there to those of the other kernel points
  int64_t points;
  int64_t length;
};

// The pixels of the query that one vector of results has. They stay in registers if there are few: kPixel is
// their number of quads then, or else 0.
template <int kPixel, typename S>
struct QueryPixels {
  explicit INVOLUTION_INLINE QueryPixels(const S* from, int64_t step) : from_(from), step_(step) {
#pragma GCC unroll 4
    for (int q = 0; q < kPixel; ++q) held_[q] = load(from + q * step);
  }
  INVOLUTION_INLINE Vector<S> operator[](int64_t quad) const {
    if constexpr (kPixel > 0) {
      return held_[quad];
    } else {
      return load(from_ + quad * step_);
    }
  }

 private:
  Vector<S> held_[kPixel > 0 ? kPixel : 1];
  const S* from_;
  int64_t step_;
};

// The results of one vector, of which the first `count` exist, for kTaps kernel points. The sums advance
// together: one after the other they would wait for each other's latency.
template <int kTaps, int kPixel, typename S, typename R>
INVOLUTION_INLINE void correlate_taps(const QuadRow<S>& row, const QueryPixels<kPixel, S>& query,
                                      const S* key, const int64_t* taps, int64_t count, R* to,
                                      int64_t pitch) {
  using V = Vector<S>;
  constexpr int E = kQuad<S>;
  const int64_t quads = kPixel == 0 ? row.quads : kPixel, step = row.key_step;
  V sum[kTaps];
#pragma GCC unroll 8
  for (int t = 0; t < kTaps; ++t) sum[t] = query[0] * load(key + taps[t]);
#pragma GCC unroll 4
  for (int64_t q = 1; q < quads; ++q) {
    key += step;
#pragma GCC unroll 8
    for (int t = 0; t < kTaps; ++t) sum[t] += query[q] * load(key + taps[t]);
  }
  if constexpr (kTaps >= E) {
#pragma GCC unroll 4
    for (int t = 0; t < kTaps; t += E) store_apart(to + t, pitch, fold<E>(sum + t), count);
  } else {
    V sums[E];
#pragma GCC unroll 4
    for (int t = 0; t < E; ++t) sums[t] = sum[t < kTaps ? t : kTaps - 1];
    R lanes[kLanes<S>];
    store(lanes, fold<E>(sums));
    for (int64_t p = 0; p < count; ++p) {
#pragma GCC unroll 4
      for (int t = 0; t < kTaps; ++t) to[p * pitch + t] = lanes[p * E + t];
    }
  }
}

// The results of one vector, of which the first `count` exist.
template <int kPixel, typename S, typename R>
INVOLUTION_INLINE void correlate_vector(const QuadRow<S>& row, int64_t j, int64_t count, R* to,
                                        int64_t pitch) {
  const QueryPixels<kPixel, S> query(row.query + j * kQuad<S>, row.query_step);
  const S* key = row.key + j * kQuad<S>;
  int64_t t = 0;
  for (; t + 8 <= row.points; t += 8)
    correlate_taps<8, kPixel>(row, query, key, row.taps + t, count, to + t, pitch);
  const int64_t left = row.points - t;
  if (left & 4) correlate_taps<4, kPixel>(row, query, key, row.taps + t, count, to + t, pitch);
  t += left & 4;
  if (left & 2) correlate_taps<2, kPixel>(row, query, key, row.taps + t, count, to + t, pitch);
  t += left & 2;
  if (left & 1) correlate_taps<1, kPixel>(row, query, key, row.taps + t, count, to + t, pitch);
}

template <int kPixel, typename S, typename R>
void correlate_row(const QuadRow<S>& row, R* to, int64_t pitch) {
  for (int64_t j = 0; j < row.length; j += kQuads)
    correlate_vector<kPixel>(row, j, smaller(kQuads, row.length - j), to + j * pitch, pitch);
}

template <typename S>
INVOLUTION_INLINE void zero_quads(S* to, int64_t count) {
  const Quad none = {};
  for (int64_t i = 0; i < count; ++i) __builtin_memcpy(to + i * kQuad<S>, &none, sizeof none);
}

// to[q*to_step + i*kQuad + e] = from[i*stride + (q*kQuad + e)*channel_stride]: `count` positions as quads, of
// which the last is filled up with zeros.
template <typename T>
INVOLUTION_INLINE void copy_quads(const T* from, int64_t stride, int64_t channel_stride, int64_t count,
                                  int64_t channels, Sum<T>* to, int64_t to_step) {
  using S = Sum<T>;
  constexpr int E = kQuad<S>;
  for (int64_t c = 0; c < channels; c += E, to += to_step) {
    const T* quad = from + c * channel_stride;
    const int64_t some = smaller(E, channels - c);
    if (some == E && stride == 1) {
      copy_rows_to_quads(quad, channel_stride, to, count);
      continue;
    }
    for (int64_t i = 0; i < count; ++i) {
      if (some == E && channel_stride == 1) {
        load_quad(quad + i * stride, to + i * E);
        continue;
      }
      for (int64_t e = 0; e < E; ++e)
        to[i * E + e] = e < some ? load_one(quad + i * stride + e * channel_stride) : S{};
    }
  }
}

// The key that an item's results meet: for every group, row of slots and quad a row of these.
template <typename T>
void stage_quads(const Plan& plan, const Item& item, const T* source, Sum<T>* staged) {
  constexpr int E = kQuad<Sum<T>>;
  const AxisPlan& width = plan.axis[kWidth];
  const ActivationStrides& strides = plan.source_strides();
  const int64_t step = width.slots * E, row_pitch = plan.quads * step;
  const int64_t group_stride = plan.problem.channels_per_group * strides.channel;
  const int64_t shift = item.tile[kWidth] * width.shift;
  source += item.batch * strides.batch + item.group * group_stride;
  for_each_row(plan, item, [&](int64_t row, bool exists, int64_t d, int64_t h) {
    for (int64_t g = 0; g < item.groups; ++g) {
      Sum<T>* to = staged + g * plan.group_pitch + row * row_pitch;
      if (!exists) {
        zero_quads(to, plan.quads * width.slots);
        continue;
      }
      const T* from = source + g * group_stride + d * strides.space[kDepth] + h * strides.space[kHeight];
      for (int64_t s = 0; s < width.segment_count; ++s) {
        const Segment& segment = width.segment[s];
        const Inside inside = inside_of(width, segment, shift);
        Sum<T>* slots = to + segment.slot * E;
        for (int64_t q = 0; q < plan.quads; ++q) {
          zero_quads(slots + q * step, inside.begin);
          zero_quads(slots + q * step + inside.end * E, segment.count - inside.end);
        }
        copy_quads(from + (segment.position + shift + inside.begin * width.step) * strides.space[kWidth],
                   width.step * strides.space[kWidth], strides.channel, inside.end - inside.begin,
                   item.channels, slots + inside.begin * E, step);
      }
    }
  });
}

template <int kPixel, typename T>
void correlate_quads_item(const Plan& plan, const Item& item, const T* query, T* weights, Ahead<T>& ahead,
                          unsigned char* scratch) {
  using S = Sum<T>;
  constexpr int E = kQuad<S>;
  const ActivationStrides& strides = plan.problem.y;
  const WeightStrides& weight_strides = plan.problem.w;
  const AxisPlan& depth = plan.axis[kDepth];
  const AxisPlan& height = plan.axis[kHeight];
  const AxisPlan& width = plan.axis[kWidth];
  const int64_t length = item.count[kWidth];
  const int64_t row_pitch = plan.quads * width.slots * E;
  const S* staged = reinterpret_cast<const S*>(scratch);
  S* sums = reinterpret_cast<S*>(scratch + plan.weight_offset);
  S* pixels = reinterpret_cast<S*>(scratch + plan.result_offset);
  int64_t* taps = reinterpret_cast<int64_t*>(scratch + plan.tap_offset);
  int64_t points = 0;
  for (int64_t d = 0; d < depth.kernel; ++d) {
    for (int64_t h = 0; h < height.kernel; ++h) {
      const int64_t row = depth.run[d].slot * height.slots + height.run[h].slot;
      for (int64_t w = 0; w < width.kernel; ++w) taps[points++] = row * row_pitch + width.run[w].slot * E;
    }
  }

  const int64_t group_stride = plan.problem.channels_per_group * strides.channel;
  query += item.batch * strides.batch + item.group * group_stride;
  weights = group_weights(plan, item, weights);
  for (int axis = 0; axis < 3; ++axis) {
    query += item.first[axis] * strides.space[axis];
    weights += item.first[axis] * weight_strides.space[axis];
  }
  // Rows that follow each other in memory are read and written together, for the sake of narrow ones.
  const bool in_place = plan.tap_stride == 1;
  const bool dense = strides.space[kHeight] == length * strides.space[kWidth] &&
                     weight_strides.space[kHeight] == length * weight_strides.space[kWidth];
  const int64_t together = dense ? larger(1, plan.row_pitch / length) : 1;
  const int64_t query_step = (plan.row_pitch + kQuads) * E, sums_pitch = plan.sums_pitch;
  int64_t count;
  for (int64_t d = 0; d < item.count[kDepth]; ++d) {
    for (int64_t h = 0; h < item.count[kHeight]; h += count) {
      count = smaller(together, item.count[kHeight] - h);
      for (int64_t r = 0; r < count; ++r) {
        ahead.step();
        expect(query + d * strides.space[kDepth] + (h + count + r) * strides.space[kHeight], strides, length,
               (item.groups - 1) * plan.problem.channels_per_group + item.channels);
      }
      for (int64_t g = 0; g < item.groups; ++g) {
        copy_quads(query + g * group_stride + d * strides.space[kDepth] + h * strides.space[kHeight],
                   strides.space[kWidth], strides.channel, count * length, item.channels, pixels, query_step);
        T* to = weights + g * weight_strides.group + d * weight_strides.space[kDepth] +
                h * weight_strides.space[kHeight];
        for (int64_t r = 0; r < count; ++r) {
          const QuadRow<S> row{pixels + r * length * E,
                               query_step,
                               staged + g * plan.group_pitch + (d * height.slots + h + r) * row_pitch,
                               width.slots * E,
                               plan.quads,
                               taps,
                               points,
                               length};
          if (in_place) {
            correlate_row<kPixel>(row, to + r * weight_strides.space[kHeight], weight_strides.space[kWidth]);
          } else {
            correlate_row<kPixel>(row, sums + r * length * sums_pitch, sums_pitch);
          }
        }
        if (!in_place) {
          copy_out(sums, sums_pitch, to, weight_strides.space[kWidth], plan.tap_stride, count * length,
                   points);
        }
      }
    }
  }
}

}  // namespace involution::cpu::INVOLUTION_CPU_NAMESPACE
