// Staging for vectors along the channels: a row of the source pixel by pixel, in float32 or float64, with
// zeros where it does not exist.
#pragma once

#include "matrix_transpose.h"
#include "work_item.h"

namespace involution::cpu::INVOLUTION_CPU_NAMESPACE {

// The slots of a row for one group, pixel_pitch apart, or zeros if there is no row. A pixel has zeros behind
// the item's last channel.
template <typename T>
void stage_row_by_channels(const Plan& plan, const WorkItem& item, const T* row, Sum<T>* to) {
  const AxisPlan& width = plan.axis[kWidth];
  const ActivationStrides& strides = plan.source_strides();
  const int64_t pitch = plan.pixel_pitch, shift = item.tile[kWidth] * width.shift;
  if (row == nullptr || item.channels < pitch) zero(to, width.slots * pitch, width.slots * pitch);
  for (int64_t s = 0; row != nullptr && s < width.segment_count; ++s) {
    const Segment& segment = width.segment[s];
    const auto [begin, end] = inside_of(plan, item, s);
    Sum<T>* first = to + segment.slot * pitch;
    zero(first, begin * pitch, begin * pitch);
    zero(first + end * pitch, (segment.count - end) * pitch, (segment.count - end) * pitch);
    copy_in(row + (segment.position + shift + begin) * strides.space[kWidth], strides.space[kWidth],
            strides.channel, first + begin * pitch, pitch, end - begin, item.channels);
  }
}

}  // namespace involution::cpu::INVOLUTION_CPU_NAMESPACE
