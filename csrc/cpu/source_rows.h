// The rows of the source that a row of results reads, in a ring buffer: each is staged when it is first
// needed, in the place of one that is needed no more.
#pragma once

#include "prefetch.h"
#include "work_item.h"

namespace involution::cpu::INVOLUTION_CPU_NAMESPACE {

template <typename T>
class SourceRows {
 public:
  // `lists` has room for the rows that are read, and for what every place of the ring buffer holds.
  SourceRows(const Plan& plan, const WorkItem& item, const T* source, unsigned char* lists)
      : plan_(plan),
        item_(item),
        strides_(plan.source_strides()),
        transposed_(plan.operation == Operation::kTranspose),
        columns_(range_of(plan, item, kWidth)),
        source_(first_channel(plan, item, strides_, source)),
        zeros_(plan.axis[kDepth].slots * plan.ring_rows),
        held_(reinterpret_cast<int64_t*>(lists)),
        rows(reinterpret_cast<RowTap*>(held_ + zeros_)) {
    for (int64_t i = 0; i < zeros_; ++i) held_[i] = -1;
  }

  // The part of `lists` that is left.
  INVOLUTION_INLINE unsigned char* rest() const {
    return reinterpret_cast<unsigned char*>(rows + plan_.axis[kDepth].kernel * plan_.axis[kHeight].kernel);
  }

  // Lists what row (d, h) of the tile's results reads. stage(from, to) puts rows into the ring buffer: `from`
  // is the first channel's first element of a row, and `to` counts the elements of the buffer before it. Rows
  // outside of the source are one row of zeros, at zero_row().
  template <typename Stage>
  INVOLUTION_INLINE void collect(int64_t d, int64_t h, const Stage& stage) {
    count = 0;
    for_each(d, h, [&](const Hit& plane, const Hit& row) {
      int64_t place = zeros_;
      if (exists(plane, row)) {
        place = place_of(plane, row);
        if (held_[place] != row.position) stage(row_at(plane, row), place * plan_.source_row);
        held_[place] = row.position;
      }
      rows[count++] = {plane.weight + row.weight, place * plan_.source_row};
    });
  }

  // Prefetches what row (d, h) reads and is not there yet.
  INVOLUTION_INLINE void prefetch(int64_t d, int64_t h, PrefetchQueue& queue) const {
    for_each(d, h, [&](const Hit& plane, const Hit& row) {
      if (!exists(plane, row) || held_[place_of(plane, row)] == row.position) return;
      queue.add(row_at(plane, row) + columns_.first * strides_.space[kWidth], strides_, columns_.count,
                channels_of(plan_, item_));
    });
  }

  INVOLUTION_INLINE int64_t zero_row() const { return zeros_ * plan_.source_row; }

 private:
  // Where a kernel index of an axis meets a result: its weights, the position that it reads, and the slot.
  struct Hit {
    int64_t weight;
    int64_t position;
    int64_t slot;
  };

  template <typename Visit>
  INVOLUTION_INLINE void for_each(int64_t d, int64_t h, const Visit& visit) const {
    for (int64_t kd = 0; kd < plan_.axis[kDepth].kernel; ++kd) {
      Hit plane;
      if (!meets(kDepth, kd, d, plane)) continue;
      for (int64_t kh = 0; kh < plan_.axis[kHeight].kernel; ++kh) {
        Hit row;
        if (meets(kHeight, kh, h, row)) visit(plane, row);
      }
    }
  }

  // Whether kernel index k of an axis meets result j of the tile. A zero of the padding takes part in
  // involution and correlation; a position that does not exist contributes nothing to the transpose, nor has
  // it weights.
  INVOLUTION_INLINE bool meets(int axis, int64_t k, int64_t j, Hit& hit) const {
    const AxisPlan& along = plan_.axis[axis];
    const AxisTap& tap = along.tap[k];
    const int64_t index = along.phases == 1 ? j : j / along.phases;
    if (tap.phase != j - index * along.phases) return false;
    const int64_t position = tap.position + item_.tile[axis] * along.shift + index * along.step;
    if (transposed_ && (position < 0 || position >= along.source)) return false;
    const int64_t at = transposed_ ? position : item_.first[axis] + index;
    hit = {k * plan_.problem.w.kernel[axis] + at * plan_.problem.w.space[axis], position, tap.slot + index};
    return true;
  }

  INVOLUTION_INLINE bool exists(const Hit& plane, const Hit& row) const {
    return plane.position >= 0 && plane.position < plan_.axis[kDepth].source && row.position >= 0 &&
           row.position < plan_.axis[kHeight].source && columns_.count > 0;
  }
  INVOLUTION_INLINE int64_t place_of(const Hit& plane, const Hit& row) const {
    return plane.slot * plan_.ring_rows + row.position % plan_.ring_rows;
  }
  INVOLUTION_INLINE const T* row_at(const Hit& plane, const Hit& row) const {
    return source_ + plane.position * strides_.space[kDepth] + row.position * strides_.space[kHeight];
  }

  const Plan& plan_;
  const WorkItem& item_;
  const ActivationStrides& strides_;
  const bool transposed_;
  const Range columns_;
  const T* const source_;
  const int64_t zeros_;  // places of the ring buffer, and the one behind them
  int64_t* const held_;  // the height of the row in every place

 public:
  RowTap* const rows;
  int64_t count = 0;
};

// Prefetches what the next item of a thread stages first: the rows that its first results read. The processor
// itself prefetches as much of long rows as helps.
template <typename T>
void prefetch_source(const Plan& plan, const WorkItem* next, const T* source, PrefetchQueue& queue) {
  constexpr int64_t kLongRow = 32;
  if (next == nullptr) return;
  const ActivationStrides& strides = plan.source_strides();
  const bool along_width = strides.space[kWidth] == 1;
  if (along_width && next->count[kWidth] >= kLongRow) return;
  const Range deep = range_of(plan, *next, kDepth), high = range_of(plan, *next, kHeight);
  const Range wide = range_of(plan, *next, kWidth);
  const int64_t rows = min(plan.ring_rows, high.count);
  const int64_t row = strides.space[kHeight], channels = channels_of(plan, *next);
  if (rows == 0 || wide.count == 0) return;
  const T* plane = first_channel(plan, *next, strides, source) + deep.first * strides.space[kDepth] +
                   high.first * row + wide.first * strides.space[kWidth];
  for (int64_t d = 0; d < deep.count; ++d, plane += strides.space[kDepth]) {
    if (row == wide.count * strides.space[kWidth]) {  // rows that follow each other are one
      queue.add(plane, strides, rows * wide.count, channels);
    } else if (along_width && row < 2 * wide.count) {  // and so are those with little between them
      queue.add(plane, strides, (rows - 1) * row + wide.count, channels);
    } else {
      for (int64_t h = 0; h < rows; ++h) queue.add(plane + h * row, strides, wide.count, channels);
    }
  }
}

}  // namespace involution::cpu::INVOLUTION_CPU_NAMESPACE
