// What a work item is, and where it finds its part of the tensors.
#pragma once

#include "plan.h"
#include "simd.h"

namespace involution::cpu::INVOLUTION_CPU_NAMESPACE {

struct WorkItem {
  int64_t batch;
  int64_t group;  // first, of those that follow each other
  int64_t groups;
  int64_t channel;  // first of the block, within the group
  int64_t channels;
  int64_t tile[3];
  int64_t first[3];  // result of the tile along each axis
  int64_t count[3];
};

INVOLUTION_INLINE int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
INVOLUTION_INLINE int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

// Blocks of channels fastest, which share weights, then tiles, groups and batch; but groups before tiles
// where the weights of all groups share lines of the cache.
INVOLUTION_INLINE WorkItem work_item_at(const Plan& plan, int64_t index) {
  WorkItem item;
  item.channel = index % plan.channel_blocks * plan.channels;
  item.channels = min(plan.channels, plan.problem.channels_per_group - item.channel);
  index /= plan.channel_blocks;
  if (plan.groups_innermost) {
    item.group = index % plan.group_blocks * plan.groups;
    index /= plan.group_blocks;
  }
  for (int axis = 2; axis >= 0; --axis) {
    const AxisPlan& along = plan.axis[axis];
    item.tile[axis] = index % along.tiles;
    index /= along.tiles;
    item.first[axis] = item.tile[axis] * along.tile;
    item.count[axis] = min(along.tile, along.result - item.first[axis]);
  }
  if (!plan.groups_innermost) {
    item.group = index % plan.group_blocks * plan.groups;
    index /= plan.group_blocks;
  }
  item.groups = min(plan.groups, plan.problem.groups - item.group);
  item.batch = index;
  return item;
}

// The weights of an item's batch entry and first group.
template <typename T>
INVOLUTION_INLINE T* group_weights(const Plan& plan, const WorkItem& item, T* weights) {
  return weights + item.batch * plan.problem.w.batch + item.group * plan.problem.w.group;
}

// The first channel of an item's batch entry, in the source or the result.
template <typename T>
INVOLUTION_INLINE T* first_channel(const Plan& plan, const WorkItem& item, const ActivationStrides& strides,
                                   T* activation) {
  const int64_t channel = item.group * plan.problem.channels_per_group + item.channel;
  return activation + item.batch * strides.batch + channel * strides.channel;
}

// Channels from the first of an item's groups to the last of its last.
INVOLUTION_INLINE int64_t channels_of(const Plan& plan, const WorkItem& item) {
  return (item.groups - 1) * plan.problem.channels_per_group + item.channels;
}

// From the first position of the results to that of the tile.
INVOLUTION_INLINE int64_t tile_offset(const WorkItem& item, const int64_t (&space)[3]) {
  return item.first[kDepth] * space[kDepth] + item.first[kHeight] * space[kHeight] +
         item.first[kWidth] * space[kWidth];
}

// What exists of a segment along the width.
INVOLUTION_INLINE Inside inside_of(const Plan& plan, const WorkItem& item, int64_t segment) {
  const AxisPlan& width = plan.axis[kWidth];
  return width.inside[item.tile[kWidth] * width.segment_count + segment];
}

// The positions along an axis that exist between the first and the last that an item reads.
struct Range {
  int64_t first;
  int64_t count;
};
INVOLUTION_INLINE Range range_of(const Plan& plan, const WorkItem& item, int axis) {
  const AxisPlan& along = plan.axis[axis];
  const int64_t shift = item.tile[axis] * along.shift;
  const int64_t first = max(0, along.lowest + shift);
  return {first, max(0, min(along.source, along.highest + 1 + shift) - first)};
}

}  // namespace involution::cpu::INVOLUTION_CPU_NAMESPACE
