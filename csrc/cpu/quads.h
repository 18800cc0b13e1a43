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

#include "pixels.h"

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

// A row of results of some groups.
template <typename S>
struct QuadRow {
  const S* query;  // quad q of position j lies at j*query_pitch + q*query_step
  int64_t query_pitch;
  int64_t query_step;
  int64_t query_group;
  const S* key;  // quad q of position j at j*kQuad + q*key_step from what a kernel point meets first
  int64_t key_step;
  int64_t key_group;
  int64_t quads;
  const int64_t* taps;  // from `key` to what each kernel point meets first
  int64_t points;
  int64_t length;
  int64_t groups;
};

// The pixels of the query that one vector of results has, of which the first `count` exist. They stay in
// registers if there are few: kPixel is their number of quads then, or else 0.
template <int kPixel, typename S>
struct QueryPixels {
  INVOLUTION_INLINE QueryPixels(const S* from, int64_t pitch, int64_t step, int64_t count)
      : from_(from), pitch_(pitch), step_(step), count_(count) {
#pragma GCC unroll 4
    for (int q = 0; q < kPixel; ++q) held_[q] = load_apart(from + q * step, pitch, count);
  }
  INVOLUTION_INLINE Vector<S> operator[](int64_t quad) const {
    if constexpr (kPixel > 0) {
      return held_[quad];
    } else {
      return load_apart(from_ + quad * step_, pitch_, count_);
    }
  }

 private:
  Vector<S> held_[kPixel > 0 ? kPixel : 1];
  const S* from_;
  int64_t pitch_, step_, count_;
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

// The results of one vector, of which the first `count` exist, of one group.
template <int kPixel, typename S, typename R>
INVOLUTION_INLINE void correlate_vector(const QuadRow<S>& row, const S* from, const S* key, int64_t count,
                                        R* to, int64_t pitch) {
  const QueryPixels<kPixel, S> query(from, row.query_pitch, row.query_step, count);
  const auto some = [&](auto taps, int64_t t) {
    correlate_taps<decltype(taps)::value, kPixel>(row, query, key, row.taps + t, count, to + t, pitch);
  };
  const int64_t points = row.points, left = points % 8;
  for (int64_t t = 0; t + 8 <= points; t += 8) some(Count<8>{}, t);
  // Kernel points that are left over come with some before them, which are written again.
  if (left > 4 && points >= 8) {
    some(Count<8>{}, points - 8);
  } else if (left > 0 && points >= 4) {
    if (left > 4) some(Count<4>{}, 0);
    some(Count<4>{}, points - 4);
  } else {
    for (int64_t t = 0; t < left; ++t) some(Count<1>{}, t);
  }
}

// All groups of a vector follow each other: their kernel values may lie together.
template <int kPixel, typename S, typename R>
void correlate_row(const QuadRow<S>& row, R* to, int64_t pitch, int64_t to_group, Fetches& fetches) {
  for (int64_t j = 0; j < row.length; j += kQuads) {
    fetches.step();
    const int64_t count = smaller(kQuads, row.length - j);
    for (int64_t g = 0; g < row.groups; ++g)
      correlate_vector<kPixel>(row, row.query + g * row.query_group + j * row.query_pitch,
                               row.key + g * row.key_group + j * kQuad<S>, count,
                               to + g * to_group + j * pitch, pitch);
  }
}

template <typename S>
INVOLUTION_INLINE void zero_quads(S* to, int64_t count) {
  const Quad none = {};
  for (int64_t i = 0; i < count; ++i) __builtin_memcpy(to + i * kQuad<S>, &none, sizeof none);
}

// to[q*to_step + i*kQuad + e] = from[i*stride + (q*kQuad + e)*channel_stride]: `count` positions as quads, of
// which the last is filled up with zeros.
template <typename T>
void copy_quads(const T* from, int64_t stride, int64_t channel_stride, int64_t count, int64_t channels,
                Sum<T>* to, int64_t to_step) {
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

// A row of the key of all groups in its slots, quad after quad; zeros where `from` is null.
template <typename T>
void stage_quad_row(const Plan& plan, const Item& item, const T* from, Sum<T>* to) {
  constexpr int E = kQuad<Sum<T>>;
  const AxisPlan& width = plan.axis[kWidth];
  const ActivationStrides& strides = plan.source_strides();
  const int64_t step = width.slots * E;
  const int64_t group_stride = plan.problem.channels_per_group * strides.channel;
  const int64_t shift = item.tile[kWidth] * width.shift;
  for (int64_t g = 0; g < item.groups; ++g, to += plan.group_pitch) {
    if (from == nullptr) {
      zero_quads(to, plan.quads * width.slots);
      continue;
    }
    for (int64_t s = 0; s < width.segment_count; ++s) {
      const Segment& segment = width.segment[s];
      const Inside inside = inside_of(plan, item, s);
      Sum<T>* slots = to + segment.slot * E;
      for (int64_t q = 0; q < plan.quads; ++q) {
        zero_quads(slots + q * step, inside.begin);
        zero_quads(slots + q * step + inside.end * E, segment.count - inside.end);
      }
      copy_quads(from + g * group_stride +
                     (segment.position + shift + inside.begin * width.step) * strides.space[kWidth],
                 width.step * strides.space[kWidth], strides.channel, inside.end - inside.begin,
                 item.channels, slots + inside.begin * E, step);
    }
  }
}

// An item of the correlation. Vectors of kernel values take turns with what is fetched meanwhile.
template <int kPixel, typename T>
class QuadCorrelation {
 public:
  // `next` is the item that this thread takes afterwards, or null.
  QuadCorrelation(const Plan& plan, const Item& item, const Item* next, const T* query, const T* key,
                  T* weights, unsigned char* scratch)
      : plan_(plan),
        item_(item),
        strides_(plan.problem.y),
        weight_strides_(plan.problem.w),
        staged_(reinterpret_cast<S*>(scratch)),
        sums_(reinterpret_cast<S*>(scratch + plan.weight_offset)),
        pixels_(reinterpret_cast<S*>(scratch + plan.result_offset)),
        taps_(reinterpret_cast<int64_t*>(scratch + plan.tap_offset)),
        rolling_(plan, item, key, taps_ + plan.points),
        row_pitch_(plan.quads * plan.axis[kWidth].slots * E),
        group_stride_(plan.problem.channels_per_group * strides_.channel),
        query_(first_channel(plan, item, strides_, query) + tile_offset(item, strides_.space)),
        weights_(group_weights(plan, item, weights) + tile_offset(item, weight_strides_.space)) {
    if (plan.rolling == 0) stage_all(key);
    expect_source(plan, next, key, fetches_.item);
  }

  void run() {
    const int64_t length = item_.count[kWidth], rows = item_.count[kHeight];
    // Rows that follow each other in memory are read and written together, for the sake of narrow ones.
    const bool in_place = plan_.tap_stride == 1;
    const bool dense = strides_.space[kHeight] == length * strides_.space[kWidth] &&
                       weight_strides_.space[kHeight] == length * weight_strides_.space[kWidth];
    const int64_t most = dense && plan_.rolling == 0 ? larger(1, plan_.row_pitch / length) : 1;
    const int64_t groups = in_place ? item_.groups : 1, sums_pitch = plan_.sums_pitch;
    const int64_t channels = channels_of(plan_, item_);
    const int64_t vectors = (length + kQuads - 1) / kQuads * (item_.groups / groups);  // of a row
    fetches_.item.start(vectors * rows * item_.count[kDepth]);
    int64_t together;
    for (int64_t d = 0; d < item_.count[kDepth]; ++d) {
      for (int64_t h = 0; h < rows; h += together) {
        together = smaller(most, rows - h);
        const T* query = query_ + d * strides_.space[kDepth] + h * strides_.space[kHeight];
        fetches_.row.clear();
        if (h + together < rows)
          expect(query + together * strides_.space[kHeight], strides_,
                 smaller(together, rows - h - together) * length, channels, fetches_.row);
        meet_rows(d, h);
        fetches_.row.start(vectors * together);
        T* to = weights_ + d * weight_strides_.space[kDepth] + h * weight_strides_.space[kHeight];
        QuadRow<S> row = stage_query(query, together * length);
        row.groups = groups;
        for (int64_t g = 0; g < item_.groups; g += groups) {
          for (int64_t r = 0; r < together; ++r) {
            row.query = query_rows_ + g * row.query_group + r * length * row.query_pitch;
            row.key = key_row(d, h + r) + g * plan_.group_pitch;
            if (!in_place) {
              correlate_row<kPixel>(row, sums_ + r * length * sums_pitch, sums_pitch, 0, fetches_);
              continue;
            }
            correlate_row<kPixel>(row, to + g * weight_strides_.group + r * weight_strides_.space[kHeight],
                                  weight_strides_.space[kWidth], weight_strides_.group, fetches_);
          }
          if (!in_place) {
            copy_out(sums_, sums_pitch, to + g * weight_strides_.group, weight_strides_.space[kWidth],
                     plan_.tap_stride, together * length, plan_.points);
          }
        }
      }
    }
  }

 private:
  using S = Sum<T>;
  static constexpr int E = kQuad<S>;

  void stage_all(const T* key) {
    const ActivationStrides& strides = plan_.source_strides();
    key = first_channel(plan_, item_, strides, key);
    for_each_row(plan_, item_, [&](int64_t row, bool exists, int64_t d, int64_t h) {
      const T* from = key + d * strides.space[kDepth] + h * strides.space[kHeight];
      stage_quad_row(plan_, item_, exists ? from : nullptr, staged_ + row * row_pitch_);
    });
    const AxisPlan& height = plan_.axis[kHeight];
    list_taps([&](const Run& deep, const Run& high) { return deep.slot * height.slots + high.slot; });
  }

  // place(along the depth, along the height) is where the row of the key is that a kernel index meets.
  template <typename Place>
  INVOLUTION_INLINE void list_taps(const Place& place) {
    const AxisPlan& depth = plan_.axis[kDepth];
    const AxisPlan& height = plan_.axis[kHeight];
    const AxisPlan& width = plan_.axis[kWidth];
    int64_t* tap = taps_;
    for (int64_t kd = 0; kd < depth.kernel; ++kd) {
      for (int64_t kh = 0; kh < height.kernel; ++kh) {
        const int64_t row = place(depth.run[kd], height.run[kh]) * row_pitch_;
        for (int64_t kw = 0; kw < width.kernel; ++kw) *tap++ = row + width.run[kw].slot * E;
      }
    }
  }

  // The rows of the key that the row (d, h) of results meets, if they are staged as they are met; those of
  // the next row will be fetched.
  INVOLUTION_INLINE void meet_rows(int64_t d, int64_t h) {
    if (plan_.rolling == 0) return;
    const AxisPlan& depth = plan_.axis[kDepth];
    const AxisPlan& height = plan_.axis[kHeight];
    const int64_t deep = item_.tile[kDepth] * depth.shift + d * depth.step;
    const int64_t high = item_.tile[kHeight] * height.shift + h * height.step;
    list_taps([&](const Run& plane, const Run& row) {
      return rolling_.find(plane.slot + d, plane.position + deep, row.position + high,
                           [&](int64_t place, bool, const T* from) {
                             stage_quad_row(plan_, item_, from, staged_ + place * row_pitch_);
                           });
    });
    if (h + 1 == item_.count[kHeight]) return;
    for (int64_t kd = 0; kd < depth.kernel; ++kd) {
      for (int64_t kh = 0; kh < height.kernel; ++kh)
        rolling_.fetch(depth.run[kd].slot + d, depth.run[kd].position + deep,
                       height.run[kh].position + high + height.step, fetches_.row);
    }
  }

  // The key of a row of results: from there on taps_ finds what they meet.
  INVOLUTION_INLINE const S* key_row(int64_t d, int64_t h) const {
    return plan_.rolling > 0 ? staged_ : staged_ + (d * plan_.axis[kHeight].slots + h) * row_pitch_;
  }

  // `count` positions of the query, of all groups, as quads: in place where they lie so.
  INVOLUTION_INLINE QuadRow<S> stage_query(const T* query, int64_t count) {
    QuadRow<S> row{};
    row.key_step = plan_.axis[kWidth].slots * E;
    row.key_group = plan_.group_pitch;
    row.quads = plan_.quads;
    row.taps = taps_;
    row.points = plan_.points;
    row.length = item_.count[kWidth];
    if constexpr (sizeof(T) == sizeof(S)) {
      if (strides_.channel == 1 && item_.channels % E == 0) {
        query_rows_ = query;
        row.query_pitch = strides_.space[kWidth];
        row.query_step = E;
        row.query_group = group_stride_;
        return row;
      }
    }
    query_rows_ = pixels_;
    row.query_pitch = E;
    row.query_step = (plan_.row_pitch + kQuads) * E;
    row.query_group = plan_.quads * row.query_step;
    for (int64_t g = 0; g < item_.groups; ++g)
      copy_quads(query + g * group_stride_, strides_.space[kWidth], strides_.channel, count, item_.channels,
                 pixels_ + g * row.query_group, row.query_step);
    return row;
  }

  const Plan& plan_;
  const Item& item_;
  const ActivationStrides& strides_;
  const WeightStrides& weight_strides_;
  S* const staged_;
  S* const sums_;
  S* const pixels_;
  int64_t* const taps_;
  RollingSource<T> rolling_;
  const int64_t row_pitch_;
  const int64_t group_stride_;
  const T* query_;
  T* weights_;
  const S* query_rows_ = nullptr;
  Fetches fetches_;
};

}  // namespace involution::cpu::INVOLUTION_CPU_NAMESPACE
