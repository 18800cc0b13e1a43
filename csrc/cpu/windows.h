// Local correlation with vectors along the width of the kernel:
//
//   weight[j, kh, kw] = sum over channels of query[j, c] * key[c, row(j) + kh, column(j) + kw]
//
// A vector is one row of a position's window, and the query is broadcast from where it lies. Nothing depends
// on how wide the map is, no sum ever leaves its lane, and where the kernel points are innermost in memory
// the sums go there as they are. Windows of neighbouring rows of results overlap: the sums of several rows
// stay in registers together, and each row of the key is loaded once for all of them.
#pragma once

#include "pixels.h"

namespace involution::cpu::INVOLUTION_CPU_NAMESPACE {

// Elements of a vector: the widest kernel.
constexpr int kWindow = 8;
template <typename S>
constexpr bool kHasWindows = kEdge<S> == kWindow;

// Rows of results of one group that are computed together, and what they are made of.
template <typename S>
struct WindowRows {
  const S* query;  // channel c of position j of row r: r*query_row + j*query_pitch + c*query_channel further
  int64_t query_row;
  int64_t query_pitch;
  int64_t query_channel;
  const S* key;
  const int64_t* rows;  // from `key` to the rows that the results meet, in ascending order
  int64_t key_channel;
  int64_t advance;  // from the window of a position to the next
  int64_t channels;
};

// Where the results of the positions from `begin` on go: kernel row k of row r to r*row + (j - begin)*pitch +
// k*width, `width` of it.
template <typename S>
struct WindowResults {
  S* first;
  int64_t row;
  int64_t pitch;
  int64_t width;
};

// The positions begin <= j < end of kResults rows, kStep rows of the key apart, for kTaps rows of the kernel.
// Each vector runs over into the next one's place, but for the position's last, if that is among them.
template <int kResults, int kTaps, int kStep, typename S>
void correlate_windows(const WindowRows<S>& from, int64_t begin, int64_t end, const WindowResults<S>& results,
                       bool last, Fetches& fetches) {
  using V = EdgeVector<S>;
  constexpr int kRows = (kResults - 1) * kStep + kTaps;
  const S* key[kRows];
#pragma GCC unroll 16
  for (int y = 0; y < kRows; ++y) key[y] = from.key + from.rows[y];
  const int64_t width = results.width, row = results.row;
  const int64_t query_row = from.query_row, query_channel = from.query_channel;
  for (int64_t j = begin; j < end; ++j) {
    fetches.step();
    V sums[kResults][kTaps] = {};
    const S* query = from.query + j * from.query_pitch;
    int64_t at = j * from.advance;
    const int64_t at_end = at + from.channels * from.key_channel;
    for (; at != at_end; at += from.key_channel, query += query_channel) {
      S value[kResults];
#pragma GCC unroll 4
      for (int r = 0; r < kResults; ++r) value[r] = query[r * query_row];
#pragma GCC unroll 16
      for (int y = 0; y < kRows; ++y) {
        V window = load_as<V>(key[y] + at);
        if constexpr (kResults > 1) keep_in_register(window);
#pragma GCC unroll 4
        for (int r = 0; r < kResults; ++r) {
          const int k = y - r * kStep;
          if (k >= 0 && k < kTaps) sums[r][k] += window * value[r];
        }
      }
    }
    S* to = results.first + (j - begin) * results.pitch;
#pragma GCC unroll 4
    for (int r = 0; r < kResults; ++r, to += row) {
#pragma GCC unroll 8
      for (int k = 0; k < kTaps; ++k)
        store_as(to + k * width, sums[r][k], last && k == kTaps - 1 ? width : kWindow);
    }
  }
}

// All rows of a plane of the kernel, as many at a time as there is code for; `last` if it is the last plane.
template <int kResults, int kStep, typename S>
void correlate_plane(WindowRows<S> from, int64_t begin, int64_t end, WindowResults<S> results,
                     int64_t tap_rows, bool last, Fetches& fetches) {
  const auto some = [&](auto taps) {
    constexpr int kTaps = decltype(taps)::value;
    for (; tap_rows >= kTaps; tap_rows -= kTaps) {
      correlate_windows<kResults, kTaps, kStep>(from, begin, end, results, last && tap_rows == kTaps,
                                                fetches);
      from.rows += kTaps;
      results.first += kTaps * results.width;
    }
  };
  if constexpr (kRegisters >= 32) some(Count<7>{});
  some(Count<4>{});
  some(Count<3>{});
  some(Count<1>{});
}

// The sums of `count` positions, `rows` vectors of `width` kernel points each, to planes of positions that
// follow each other, `stride` from one kernel point's to the next one's.
template <typename T>
void store_planes(const Sum<T>* sums, int64_t pitch, T* to, int64_t stride, int64_t count, int64_t rows,
                  int64_t width) {
  for (int64_t next = 0; next < count; next += kWindow) {
    // The last vector begins earlier where they do not come out even.
    const int64_t i = larger(0, smaller(next, count - kWindow)), some = smaller(kWindow, count);
    for (int64_t r = 0; r < rows; ++r) {
      EdgeVector<Sum<T>> square[kWindow];
      const Sum<T>* from = sums + i * pitch + r * kWindow;
#pragma GCC unroll 8
      for (int l = 0; l < kWindow; ++l)
        square[l] = load_as<EdgeVector<Sum<T>>>(from + smaller(l, some - 1) * pitch);
      transpose_square(square);
#pragma GCC unroll 8
      for (int k = 0; k < kWindow; ++k) {
        if (k < width) store_narrowed(to + i + (r * width + k) * stride, square[k], some);
      }
    }
  }
}

// Eight positions of all channels, of which those begin <= i < end exist; zeros take the place of the others.
template <typename T>
INVOLUTION_INLINE void stage_block(const T* from, int64_t stride, int64_t channel_stride, int64_t begin,
                                   int64_t end, Sum<T>* to, int64_t pitch, int64_t channels) {
  using V = EdgeVector<Sum<T>>;
  if (stride == 1) {
    for (int64_t c = 0; c < channels; ++c)
      store_as(to + c * pitch, load_edge(from + c * channel_stride, begin, end), kWindow);
  } else if (channel_stride == 1) {
    for (int64_t c = 0; c < channels; c += kWindow) {
      const int64_t some = smaller(kWindow, channels - c);
      V square[kWindow] = {};
#pragma GCC unroll 8
      for (int i = 0; i < kWindow; ++i) {
        if (i >= begin && i < end) square[i] = load_edge(from + i * stride + c, 0, some);
      }
      transpose_square(square);
#pragma GCC unroll 8
      for (int i = 0; i < kWindow; ++i) {
        if (i < some) store_as(to + (c + i) * pitch, square[i], kWindow);
      }
    }
  } else {
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t i = 0; i < kWindow; ++i)
        to[c * pitch + i] =
            i >= begin && i < end ? load_one(from + i * stride + c * channel_stride) : Sum<T>{};
    }
  }
}

// A row of the key of all groups in its slots, channel by channel; zeros where `from` is null. Slots outside
// of the source are zero already.
template <typename T>
void stage_windows(const Plan& plan, const Item& item, const T* from, Sum<T>* to) {
  const AxisPlan& width = plan.axis[kWidth];
  const ActivationStrides& strides = plan.source_strides();
  const int64_t pitch = plan.channel_pitch, channels = item.channels;
  const int64_t group_stride = plan.problem.channels_per_group * strides.channel;
  const int64_t shift = item.tile[kWidth] * width.shift;
  const Segment& segment = width.segment[0];
  const auto [inside, outside] = inside_of(plan, item, 0);
  const T* const first = from + (segment.position + shift) * strides.space[kWidth];
  const int64_t last_block = width.slots - kWindow;
  for (int64_t g = 0; g < item.groups; ++g) {
    Sum<T>* const slots = to + g * plan.group_pitch;
    for (int64_t next = inside; next < outside; next += kWindow) {
      const int64_t s = smaller(next, last_block);
      const int64_t begin = larger(0, inside - s), end = smaller(kWindow, outside - s);
      const T* const block = first + g * group_stride + s * strides.space[kWidth];
      if (from == nullptr) {
        for (int64_t c = 0; c < channels; ++c) store_as(slots + c * pitch + s, EdgeVector<Sum<T>>{}, kWindow);
      } else {
        stage_block(block, strides.space[kWidth], strides.channel, begin, end, slots + s, pitch, channels);
      }
    }
  }
}

// An item of the correlation. Positions take turns with what is fetched meanwhile.
template <typename T>
class WindowCorrelation {
 public:
  // `next` is the item that this thread takes afterwards, or null.
  WindowCorrelation(const Plan& plan, const Item& item, const Item* next, const T* query, const T* key,
                    T* weights, unsigned char* scratch)
      : plan_(plan),
        item_(item),
        next_(next),
        depth_(plan.axis[kDepth]),
        height_(plan.axis[kHeight]),
        kernel_width_(plan.axis[kWidth].kernel),
        strides_(plan.problem.y),
        weight_strides_(plan.problem.w),
        staged_(reinterpret_cast<S*>(scratch)),
        sums_(reinterpret_cast<S*>(scratch + plan.weight_offset)),
        pixels_(reinterpret_cast<S*>(scratch + plan.result_offset)),
        rows_(reinterpret_cast<int64_t*>(scratch + plan.tap_offset)),
        rolling_(plan, item, key, rows_ + depth_.kernel * rows_met(plan.rows_sharing)),
        query_(query),
        weights_(weights) {
    zero(staged_, item.groups * plan.group_pitch, item.groups * plan.group_pitch);
    if (next == nullptr) return;
    expect_source(plan, next, key, fetches_.item);
    if (plan.few_values)
      fetches_.item.add(group_weights(plan, *next, weights), 1, 0, plan.points * plan.tap_stride);
    fetches_.item.start((item.count[kHeight] + plan.rows_sharing - 1) / plan.rows_sharing * steps());
  }

  void run() {
    for (int64_t h = 0, count; h < item_.count[kHeight]; h += count) {
      const int64_t left = item_.count[kHeight] - h;
      // Two and two are better than three and one.
      count = left == 4 && plan_.rows_sharing == 3 ? 2 : smaller(plan_.rows_sharing, left);
      fetches_.row.clear();
      if (left > count) {
        fetch_rows(item_, h + count);
      } else if (next_ != nullptr) {
        fetch_rows(*next_, 0);
      }
      meet_rows(h, count);
      stage_query(h, count);
      fetches_.row.start(steps());
      if (plan_.tap_stride == 1) {
        write_points(h, count);
      } else {
        write_planes(h, count);
      }
    }
  }

 private:
  using S = Sum<T>;
  static constexpr bool kWidens = sizeof(T) != sizeof(S);
  static constexpr int64_t kPositionsTogether = 16;

  // Steps that rows of results which are computed together take at fetching.
  INVOLUTION_INLINE int64_t steps() const { return item_.count[kWidth] * item_.groups * depth_.kernel; }

  // The kernel rows of `count` rows of results in one plane meet so many rows of the key.
  INVOLUTION_INLINE int64_t rows_met(int64_t count) const {
    return (count - 1) * height_.step + height_.kernel;
  }

  // The query, and the kernel values, of a row of an item.
  INVOLUTION_INLINE const T* query_at(const Item& item, int64_t h) const {
    return first_channel(plan_, item, strides_, query_) + tile_offset(item, strides_.space) +
           h * strides_.space[kHeight];
  }
  INVOLUTION_INLINE T* weights_at(const Item& item, int64_t h) const {
    return group_weights(plan_, item, weights_) + tile_offset(item, weight_strides_.space) +
           h * weight_strides_.space[kHeight];
  }

  // What will be computed next: the query of the rows from h on, and the lines that their results go to.
  void fetch_rows(const Item& item, int64_t h) {
    const int64_t count = smaller(plan_.rows_sharing, item.count[kHeight] - h), length = item.count[kWidth];
    const int64_t row = weight_strides_.space[kHeight], position = weight_strides_.space[kWidth];
    const int64_t values = (item.groups - 1) * weight_strides_.group + plan_.points;
    const bool dense = row == length * position;
    for (int64_t r = 0; r < count; ++r) {
      expect(query_at(item, h + r), strides_, length, channels_of(plan_, item), fetches_.row);
      const T* to = weights_at(item, h + r);
      if (plan_.tap_stride == 1) {
        fetches_.row.add(to, length, position, values);
      } else if (position == 1 && !plan_.few_values && (r == 0 || !dense)) {
        fetches_.row.add(to, plan_.points, plan_.tap_stride, dense ? count * length : length);
      }
    }
  }

  // Lists the rows of the key that `count` rows of results from h on meet, plane after plane, and has those
  // fetched that the next ones meet first.
  void meet_rows(int64_t h, int64_t count) {
    const int64_t row_pitch = plan_.axis[kWidth].slots;
    const int64_t deep = item_.tile[kDepth] * depth_.shift;
    const int64_t high = item_.tile[kHeight] * height_.shift + h * height_.step;
    const int64_t rows = rows_met(count), last = height_.kernel - 1;
    // Rows of results behind the first meet some that it does not: they are neighbours then.
    const auto position = [&](int64_t y) {
      return high + (y <= last ? height_.run[y].position : height_.run[last].position + y - last);
    };
    const auto stage = [&](int64_t place, bool used, const T* from) {
      if (used || from != nullptr) stage_windows(plan_, item_, from, staged_ + place * row_pitch);
    };
    const int64_t next = smaller(plan_.rows_sharing, item_.count[kHeight] - h - count) * height_.step;
    int64_t* row = rows_;
    for (int64_t kd = 0; kd < depth_.kernel; ++kd) {
      const int64_t plane = depth_.run[kd].slot, depth = depth_.run[kd].position + deep;
      for (int64_t y = 0; y < rows; ++y) *row++ = rolling_.find(plane, depth, position(y), stage) * row_pitch;
      for (int64_t y = rows; y < rows + next; ++y) rolling_.fetch(plane, depth, position(y), fetches_.row);
    }
  }

  // `count` rows of the query from h on, of all groups: in place, or widened as they lie.
  void stage_query(int64_t h, int64_t count) {
    const T* query = query_at(item_, h);
    from_.key = staged_;
    from_.key_channel = plan_.channel_pitch;
    from_.advance = plan_.axis[kWidth].advance;
    from_.channels = item_.channels;
    if constexpr (!kWidens) {
      from_.query = query;
      from_.query_row = strides_.space[kHeight];
      from_.query_pitch = strides_.space[kWidth];
      from_.query_channel = strides_.channel;
    } else {
      const int64_t length = item_.count[kWidth];
      const int64_t channels = plan_.problem.channels_per_group * item_.groups;
      const bool pixels = strides_.channel == 1;
      from_.query = pixels_;
      from_.query_row = length * channels;
      from_.query_pitch = pixels ? channels : 1;
      from_.query_channel = pixels ? 1 : length;
      for (int64_t r = 0; r < count; ++r) {
        const T* row = query + r * strides_.space[kHeight];
        S* to = pixels_ + r * from_.query_row;
        if (pixels) {
          copy_in(row, strides_.space[kWidth], 1, to, channels, length, channels);
        } else {
          copy_in(row, strides_.channel, strides_.space[kWidth], to, length, channels, length);
        }
      }
    }
  }

  // The positions begin <= j < end of `count` rows of results, of group g of the item.
  INVOLUTION_INLINE void correlate(int64_t g, int64_t count, int64_t begin, int64_t end,
                                   WindowResults<S> results) {
    WindowRows<S> from = from_;
    from.query += g * plan_.problem.channels_per_group * from.query_channel;
    from.key += g * plan_.group_pitch;
    for (int64_t kd = 0; kd < depth_.kernel; ++kd) {
      from.rows = rows_ + kd * rows_met(count);
      const bool last = kd + 1 == depth_.kernel;
      if (count == 1) {
        correlate_plane<1, 1>(from, begin, end, results, height_.kernel, last, fetches_);
      } else if (count == 3) {
        correlate_plane<3, 1>(from, begin, end, results, height_.kernel, last, fetches_);
      } else if (height_.step == 1) {
        correlate_plane<2, 1>(from, begin, end, results, height_.kernel, last, fetches_);
      } else {
        correlate_plane<2, 2>(from, begin, end, results, height_.kernel, last, fetches_);
      }
      results.first += height_.kernel * results.width;
    }
  }

  // Rows whose kernel points lie together. All groups of some positions follow each other: they may share
  // lines.
  void write_points(int64_t h, int64_t count) {
    const int64_t length = item_.count[kWidth], pitch = plan_.sums_pitch;
    const int64_t row = weight_strides_.space[kHeight], position = weight_strides_.space[kWidth];
    for (int64_t j = 0; j < length; j += kPositionsTogether) {
      const int64_t end = smaller(length, j + kPositionsTogether);
      for (int64_t g = 0; g < item_.groups; ++g) {
        T* to = weights_at(item_, h) + g * weight_strides_.group + j * position;
        if constexpr (!kWidens) {
          correlate(g, count, j, end, {to, row, position, kernel_width_});
        } else {
          correlate(g, count, j, end, {sums_, kPositionsTogether * pitch, pitch, kernel_width_});
          for (int64_t r = 0; r < count; ++r)
            copy_out(sums_ + r * kPositionsTogether * pitch, pitch, to + r * row, position, 1, end - j,
                     plan_.points);
        }
      }
    }
  }

  // Rows whose kernel points lie apart. Those that follow each other in memory leave together, for the sake
  // of narrow ones.
  void write_planes(int64_t h, int64_t count) {
    const int64_t length = item_.count[kWidth], pitch = plan_.sums_pitch;
    const int64_t row = weight_strides_.space[kHeight], position = weight_strides_.space[kWidth];
    const bool dense = row == length * position;
    const bool more = dense && item_.groups == 1 && h + count < item_.count[kHeight] &&
                      (waiting_ + count + plan_.rows_sharing) * length <= plan_.row_pitch;
    for (int64_t g = 0; g < item_.groups; ++g) {
      correlate(g, count, 0, length,
                {sums_ + waiting_ * length * pitch, length * pitch, pitch,
                 position == 1 ? kWindow : kernel_width_});
      if (more) continue;
      const int64_t rows = waiting_ + count;
      T* to = weights_at(item_, h - waiting_) + g * weight_strides_.group;
      for (int64_t r = 0; r < rows; r += dense ? rows : 1)
        leave(sums_ + r * length * pitch, to + r * row, dense ? rows * length : length);
    }
    waiting_ = more ? waiting_ + count : 0;
  }

  // The sums of positions that follow each other.
  void leave(const S* sums, T* to, int64_t positions) {
    if (weight_strides_.space[kWidth] == 1) {
      store_planes(sums, plan_.sums_pitch, to, plan_.tap_stride, positions, depth_.kernel * height_.kernel,
                   kernel_width_);
    } else {
      copy_out(sums, plan_.sums_pitch, to, weight_strides_.space[kWidth], plan_.tap_stride, positions,
               plan_.points);
    }
  }

  const Plan& plan_;
  const Item& item_;
  const Item* const next_;
  const AxisPlan& depth_;
  const AxisPlan& height_;
  const int64_t kernel_width_;
  const ActivationStrides& strides_;
  const WeightStrides& weight_strides_;
  S* const staged_;
  S* const sums_;
  S* const pixels_;
  int64_t* const rows_;
  RollingSource<T> rolling_;
  const T* const query_;
  T* const weights_;
  WindowRows<S> from_{};
  int64_t waiting_ = 0;  // rows whose sums have not left
  Fetches fetches_;
};

}  // namespace involution::cpu::INVOLUTION_CPU_NAMESPACE
