// An item's source in scratch for vectors along the channels: pixel by pixel, zero-padded, widened.
#pragma once

#include "item.h"

namespace involution::cpu::INVOLUTION_CPU_NAMESPACE {

// Elements of the widest pixel: two vectors.
template <typename T>
constexpr int kMostPixel = 2 * kLanes<T>;

// Whole vectors of zeros.
template <typename S>
INVOLUTION_INLINE void zero_pixels(S* to, int64_t count, int64_t pitch) {
  for (int64_t i = 0; i < count * pitch; i += kLanes<S>) store(to + i, Vector<S>{});
}

// Some channels of the positions of one square, to where each belongs: `pixels` and `channels` of it, or all
// if kWhole.
template <bool kWhole, typename T>
INVOLUTION_INLINE void scatter_square(const T* from, int64_t channel_stride, int64_t pixels, int64_t channels,
                                      Sum<T>* const* to, int64_t first_channel) {
  constexpr int E = kEdge<Sum<T>>;
  EdgeVector<Sum<T>> square[E];
  load_transposed<kWhole>(square, from, channel_stride, channels, pixels);
#pragma GCC unroll 8
  for (int l = 0; l < E; ++l) store_as(to[l] + first_channel, square[l], E);
}

// `rows` rows of the positions first <= position < last, which follow each other in memory as the rows and
// the channels do not, to their slots.
template <typename T>
INVOLUTION_INLINE void scatter_pixels(const Plan& plan, const T* from, int64_t channel_stride, int64_t rows,
                                      int64_t first, int64_t last, int64_t shift, int64_t channels,
                                      Sum<T>* staged) {
  constexpr int E = kEdge<Sum<T>>;
  const AxisPlan& width = plan.axis[kWidth];
  const int64_t pitch = plan.pixel_pitch;
  const int64_t* slot_of = width.slot_of - shift - width.lowest;
  const int64_t count = rows * (last - first);
  Sum<T> nowhere[kMostPixel<T>];  // takes what has no slot
  int64_t position = first;
  for (int64_t next = 0; next < count; next += E) {
    // The last square begins earlier where they do not come out even.
    const int64_t i = larger(0, smaller(next, count - E)), pixels = smaller(E, count);
    for (int64_t back = next - i; back > 0; --back) {
      if (position == first) {
        position = last;
        staged -= width.slots * pitch;
      }
      --position;
    }
    Sum<T>* to[E];
    for (int64_t l = 0; l < E; ++l) {
      const int64_t slot = l < pixels ? slot_of[position] : -1;
      to[l] = slot < 0 ? nowhere : staged + slot * pitch;
      if (++position == last) {
        position = first;
        staged += width.slots * pitch;
      }
    }
    for (int64_t c = 0; c < pitch; c += E) {
      const T* square_from = from + i + c * channel_stride;
      if (pixels == E && channels - c >= E) {
        scatter_square<true>(square_from, channel_stride, E, E, to, c);
      } else {
        scatter_square<false>(square_from, channel_stride, pixels, channels - c, to, c);
      }
    }
  }
}

template <typename T>
INVOLUTION_INLINE void copy_pixels(const T* from, int64_t stride, int64_t channel_stride, int64_t count,
                                   int64_t channels, Sum<T>* staged, int64_t pitch) {
  for (int64_t i = 0; i < count; ++i) {
    const T* pixel = from + i * stride;
    Sum<T>* to = staged + i * pitch;
    if (channel_stride == 1) {
      for (int64_t c = 0; c < pitch; c += kLanes<T>)
        store(to + c, c < channels ? load_some(pixel + c, channels - c) : Vector<T>{});
    } else {
      for (int64_t c = 0; c < pitch; ++c)
        to[c] = c < channels ? load_one(pixel + c * channel_stride) : Sum<T>{};
    }
  }
}

// Channels lie apart, neighbours of a row side by side.
INVOLUTION_INLINE bool scatters(const ActivationStrides& strides) {
  return strides.space[kWidth] == 1 && strides.channel != 1;
}

// `rows` rows of the source that exist, of one group, in slots of their own. More than one follow each other
// in memory and have all of their positions in slots.
template <typename T>
void stage_pixel_rows(const Plan& plan, const Item& item, const T* from, int64_t rows, Sum<T>* staged) {
  const AxisPlan& width = plan.axis[kWidth];
  const ActivationStrides& strides = plan.source_strides();
  const int64_t pitch = plan.pixel_pitch;
  const int64_t shift = item.tile[kWidth] * width.shift;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t s = 0; s < width.segment_count; ++s) {
      const Segment& segment = width.segment[s];
      const Inside inside = inside_of(plan, item, s);
      Sum<T>* slots = staged + (r * width.slots + segment.slot) * pitch;
      zero_pixels(slots, inside.begin, pitch);
      zero_pixels(slots + inside.end * pitch, segment.count - inside.end, pitch);
      if (scatters(strides)) continue;
      copy_pixels(from + r * strides.space[kHeight] +
                      (segment.position + shift + inside.begin * width.step) * strides.space[kWidth],
                  width.step * strides.space[kWidth], strides.channel, inside.end - inside.begin,
                  item.channels, slots + inside.begin * pitch, pitch);
    }
  }
  const auto [first, count] = window_of(plan, item, kWidth);
  if (scatters(strides) && count > 0)
    scatter_pixels(plan, from + first, strides.channel, rows, first, first + count, shift, item.channels,
                   staged);
}

// The source that an item's results meet, in rows of slots; a slot has pixel_pitch channels, zero from the
// item's last on.
template <typename T>
void stage_pixels(const Plan& plan, const Item& item, const T* source, Sum<T>* staged) {
  const AxisPlan& width = plan.axis[kWidth];
  const ActivationStrides& strides = plan.source_strides();
  const int64_t row_pitch = width.slots * plan.pixel_pitch;
  const int64_t group_stride = plan.problem.channels_per_group * strides.channel;
  const int64_t shift = item.tile[kWidth] * width.shift;
  const int64_t first = width.lowest + shift, last = width.highest + 1 + shift;
  source = first_channel(plan, item, strides, source);
  // Rows that follow each other in memory are one, for the sake of narrow ones.
  const bool dense = scatters(strides) && first <= 0 && last >= width.source &&
                     strides.space[kHeight] == width.source && plan.axis[kHeight].step == 1;
  int64_t rows = 0, begun = 0, begun_depth = 0, begun_height = 0;
  const auto finish = [&] {
    const T* from = source + begun_depth * strides.space[kDepth] + begun_height * strides.space[kHeight];
    for (int64_t g = 0; rows > 0 && g < item.groups; ++g)
      stage_pixel_rows(plan, item, from + g * group_stride, rows,
                       staged + g * plan.group_pitch + begun * row_pitch);
    rows = 0;
  };
  for_each_row(plan, item, [&](int64_t row, bool exists, int64_t d, int64_t h) {
    if (!exists || first >= width.source || last <= 0) {
      for (int64_t g = 0; g < item.groups; ++g)
        zero_pixels(staged + g * plan.group_pitch + row * row_pitch, width.slots, plan.pixel_pitch);
      return;
    }
    if (!dense || row != begun + rows || d != begun_depth || h != begun_height + rows) finish();
    if (rows++ == 0) {
      begun = row;
      begun_depth = d;
      begun_height = h;
    }
  });
  finish();
}

// Rows of the source that are staged when a row of results first meets them, in place of rows that are met no
// more.
template <typename T>
class RollingSource {
 public:
  // `held` has room for the rows of every plane.
  RollingSource(const Plan& plan, const Item& item, const T* source, int64_t* held)
      : plan_(plan),
        item_(item),
        strides_(plan.source_strides()),
        held_(held),
        window_(window_of(plan, item, kWidth)) {
    source_ = first_channel(plan, item, strides_, source);
    for (int64_t i = 0; i < plan.axis[kDepth].slots * plan.rolling; ++i) held_[i] = kNothing;
  }

  // The place of the row (depth, height), whose plane has the slot `plane`. If it is not there yet,
  // stage(place, whether another was there, first group's row, or null where there is none) puts it there.
  template <typename Stage>
  INVOLUTION_INLINE int64_t find(int64_t plane, int64_t depth, int64_t height, const Stage& stage) {
    const int64_t place = place_of(plane, height);
    if (held_[place] != height) {
      const bool used = held_[place] != kNothing;
      held_[place] = height;
      stage(place, used, exists(depth, height) && window_.count > 0 ? row_at(depth, height) : nullptr);
    }
    return place;
  }

  // The same row will be looked for next.
  INVOLUTION_INLINE void fetch(int64_t plane, int64_t depth, int64_t height, FetchQueue& fetches) {
    if (!exists(depth, height) || held_[place_of(plane, height)] == height) return;
    expect(row_at(depth, height) + window_.first * strides_.space[kWidth], strides_, window_.count,
           channels_of(plan_, item_), fetches);
  }

 private:
  static constexpr int64_t kNothing = INT64_MIN;

  INVOLUTION_INLINE int64_t place_of(int64_t plane, int64_t height) {
    // Mostly a step from the last, which needs no division.
    int64_t place = last_place_ + height - last_height_;
    if (place >= plan_.rolling) place -= plan_.rolling;
    if (place < 0) place += plan_.rolling;
    if (place < 0 || place >= plan_.rolling) {
      place = height % plan_.rolling;
      if (place < 0) place += plan_.rolling;
    }
    last_place_ = place;
    last_height_ = height;
    return plane * plan_.rolling + place;
  }
  INVOLUTION_INLINE bool exists(int64_t depth, int64_t height) const {
    return depth >= 0 && depth < plan_.axis[kDepth].source && height >= 0 &&
           height < plan_.axis[kHeight].source;
  }
  INVOLUTION_INLINE const T* row_at(int64_t depth, int64_t height) const {
    return source_ + depth * strides_.space[kDepth] + height * strides_.space[kHeight];
  }

  const Plan& plan_;
  const Item& item_;
  const ActivationStrides& strides_;
  int64_t* const held_;  // the height of the row in every place
  const Window window_;
  const T* source_;
  int64_t last_height_ = 0, last_place_ = 0;
};

}  // namespace involution::cpu::INVOLUTION_CPU_NAMESPACE
