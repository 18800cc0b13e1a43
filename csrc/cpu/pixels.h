// An item's source in scratch for vectors along the channels: pixel by pixel, zero-padded, widened.
#pragma once

#include "item.h"

namespace involution::cpu::INVOLUTION_CPU_NAMESPACE {

// Whole vectors of zeros.
template <typename S>
INVOLUTION_INLINE void zero_pixels(S* to, int64_t count, int64_t pitch) {
  for (int64_t i = 0; i < count * pitch; i += kLanes<S>) store(to + i, Vector<S>{});
}

// `rows` rows of the positions first <= position < last, which follow each other in memory as the rows and
// the channels do not, to their slots.
template <typename T>
INVOLUTION_INLINE void scatter_pixels(const Plan& plan, const T* from, int64_t channel_stride, int64_t rows,
                                      int64_t first, int64_t last, int64_t shift, int64_t channels,
                                      Sum<T>* staged) {
  constexpr int L = kLanes<T>;
  const AxisPlan& width = plan.axis[kWidth];
  const int64_t pitch = plan.pixel_pitch;
  const int64_t* slot_of = width.slot_of - shift - width.lowest;
  const int64_t count = rows * (last - first);
  int64_t position = first;
  for (int64_t i = 0; i < count; i += L) {
    const int64_t pixels = smaller(L, count - i);
    Sum<T>* to[L];
    for (int64_t l = 0; l < pixels; ++l) {
      const int64_t slot = slot_of[position];
      to[l] = slot < 0 ? nullptr : staged + slot * pitch;
      if (++position == last) {
        position = first;
        staged += width.slots * pitch;
      }
    }
    for (int64_t c = 0; c < pitch; c += L) {
      Vector<T> square[L] = {};
      const T* square_from = from + i + c * channel_stride;
#pragma GCC unroll 16
      for (int l = 0; l < L; ++l) {
        if (c + l < channels) square[l] = load_some(square_from + l * channel_stride, pixels);
      }
      transpose_square(square);
#pragma GCC unroll 16
      for (int l = 0; l < L; ++l) {
        if (l < pixels && to[l] != nullptr) store(to[l] + c, square[l]);
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

// The source that an item's results meet, in rows of slots; a slot has pixel_pitch channels, zero from the
// item's last on.
template <typename T>
void stage_pixels(const Plan& plan, const Item& item, const T* source, Sum<T>* staged) {
  const AxisPlan& width = plan.axis[kWidth];
  const ActivationStrides& strides = plan.source_strides();
  const int64_t pitch = plan.pixel_pitch;
  const int64_t row_pitch = width.slots * pitch;
  const int64_t shift = item.tile[kWidth] * width.shift;
  source += item.batch * strides.batch +
            (item.group * plan.problem.channels_per_group + item.channel) * strides.channel;
  const bool scattered = strides.space[kWidth] == 1 && strides.channel != 1;
  // The positions of a row that have slots.
  int64_t first = width.source, last = 0;
  for (int64_t s = 0; s < width.segment_count; ++s) {
    const Inside inside = inside_of(width, width.segment[s], shift);
    if (inside.begin == inside.end) continue;
    const int64_t position = width.segment[s].position + shift;
    first = smaller(first, position + inside.begin * width.step);
    last = larger(last, position + (inside.end - 1) * width.step + 1);
  }
  // Rows that follow each other in memory are one, for the sake of narrow ones.
  const bool dense = scattered && first == 0 && last == width.source && strides.space[kHeight] == last &&
                     plan.axis[kHeight].step == 1;
  int64_t begun = -1, begun_depth = 0, begun_height = 0, rows = 0;
  const auto finish = [&] {
    if (rows > 0) {
      scatter_pixels(
          plan, source + begun_depth * strides.space[kDepth] + begun_height * strides.space[kHeight] + first,
          strides.channel, rows, first, last, shift, item.channels, staged + begun * row_pitch);
    }
    rows = 0;
  };
  for_each_row(plan, item, [&](int64_t row, bool exists, int64_t d, int64_t h) {
    Sum<T>* to = staged + row * row_pitch;
    if (!exists || first >= last) return zero_pixels(to, width.slots, pitch);
    for (int64_t s = 0; s < width.segment_count; ++s) {
      const Segment& segment = width.segment[s];
      const Inside inside = inside_of(width, segment, shift);
      Sum<T>* slots = to + segment.slot * pitch;
      zero_pixels(slots, inside.begin, pitch);
      zero_pixels(slots + inside.end * pitch, segment.count - inside.end, pitch);
      if (scattered) continue;
      const T* from = source + d * strides.space[kDepth] + h * strides.space[kHeight] +
                      (segment.position + shift + inside.begin * width.step) * strides.space[kWidth];
      copy_pixels(from, width.step * strides.space[kWidth], strides.channel, inside.end - inside.begin,
                  item.channels, slots + inside.begin * pitch, pitch);
    }
    if (!scattered) return;
    if (!dense || row != begun + rows || d != begun_depth || h != begun_height + rows) finish();
    if (rows++ == 0) {
      begun = row;
      begun_depth = d;
      begun_height = h;
    }
  });
  finish();
}

}  // namespace involution::cpu::INVOLUTION_CPU_NAMESPACE
