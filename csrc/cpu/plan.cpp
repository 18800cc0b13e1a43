#include "plan.h"

#include <algorithm>
#include <numeric>
#include <tuple>

#include "../integer_math.h"

namespace involution::cpu {

namespace {

// What the staged source of an item may take: it shares the second-level cache with the weights.
constexpr int64_t kStagedBytes = 352 * 1024;
constexpr int64_t kSharedBytes = 512 * 1024;
constexpr int64_t kFewBytes = 80 * 1024;
constexpr int64_t kWidestTile = 128;
constexpr int64_t kFewestPositions = 64;
constexpr int64_t kKernelRowChannels = 128;
constexpr int64_t kLongRow = 16;
constexpr int64_t kCacheLine = 64;
constexpr int64_t kKernelRow = 8;  // as in correlation_kernel_row.h

// `gap` slots behind each segment may be read by a vector that runs over its end.
void place_segments(AxisPlan& plan, int64_t gap) {
  const int64_t length = (ceil_div(plan.tile, plan.phases) - 1) * plan.advance + 1;
  std::vector<int64_t> segment_of(plan.taps.size());
  plan.segments.clear();
  // In the order of ascending positions, which the transposed operation has backwards.
  for (size_t i = 0; i < plan.taps.size(); ++i) {
    const size_t k = plan.phases > 1 || plan.taps.front().position > plan.taps.back().position
                         ? plan.taps.size() - 1 - i
                         : i;
    AxisTap& tap = plan.taps[k];
    size_t chosen = 0;
    for (; chosen < plan.segments.size(); ++chosen) {
      const int64_t distance = tap.position - plan.segments[chosen].position;
      if (distance >= 0 && distance % plan.step == 0 && distance / plan.step <= plan.segments[chosen].count)
        break;
    }
    if (chosen == plan.segments.size()) plan.segments.push_back({tap.position, 0, 0});
    Segment& segment = plan.segments[chosen];
    tap.slot = (tap.position - segment.position) / plan.step;
    segment.count = std::max(segment.count, tap.slot + length);
    segment_of[k] = static_cast<int64_t>(chosen);
  }
  plan.slots = 0;
  for (Segment& segment : plan.segments) {
    segment.slot = plan.slots;
    plan.slots += segment.count + gap;
  }
  for (size_t k = 0; k < plan.taps.size(); ++k) plan.taps[k].slot += plan.segments[segment_of[k]].slot;
}

AxisPlan make_axis(Operation operation, const Problem& problem, int axis) {
  const bool transposed = operation == Operation::kTranspose;
  const int64_t stride = problem.stride[axis];
  AxisPlan plan{};
  plan.source = transposed ? problem.output[axis] : problem.input[axis];
  plan.result = transposed ? problem.input[axis] : problem.output[axis];
  plan.phases = transposed ? stride : 1;
  plan.step = transposed ? 1 : stride;
  plan.advance = 1;
  plan.kernel = problem.kernel[axis];
  for (int64_t k = 0; k < plan.kernel; ++k) {
    const int64_t reach = k * problem.dilation[axis] - problem.padding[axis];
    const int64_t phase = transposed ? floor_mod(reach, stride) : 0;
    plan.taps.push_back({phase, transposed ? (phase - reach) / stride : reach, 0});
  }
  return plan;
}

void set_tile(AxisPlan& plan, int64_t most, int64_t multiple, int64_t gap) {
  const int64_t unit = multiple * plan.phases;
  const int64_t tiles = ceil_div(plan.result, std::max(most, unit));
  plan.tile = round_up(ceil_div(plan.result, tiles), tiles > 1 ? unit : plan.phases);
  plan.tiles = ceil_div(plan.result, plan.tile);
  plan.shift = plan.tile / plan.phases * plan.step * plan.advance;
  place_segments(plan, gap);
}

// Chains are split into lengths that involution_channels.h has code for: 7, 4, 3 and 1.
void chain_taps(AxisPlan& plan) {
  const auto& taps = plan.taps;
  const int64_t size = static_cast<int64_t>(taps.size());
  std::vector<int64_t> order(taps.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    const auto key = [&](const AxisTap& tap) {
      return std::make_tuple(tap.phase, tap.slot % plan.advance, tap.slot);
    };
    return key(taps[a]) < key(taps[b]);
  });
  for (int64_t begin = 0; begin < size;) {
    const AxisTap& first = taps[order[begin]];
    const int64_t kernel_step = begin + 1 < size ? order[begin + 1] - order[begin] : 0;
    int64_t end = begin + 1;
    for (; end < size; ++end) {
      const AxisTap& next = taps[order[end]];
      // Neighbouring slots may belong to segments that lie apart.
      if (next.phase != first.phase || next.slot != first.slot + (end - begin) * plan.advance ||
          next.position != first.position + (end - begin) * plan.advance * plan.step ||
          order[end] - order[end - 1] != kernel_step)
        break;
    }
    for (int64_t count; begin < end; begin += count) {
      count = end - begin;
      count = count >= 7 ? 7 : count == 6 ? 3 : count == 5 ? 4 : count == 2 ? 1 : count;
      plan.chains.push_back({taps[order[begin]], order[begin], kernel_step, count});
    }
  }
}

void find_extent(AxisPlan& plan) {
  plan.lowest = plan.segments.front().position;
  plan.highest = plan.lowest;
  for (const Segment& segment : plan.segments) {
    plan.lowest = std::min(plan.lowest, segment.position);
    plan.highest = std::max(plan.highest, segment.position + (segment.count - 1) * plan.step);
  }
}

// What of each tile's segments exists.
void list_insides(AxisPlan& plan) {
  plan.insides.reserve(plan.tiles * plan.segments.size());
  for (int64_t tile = 0; tile < plan.tiles; ++tile) {
    for (const Segment& segment : plan.segments) {
      const int64_t position = segment.position + tile * plan.shift;
      const int64_t begin = std::clamp<int64_t>(ceil_div(-position, plan.step), 0, segment.count);
      const int64_t end = ceil_div(plan.source - position, plan.step);
      plan.insides.push_back({begin, std::clamp(end, begin, segment.count)});
    }
  }
}

// From one weight of a position to the next; 0 where they are not evenly spaced, or all the same one.
int64_t find_tap_stride(const Problem& problem) {
  int64_t taps = 1, stride = 1;
  for (int axis = kWidth; axis >= kDepth; --axis) {
    if (problem.kernel[axis] == 1) continue;
    if (taps == 1) stride = problem.w.kernel[axis];
    if (problem.w.kernel[axis] != taps * stride) return 0;
    taps *= problem.kernel[axis];
  }
  return stride;
}

void choose_algorithm(Plan& plan, int64_t lanes) {
  const Problem& problem = plan.problem;
  const auto& [depth, height, width] = plan.axis;
  const int64_t channels = problem.channels_per_group;
  plan.tap_stride = find_tap_stride(problem);
  plan.algorithm = Algorithm::kWidth;
  plan.channels = channels;
  if (plan.operation != Operation::kCorrelation) {
    // Channels that fill vectors make better ones than the width.
    if (4 * channels >= 3 * lanes) plan.algorithm = Algorithm::kChannels;
  } else {
    // Long rows fill vectors along the width, whose sums are where they belong if the taps lie apart.
    const bool long_rows = width.result > kLongRow && problem.stride[kWidth] == 1;
    const bool fills = width.kernel <= kKernelRow && 2 * width.kernel > kKernelRow;
    if (lanes >= kKernelRow && fills && height.kernel > 1 && problem.dilation[kWidth] == 1 &&
        channels <= kKernelRowChannels && plan.tap_stride != 0 && (plan.tap_stride == 1 || !long_rows))
      plan.algorithm = Algorithm::kKernelRow;
  }
  if (plan.algorithm == Algorithm::kChannels) {
    plan.pixel_pitch = channels > lanes ? 2 * lanes : lanes;
    plan.channels = std::min(channels, plan.pixel_pitch);
  }
  plan.channel_blocks = ceil_div(channels, plan.channels);
}

// Of a plane, the rows between the first and the last that a row of results reads.
int64_t rows_read(const AxisPlan& height) {
  int64_t lowest = height.taps.front().position, highest = lowest;
  for (const AxisTap& tap : height.taps) {
    lowest = std::min(lowest, tap.position);
    highest = std::max(highest, tap.position);
  }
  return highest - lowest + (height.phases > 1 ? 2 : 1);
}

// As many rows of results as there are, of which few of the source's are then staged twice; fewer where
// threads would go without work.
void cut_items(Plan& plan, int64_t accumulate_bytes, int64_t threads) {
  const Problem& problem = plan.problem;
  const auto& [depth, height, width] = plan.axis;
  const int64_t line = kCacheLine / accumulate_bytes;
  plan.ring_rows = std::min(rows_read(height), height.source);
  const int64_t staged_rows = depth.slots * plan.ring_rows + 1;  // one of zeros
  if (plan.algorithm == Algorithm::kChannels) {
    plan.source_row = width.slots * plan.pixel_pitch;
    plan.group_pitch = staged_rows * plan.source_row;
  } else {
    plan.source_row = width.slots;
    // Not a multiple of a page, where the channels would compete for the same lines of the cache.
    plan.channel_pitch = round_up(staged_rows * width.slots, line);
    if (plan.channel_pitch / line % 2 == 0) plan.channel_pitch += line;
    plan.group_pitch = plan.channels * plan.channel_pitch;
  }
  plan.groups_innermost = problem.groups > 1 && problem.w.group < problem.w.space[kWidth];
  const bool all_groups =
      plan.groups_innermost && plan.algorithm != Algorithm::kWidth && plan.channel_blocks == 1;
  plan.groups = all_groups ? problem.groups : 1;
  while (plan.groups > 1 && plan.groups * plan.group_pitch * accumulate_bytes > kStagedBytes)
    plan.groups = ceil_div(plan.groups, 2);
  plan.group_blocks = ceil_div(problem.groups, plan.groups);

  const int64_t others = problem.batch * plan.group_blocks * plan.channel_blocks * depth.tiles * width.tiles;
  int64_t rows = height.result;
  if (threads > 1) rows = std::max<int64_t>(1, rows / ceil_div(4 * threads, others));
  if (plan.groups_innermost && plan.groups == 1) {
    // The groups of a tile, one after the other, find the lines of the cache that they share.
    const int64_t row = std::min(width.tile, width.result) * problem.w.space[kWidth] * accumulate_bytes;
    rows = std::clamp<int64_t>(kSharedBytes / std::max<int64_t>(1, row), 1, rows);
  }
  set_tile(plan.axis[kHeight], rows, 1, 0);
  plan.items = others * height.tiles;
  const int64_t positions = problem.output[kDepth] * problem.output[kHeight] * problem.output[kWidth];
  plan.few_weights = plan.tap_stride == positions && depth.tiles * height.tiles * width.tiles == 1 &&
                     plan.taps * positions * accumulate_bytes <= kFewBytes;
}

void lay_out_scratch(Plan& plan, int64_t accumulate_bytes, int64_t lanes) {
  const auto& [depth, height, width] = plan.axis;
  const auto aligned = [](int64_t bytes) { return round_up(bytes, kCacheLine); };
  // Narrow rows leave scratch together, as many as a wide one has positions.
  const int64_t length = std::max(kFewestPositions, std::min(width.tile, width.result));
  plan.row_pitch = round_up(length, lanes);
  int64_t weights = 0, results = 0;
  if (plan.algorithm == Algorithm::kWidth) {
    weights = plan.taps * plan.row_pitch;
    results = plan.channels * plan.row_pitch;
  } else if (plan.algorithm == Algorithm::kChannels) {
    results = plan.groups * length * plan.pixel_pitch;
  } else {
    weights = length * plan.taps + kKernelRow;
  }
  const int64_t lists = depth.kernel * height.kernel * static_cast<int64_t>(sizeof(RowTap)) +
                        depth.slots * plan.ring_rows * static_cast<int64_t>(sizeof(int64_t)) +
                        width.kernel * static_cast<int64_t>(sizeof(TapRun)) +
                        plan.taps * static_cast<int64_t>(sizeof(int64_t));
  // Vectors may run over the end of what is staged.
  plan.weight_offset = aligned(plan.groups * plan.group_pitch * accumulate_bytes + kCacheLine);
  plan.result_offset = plan.weight_offset + aligned((weights + lanes) * accumulate_bytes);
  plan.list_offset = plan.result_offset + aligned((results + lanes) * accumulate_bytes);
  plan.scratch_bytes = plan.list_offset + aligned(lists);
}

}  // namespace

Plan make_plan(Operation operation, const Problem& problem, int64_t element_bytes, int64_t vector_bytes,
               int64_t threads) {
  const int64_t accumulate_bytes = std::max<int64_t>(4, element_bytes);
  const int64_t lanes = vector_bytes / accumulate_bytes;
  Plan plan{};
  plan.operation = operation;
  plan.problem = problem;
  for (int axis = 0; axis < 3; ++axis) plan.axis[axis] = make_axis(operation, problem, axis);
  auto& [depth, height, width] = plan.axis;
  plan.taps = depth.kernel * height.kernel * width.kernel;
  choose_algorithm(plan, lanes);
  const bool by_width = plan.algorithm == Algorithm::kWidth;
  // Vectors along the width need the positions of neighbouring results side by side; others take all
  // positions as they come.
  if (!by_width) std::swap(width.advance, width.step);
  // A vector along the width, or of a kernel row, may run over a row's end.
  set_tile(width, kWidestTile, lanes, plan.algorithm == Algorithm::kChannels ? 0 : lanes);
  set_tile(depth, 1, 1, 0);
  cut_items(plan, accumulate_bytes, threads);
  chain_taps(width);
  for (AxisPlan& axis : plan.axis) find_extent(axis);
  list_insides(width);
  lay_out_scratch(plan, accumulate_bytes, lanes);
  plan.multiply_adds = plan.groups * plan.channels * plan.taps * std::min(depth.tile, depth.result) *
                       std::min(height.tile, height.result) * std::min(width.tile, width.result);
  for (AxisPlan& axis : plan.axis) {
    axis.tap = axis.taps.data();
    axis.segment = axis.segments.data();
    axis.segment_count = static_cast<int64_t>(axis.segments.size());
    axis.chain = axis.chains.data();
    axis.chain_count = static_cast<int64_t>(axis.chains.size());
    axis.inside = axis.insides.data();
  }
  return plan;
}

}  // namespace involution::cpu
