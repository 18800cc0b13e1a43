// What an item of work is, and its source in scratch: zero-padded, widened, channels apart.
#pragma once

#include "fetch.h"
#include "plan.h"
#include "transpose.h"

namespace involution::cpu::INVOLUTION_CPU_NAMESPACE {

struct Item {
  int64_t batch;
  int64_t group;  // first, of those that follow each other
  int64_t groups;
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

// Blocks of channels fastest, which share kernel values, then tiles, groups and batch; but groups before
// tiles where the kernel values of all groups share lines of the cache.
INVOLUTION_INLINE Item item_at(const Plan& plan, int64_t index) {
  Item item;
  if (plan.operation == Operation::kCorrelation) {
    set_channels(plan, 0, item);
  } else {
    set_channels(plan, index % plan.channel_blocks, item);
    index /= plan.channel_blocks;
  }
  if (plan.groups_innermost) {
    item.group = index % plan.group_blocks * plan.groups;
    index /= plan.group_blocks;
  }
  for (int axis = 2; axis >= 0; --axis) {
    const AxisPlan& along = plan.axis[axis];
    item.tile[axis] = index % along.tiles;
    index /= along.tiles;
    item.first[axis] = item.tile[axis] * along.tile;
    item.count[axis] = smaller(along.tile, along.result - item.first[axis]);
  }
  if (!plan.groups_innermost) {
    item.group = index % plan.group_blocks * plan.groups;
    index /= plan.group_blocks;
  }
  item.groups = smaller(plan.groups, plan.problem.groups - item.group);
  item.batch = index;
  return item;
}

// The kernel values of an item's batch entry and first group.
template <typename T>
INVOLUTION_INLINE T* group_weights(const Plan& plan, const Item& item, T* weights) {
  return weights + item.batch * plan.problem.w.batch + item.group * plan.problem.w.group;
}

// The first channel of an item's batch entry, in the source or the result.
template <typename T>
INVOLUTION_INLINE T* first_channel(const Plan& plan, const Item& item, const ActivationStrides& strides,
                                   T* activation) {
  const int64_t channel = item.group * plan.problem.channels_per_group + item.channel;
  return activation + item.batch * strides.batch + channel * strides.channel;
}

// Channels from the first of an item's groups to the last of its last.
INVOLUTION_INLINE int64_t channels_of(const Plan& plan, const Item& item) {
  return (item.groups - 1) * plan.problem.channels_per_group + item.channels;
}

// From the first position of the results to that of the tile.
INVOLUTION_INLINE int64_t tile_offset(const Item& item, const int64_t (&space)[3]) {
  return item.first[kDepth] * space[kDepth] + item.first[kHeight] * space[kHeight] +
         item.first[kWidth] * space[kWidth];
}

// At least `count` zeros, of which there is room for `room`, at least a vector.
template <typename S>
INVOLUTION_INLINE void zero(S* to, int64_t count, int64_t room) {
  constexpr int L = kLanes<S>;
  for (int64_t i = 0; i < count; i += L) store(to + smaller(i, room - L), Vector<S>{});
}

// What exists of a segment along the width.
INVOLUTION_INLINE Inside inside_of(const Plan& plan, const Item& item, int64_t segment) {
  const AxisPlan& width = plan.axis[kWidth];
  return width.inside[item.tile[kWidth] * width.segment_count + segment];
}

// The positions along an axis that exist between the first and the last that an item meets.
struct Window {
  int64_t first;
  int64_t count;
};
INVOLUTION_INLINE Window window_of(const Plan& plan, const Item& item, int axis) {
  const AxisPlan& along = plan.axis[axis];
  const int64_t shift = item.tile[axis] * along.shift;
  const int64_t first = larger(0, along.lowest + shift);
  return {first, larger(0, smaller(along.source, along.highest + 1 + shift) - first)};
}

// The rows that an item stages, in the order of their slots.
class SourceRows {
 public:
  SourceRows(const Plan& plan, const Item& item) : depth_(plan.axis[kDepth]), height_(plan.axis[kHeight]) {
    first_depth_ = item.tile[kDepth] * depth_.shift;
    first_height_ = item.tile[kHeight] * height_.shift;
  }

  // Goes to the first row, and then to the next; false behind the last.
  bool next() {
    if (++hj_ == height_.segment[hs_].count) {
      hj_ = 0;
      if (++hs_ == height_.segment_count) {
        hs_ = 0;
        if (++dj_ == depth_.segment[ds_].count) {
          dj_ = 0;
          if (++ds_ == depth_.segment_count) return false;
        }
      }
    }
    const Segment& deep = depth_.segment[ds_];
    const Segment& high = height_.segment[hs_];
    slot = (deep.slot + dj_) * height_.slots + high.slot + hj_;
    depth = deep.position + first_depth_ + dj_ * depth_.step;
    height = high.position + first_height_ + hj_ * height_.step;
    exists = depth >= 0 && depth < depth_.source && height >= 0 && height < height_.source;
    return true;
  }

  int64_t slot = 0;
  int64_t depth = 0, height = 0;  // position in the source
  bool exists = false;

 private:
  const AxisPlan& depth_;
  const AxisPlan& height_;
  int64_t first_depth_, first_height_;
  int64_t ds_ = 0, dj_ = 0, hs_ = 0, hj_ = -1;
};

// Calls visit(row of slots, whether it exists, depth, height) for every row that an item stages.
template <typename Visit>
INVOLUTION_INLINE void for_each_row(const Plan& plan, const Item& item, const Visit& visit) {
  for (SourceRows rows(plan, item); rows.next();) visit(rows.slot, rows.exists, rows.depth, rows.height);
}

// `count` positions of some channels, at once or as part of a queue.
template <typename T>
INVOLUTION_INLINE void expect(const T* from, const ActivationStrides& strides, int64_t count,
                              int64_t channels) {
  const bool along_width = strides.space[kWidth] == 1;
  const int64_t runs = along_width ? channels : count, run = along_width ? count : channels;
  const int64_t pitch = along_width ? strides.channel : strides.space[kWidth];
  for (int64_t r = 0; r < runs; ++r) expect_run(from + r * pitch, run);
}
template <typename T>
INVOLUTION_INLINE void expect(const T* from, const ActivationStrides& strides, int64_t count,
                              int64_t channels, FetchQueue& queue) {
  if (strides.space[kWidth] == 1) {
    queue.add(from, channels, strides.channel, count);
  } else {
    queue.add(from, count, strides.space[kWidth], strides.channel == 1 ? channels : 1);
  }
}

// What the next item of a thread stages first, while this one computes: with the channels innermost the rows
// that its first results meet, else all rows. Of long rows the processor itself fetches as much as helps.
template <typename T>
void expect_source(const Plan& plan, const Item* next, const T* source, FetchQueue& queue) {
  constexpr int64_t kWide = 32;
  constexpr int64_t kWideWindows = 24;  // which fetch each row before it is met
  if (next == nullptr) return;
  const ActivationStrides& strides = plan.source_strides();
  const bool along_width = strides.space[kWidth] == 1;
  if (along_width && next->count[kWidth] >= (plan.form == Form::kWindows ? kWideWindows : kWide)) return;
  const Window deep = window_of(plan, *next, kDepth), high = window_of(plan, *next, kHeight);
  const Window wide = window_of(plan, *next, kWidth);
  const int64_t rows = along_width ? high.count : smaller(plan.rolling, high.count);
  const int64_t row = strides.space[kHeight], channels = channels_of(plan, *next);
  if (rows == 0 || wide.count == 0) return;
  const T* plane = first_channel(plan, *next, strides, source) + deep.first * strides.space[kDepth] +
                   high.first * row + wide.first * strides.space[kWidth];
  for (int64_t d = 0; d < deep.count; ++d, plane += strides.space[kDepth]) {
    if (row == wide.count * strides.space[kWidth]) {  // rows that follow each other are one
      expect(plane, strides, rows * wide.count, channels, queue);
    } else if (along_width && row < 2 * wide.count) {  // and so are those with little between them
      expect(plane, strides, (rows - 1) * row + wide.count, channels, queue);
    } else {
      for (int64_t h = 0; h < rows; ++h) expect(plane + h * row, strides, wide.count, channels, queue);
    }
  }
}

// The slots of one row of the source, for every channel; elements outside of it are zero.
template <typename T>
INVOLUTION_INLINE void stage_row(const Plan& plan, const Item& item, const T* row, Sum<T>* staged) {
  const AxisPlan& width = plan.axis[kWidth];
  const ActivationStrides& strides = plan.source_strides();
  const int64_t stride = strides.space[kWidth] * width.step, pitch = plan.channel_pitch;
  const int64_t shift = item.tile[kWidth] * width.shift;
  for (int64_t s = 0; s < width.segment_count; ++s) {
    const Segment& segment = width.segment[s];
    const int64_t slots = segment.count + kLanes<T>;  // and what a last vector runs over
    const auto [inside, outside] = inside_of(plan, item, s);
    Sum<T>* to = staged + segment.slot;
    for (int64_t c = 0; c < item.channels; ++c) {
      zero(to + c * pitch, inside, slots);
      zero(to + c * pitch + outside, slots - outside, slots - outside);
    }
    if (inside == outside) continue;
    const T* from = row + (segment.position + shift + inside * width.step) * strides.space[kWidth];
    copy_in(from, strides.channel, stride, to + inside, pitch, item.channels, outside - inside);
  }
}

// The source that an item's results meet: channel c at staged + c*channel_pitch, rows of slots in its order.
template <typename T>
void stage(const Plan& plan, const Item& item, const T* source, Sum<T>* staged) {
  const int64_t slots = plan.axis[kWidth].slots;
  const ActivationStrides& strides = plan.source_strides();
  source = first_channel(plan, item, strides, source);
  for_each_row(plan, item, [&](int64_t row, bool exists, int64_t d, int64_t h) {
    Sum<T>* to = staged + row * slots;
    if (!exists) {
      for (int64_t c = 0; c < item.channels; ++c) zero(to + c * plan.channel_pitch, slots, slots);
    } else {
      stage_row(plan, item, source + d * strides.space[kDepth] + h * strides.space[kHeight], to);
    }
  });
}

// The rows of results that are computed together: one, or two that share source rows; one phase along the
// width.
struct Rows {
  int64_t depth;  // counted from the tile's first
  int64_t height;
  int64_t count;
  int64_t phase;
  int64_t length;
};

// The kernel points that these rows meet, in row-major order for each row. A zero of the padding takes part
// in involution and correlation; an output position that does not exist contributes nothing to the transposed
// operation.
class TapList {
 public:
  TapList(const Plan& plan, const Item& item, unsigned char* scratch)
      : taps(reinterpret_cast<Tap*>(scratch + plan.tap_offset)),
        stretches(reinterpret_cast<Stretch*>(scratch + plan.stretch_offset)),
        plan_(plan),
        item_(item),
        transposed_(plan.operation == Operation::kTranspose) {}

  void collect(const Rows& rows) {
    tap_count = stretch_count = 0;
    const AxisPlan& depth = plan_.axis[kDepth];
    const int64_t kernel = plan_.axis[kHeight].kernel;
    const int64_t j = rows.depth / depth.phases;
    for (int64_t kd = 0; kd < depth.kernel; ++kd) {
      const Run& run = depth.run[kd];
      const int64_t from = run.position + item_.tile[kDepth] * depth.shift + j * depth.step;
      if (transposed_ && (run.phase != rows.depth % depth.phases || from < 0 || from >= depth.source))
        continue;
      const int64_t at = transposed_ ? from : item_.first[kDepth] + rows.depth;
      const int64_t weight = kd * plan_.problem.w.kernel[kDepth] + at * plan_.problem.w.space[kDepth];
      const int64_t plane = (run.slot + j) * plan_.axis[kHeight].slots;
      if (rows.count == 1) {
        add(rows, 1, weight, plane, 0, 0, kernel);
      } else if (plan_.paired > 0) {
        add(rows, 1, weight, plane, 0, 0, plan_.paired);
        add(rows, 3, weight, plane, plan_.paired, 0, kernel - plan_.paired);
        add(rows, 2, weight, plane, 0, kernel - plan_.paired, plan_.paired);
      } else {
        add(rows, 2, weight, plane, 0, 0, -plan_.paired);
        add(rows, 3, weight, plane, 0, -plan_.paired, kernel + plan_.paired);
        add(rows, 1, weight, plane, kernel + plan_.paired, 0, -plan_.paired);
      }
    }
  }

  Tap* const taps;
  Stretch* const stretches;
  int64_t tap_count = 0;
  int64_t stretch_count = 0;

 private:
  // `count` kernel rows from k[0] of the first row of results and from k[1] of the second, of those in
  // `which`.
  void add(const Rows& rows, int64_t which, int64_t weight, int64_t plane, int64_t k0, int64_t k1,
           int64_t count) {
    const AxisPlan& height = plan_.axis[kHeight];
    const WeightStrides& strides = plan_.problem.w;
    const int64_t before = tap_count;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t row = which == 2 ? 1 : 0;
      const Run& run = height.run[(row == 1 ? k1 : k0) + i];
      const int64_t h = rows.height + row;
      const int64_t j = h / height.phases;
      const int64_t from = run.position + item_.tile[kHeight] * height.shift + j * height.step;
      if (transposed_ && (run.phase != h % height.phases || from < 0 || from >= height.source)) continue;
      const int64_t first = item_.first[kHeight] + rows.height;
      const int64_t weights[2] = {
          weight + (k0 + i) * strides.kernel[kHeight] + (transposed_ ? from : first) * strides.space[kHeight],
          weight + (k1 + i) * strides.kernel[kHeight] +
              (transposed_ ? from : first + 1) * strides.space[kHeight]};
      add_row(rows, weights, (plane + run.slot + j) * plan_.axis[kWidth].slots);
    }
    if (tap_count > before) stretches[stretch_count++] = {which, tap_count - before};
  }

  void add_row(const Rows& rows, const int64_t (&weights)[2], int64_t source) {
    const AxisPlan& width = plan_.axis[kWidth];
    const WeightStrides& strides = plan_.problem.w;
    for (int64_t kw = 0; kw < width.kernel; ++kw) {
      const Run& run = width.run[kw];
      if (run.phase != rows.phase) continue;
      const int64_t from =
          transposed_ ? run.position + item_.tile[kWidth] * width.shift : item_.first[kWidth];
      const int64_t weight = kw * strides.kernel[kWidth] + from * strides.space[kWidth];
      taps[tap_count++] = {{weights[0] + weight, weights[1] + weight},
                           source + run.slot,
                           transposed_ ? larger(0, -from) : 0,
                           transposed_ ? smaller(rows.length, width.source - from) : rows.length};
    }
  }

  const Plan& plan_;
  const Item& item_;
  const bool transposed_;
};

}  // namespace involution::cpu::INVOLUTION_CPU_NAMESPACE
