// Staging for vectors along the width, or along a kernel row: a row of the source channel by channel, in
// float32 or float64, with zeros where it does not exist.
#pragma once

#include "matrix_transpose.h"
#include "work_item.h"

namespace involution::cpu::INVOLUTION_CPU_NAMESPACE {

// The slots of a row for every channel of one group, channel_pitch apart, or zeros if there is no row. Each
// segment has zeros behind it, for vectors that run over its end.
template <typename T>
void stage_row_by_width(const Plan& plan, const WorkItem& item, const T* row, Sum<T>* to) {
  const AxisPlan& width = plan.axis[kWidth];
  const ActivationStrides& strides = plan.source_strides();
  const int64_t stride = strides.space[kWidth] * width.step, pitch = plan.channel_pitch;
  const int64_t shift = item.tile[kWidth] * width.shift;
  for (int64_t s = 0; s < width.segment_count; ++s) {
    const Segment& segment = width.segment[s];
    const int64_t slots = segment.count + kLanes<T>;
    const Inside inside = row == nullptr ? Inside{0, 0} : inside_of(plan, item, s);
    for (int64_t c = 0; c < item.channels; ++c) {
      Sum<T>* first = to + segment.slot + c * pitch;
      zero(first, inside.begin, slots);
      zero(first + inside.end, slots - inside.end, slots - inside.end);
    }
    if (inside.begin == inside.end) continue;
    const T* from = row + (segment.position + shift + inside.begin * width.step) * strides.space[kWidth];
    copy_in(from, strides.channel, stride, to + segment.slot + inside.begin, pitch, item.channels,
            inside.end - inside.begin);
  }
}

}  // namespace involution::cpu::INVOLUTION_CPU_NAMESPACE
