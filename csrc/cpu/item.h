// What an item of work is, and its source in scratch: zero-padded, widened, channels apart.
#pragma once

#include "plan.h"
#include "transpose.h"

namespace involution::cpu::INVOLUTION_CPU_NAMESPACE {

struct Item {
  int64_t batch;
  int64_t group;
  int64_t channel;  // first of the block, within the group
  int64_t channels;
  int64_t tile[3];
  int64_t first[3];  // result of the tile along each axis
  int64_t count[3];
};

INVOLUTION_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
INVOLUTION_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

INVOLUTION_INLINE void set_channels(const Plan& plan, int64_t block, Item& item) {
  item.channel = block * plan.channels;
  item.channels = smaller(plan.channels, plan.problem.channels_per_group - item.channel);
}

// Blocks of channels fastest, which share kernel values, then tiles, groups and batch.
INVOLUTION_INLINE Item item_at(const Plan& plan, int64_t index) {
  Item item;
  if (plan.operation == Operation::kCorrelation) {
    set_channels(plan, 0, item);
  } else {
    set_channels(plan, index % plan.channel_blocks, item);
    index /= plan.channel_blocks;
  }
  for (int axis = 2; axis >= 0; --axis) {
    const AxisPlan& along = plan.axis[axis];
    item.tile[axis] = index % along.tiles;
    index /= along.tiles;
    item.first[axis] = item.tile[axis] * along.tile;
    item.count[axis] = smaller(along.tile, along.result - item.first[axis]);
  }
  item.group = index % plan.problem.groups;
  item.batch = index / plan.problem.groups;
  return item;
}

// The slots of one row of the source, for every channel; elements outside the source are zero.
template <typename T>
INVOLUTION_INLINE void stage_row(const AxisPlan& width, const T* row, const ActivationStrides& strides,
                                 int64_t shift, int64_t channels, Sum<T>* staged, int64_t pitch) {
  const int64_t stride = strides.space[kWidth] * width.step;
  for (int64_t s = 0; s < width.segment_count; ++s) {
    const Segment& segment = width.segment[s];
    const int64_t position = segment.position + shift;
    const int64_t slots = segment.count + kLanes<T>;  // and what a last vector runs over
    // Elements [inside, outside) exist.
    const int64_t to_start = (-position + width.step - 1) / width.step;
    const int64_t to_end = (width.source - position + width.step - 1) / width.step;
    const int64_t inside = position >= 0 ? 0 : smaller(to_start, segment.count);
    const int64_t outside =
        position >= width.source ? inside : larger(inside, smaller(to_end, segment.count));
    Sum<T>* to = staged + segment.slot;
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t slot = 0; slot < inside; ++slot) to[c * pitch + slot] = 0;
      for (int64_t slot = outside; slot < slots; ++slot) to[c * pitch + slot] = 0;
    }
    if (inside == outside) continue;
    const T* from = row + (position + inside * width.step) * strides.space[kWidth];
    copy_in(from, strides.channel, stride, to + inside, pitch, channels, outside - inside);
  }
}

// The source that an item's results meet: channel c at staged + c*channel_pitch, rows of slots in its order.
template <typename T>
void stage(const Plan& plan, const Item& item, const T* source, Sum<T>* staged) {
  const AxisPlan& depth = plan.axis[kDepth];
  const AxisPlan& height = plan.axis[kHeight];
  const AxisPlan& width = plan.axis[kWidth];
  const ActivationStrides& strides = plan.source_strides();
  const int64_t channel = item.group * plan.problem.channels_per_group + item.channel;
  source += item.batch * strides.batch + channel * strides.channel;
  for (int64_t ds = 0; ds < depth.segment_count; ++ds) {
    for (int64_t dj = 0; dj < depth.segment[ds].count; ++dj) {
      const int64_t d = depth.segment[ds].position + item.tile[kDepth] * depth.shift + dj * depth.step;
      const int64_t plane = (depth.segment[ds].slot + dj) * height.slots;
      for (int64_t hs = 0; hs < height.segment_count; ++hs) {
        for (int64_t hj = 0; hj < height.segment[hs].count; ++hj) {
          const int64_t h =
              height.segment[hs].position + item.tile[kHeight] * height.shift + hj * height.step;
          Sum<T>* row = staged + (plane + height.segment[hs].slot + hj) * width.slots;
          if (d < 0 || d >= depth.source || h < 0 || h >= height.source) {
            for (int64_t c = 0; c < item.channels; ++c) {
              for (int64_t slot = 0; slot < width.slots; ++slot) row[c * plan.channel_pitch + slot] = 0;
            }
          } else {
            stage_row(width, source + d * strides.space[kDepth] + h * strides.space[kHeight], strides,
                      item.tile[kWidth] * width.shift, item.channels, row, plan.channel_pitch);
          }
        }
      }
    }
  }
}

// The kernel points that a row of results meets, of one phase along the width, in row-major order. `at`
// counts the results from the tile's first. A zero of the padding takes part in involution and correlation;
// an output position that does not exist contributes nothing to the transposed operation.
INVOLUTION_INLINE int64_t collect_taps(const Plan& plan, const Item& item, int64_t at_depth,
                                       int64_t at_height, int64_t phase, int64_t length, Tap* taps) {
  const bool transposed = plan.operation == Operation::kTranspose;
  const WeightStrides& strides = plan.problem.w;
  const AxisPlan& depth = plan.axis[kDepth];
  const AxisPlan& height = plan.axis[kHeight];
  const AxisPlan& width = plan.axis[kWidth];
  const int64_t dj = at_depth / depth.phases, hj = at_height / height.phases;
  int64_t count = 0;
  for (int64_t kd = 0; kd < depth.kernel; ++kd) {
    const Run& d = depth.run[kd];
    const int64_t from_d = d.position + item.tile[kDepth] * depth.shift + dj * depth.step;
    if (transposed && (d.phase != at_depth % depth.phases || from_d < 0 || from_d >= depth.source)) continue;
    for (int64_t kh = 0; kh < height.kernel; ++kh) {
      const Run& h = height.run[kh];
      const int64_t from_h = h.position + item.tile[kHeight] * height.shift + hj * height.step;
      if (transposed && (h.phase != at_height % height.phases || from_h < 0 || from_h >= height.source))
        continue;
      const int64_t row = ((d.slot + dj) * height.slots + h.slot + hj) * width.slots;
      int64_t weight = kd * strides.kernel[kDepth] + kh * strides.kernel[kHeight];
      weight += (transposed ? from_d : item.first[kDepth] + at_depth) * strides.space[kDepth];
      weight += (transposed ? from_h : item.first[kHeight] + at_height) * strides.space[kHeight];
      for (int64_t kw = 0; kw < width.kernel; ++kw) {
        const Run& w = width.run[kw];
        if (w.phase != phase) continue;
        const int64_t from_w = transposed ? w.position + item.tile[kWidth] * width.shift : item.first[kWidth];
        Tap& tap = taps[count++];
        tap.weight = weight + kw * strides.kernel[kWidth] + from_w * strides.space[kWidth];
        tap.source = row + w.slot;
        tap.first = transposed ? larger(0, -from_w) : 0;
        tap.last = transposed ? smaller(length, width.source - from_w) : length;
      }
    }
  }
  return count;
}

}  // namespace involution::cpu::INVOLUTION_CPU_NAMESPACE
