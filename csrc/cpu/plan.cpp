#include "plan.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace involution::cpu {

namespace {

// What the staged source of an item may take: it shares the second-level cache with the kernel tensor.
constexpr int64_t kStagedBytes = 160 * 1024;
constexpr int64_t kStagedPixelBytes = 256 * 1024;
constexpr int64_t kSharedBytes = 512 * 1024;
constexpr int64_t kFewestResults = 64;
constexpr int64_t kWidestTile = 128;
constexpr int64_t kMostChannels = 32;
constexpr int64_t kCacheLine = 64;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }
int64_t modulo(int64_t a, int64_t b) { return (a % b + b) % b; }

// `gap` slots behind each segment may be read by a vector that runs over its end.
void place_segments(AxisPlan& plan, int64_t gap) {
  const int64_t length = divide_up(plan.tile, plan.phases);
  std::vector<int64_t> segment_of(plan.runs.size());
  plan.segments.clear();
  // In the order of ascending positions, which the transposed operation has backwards.
  for (size_t i = 0; i < plan.runs.size(); ++i) {
    const size_t k = plan.phases > 1 || plan.runs.front().position > plan.runs.back().position
                         ? plan.runs.size() - 1 - i
                         : i;
    Run& run = plan.runs[k];
    size_t chosen = 0;
    for (; chosen < plan.segments.size(); ++chosen) {
      const int64_t distance = run.position - plan.segments[chosen].position;
      if (distance >= 0 && distance % plan.step == 0 && distance / plan.step <= plan.segments[chosen].count)
        break;
    }
    if (chosen == plan.segments.size()) plan.segments.push_back({run.position, 0, 0});
    Segment& segment = plan.segments[chosen];
    run.slot = (run.position - segment.position) / plan.step;
    segment.count = std::max(segment.count, run.slot + length);
    segment_of[k] = static_cast<int64_t>(chosen);
  }
  plan.slots = 0;
  for (Segment& segment : plan.segments) {
    segment.slot = plan.slots;
    plan.slots += segment.count + gap;
  }
  for (size_t k = 0; k < plan.runs.size(); ++k) plan.runs[k].slot += plan.segments[segment_of[k]].slot;
}

AxisPlan make_axis(Operation operation, const Problem& problem, int axis) {
  const bool transposed = operation == Operation::kTranspose;
  const int64_t stride = problem.stride[axis];
  AxisPlan plan{};
  plan.source = transposed ? problem.output[axis] : problem.input[axis];
  plan.result = transposed ? problem.input[axis] : problem.output[axis];
  plan.phases = transposed ? stride : 1;
  plan.step = transposed ? 1 : stride;
  plan.kernel = problem.kernel[axis];
  for (int64_t k = 0; k < plan.kernel; ++k) {
    const int64_t reach = k * problem.dilation[axis] - problem.padding[axis];
    const int64_t phase = transposed ? modulo(reach, stride) : 0;
    plan.runs.push_back({phase, transposed ? (phase - reach) / stride : reach, 0});
  }
  return plan;
}

void set_tile(AxisPlan& plan, int64_t most, int64_t multiple, int64_t gap) {
  const int64_t unit = multiple * plan.phases;
  const int64_t tiles = divide_up(plan.result, std::max(most, unit));
  plan.tile = round_up(divide_up(plan.result, tiles), tiles > 1 ? unit : plan.phases);
  plan.tiles = divide_up(plan.result, plan.tile);
  plan.shift = plan.tile / plan.phases * plan.step;
  place_segments(plan, gap);
}

// The longest that the kernels have code for are taken first.
void chain_runs(AxisPlan& plan) {
  const auto& runs = plan.runs;
  const int64_t size = static_cast<int64_t>(runs.size());
  std::vector<int64_t> order(runs.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return std::make_pair(runs[a].phase, runs[a].slot) < std::make_pair(runs[b].phase, runs[b].slot);
  });
  for (int64_t begin = 0; begin < size;) {
    const Run& first = runs[order[begin]];
    const int64_t kernel_step = begin + 1 < size ? order[begin + 1] - order[begin] : 0;
    int64_t end = begin + 1;
    for (; end < size; ++end) {
      const Run& next = runs[order[end]];
      // Neighbouring slots may belong to segments that lie apart.
      if (next.phase != first.phase || next.slot != first.slot + (end - begin) ||
          next.position != first.position + (end - begin) * plan.step ||
          order[end] - order[end - 1] != kernel_step)
        break;
    }
    for (int64_t count; begin < end; begin += count) {
      count = end - begin;
      count = count >= 7 ? 7 : count == 6 ? 3 : count;
      plan.chains.push_back({runs[order[begin]], order[begin], kernel_step, count});
    }
  }
}

// Where each position of the source lies.
void list_slots(AxisPlan& plan) {
  plan.lowest = plan.segments.front().position;
  int64_t highest = plan.lowest;
  for (const Segment& segment : plan.segments) {
    plan.lowest = std::min(plan.lowest, segment.position);
    highest = std::max(highest, segment.position + (segment.count - 1) * plan.step);
  }
  plan.slots_of.assign(highest - plan.lowest + 1, -1);
  for (const Segment& segment : plan.segments) {
    for (int64_t i = 0; i < segment.count; ++i)
      plan.slots_of[segment.position + i * plan.step - plan.lowest] = segment.slot + i;
  }
}

// How many kernel rows further a row of results meets the source rows of the next row of results; 0 where it
// does not. Rows that share their source share its loads.
int64_t find_pairing(const AxisPlan& height) {
  if (height.phases > 1 || height.result < 2) return 0;
  for (int64_t distance = 1; distance < height.kernel; ++distance) {
    bool forwards = true, backwards = true;
    for (int64_t k = 0; k + distance < height.kernel; ++k) {
      const int64_t step = height.runs[k + distance].slot - height.runs[k].slot;
      forwards = forwards && step == 1;
      backwards = backwards && step == -1;
    }
    if (forwards || backwards) return forwards ? distance : -distance;
  }
  return 0;
}

// Channels that fill vectors make better ones than the width.
bool vectors_along_channels(const Plan& plan, int64_t lanes) {
  if (plan.operation == Operation::kCorrelation) return false;
  return 4 * plan.problem.channels_per_group >= 3 * lanes;
}

}  // namespace

Plan make_plan(Operation operation, const Problem& problem, int64_t accumulate_bytes, int64_t lanes,
               int64_t threads) {
  const bool correlation = operation == Operation::kCorrelation;
  Plan plan{};
  plan.operation = operation;
  plan.problem = problem;
  for (int axis = 0; axis < 3; ++axis) plan.axis[axis] = make_axis(operation, problem, axis);
  auto& [depth, height, width] = plan.axis;
  plan.points = depth.kernel * height.kernel * width.kernel;
  plan.channel_lanes = vectors_along_channels(plan, lanes);
  plan.pixel_pitch = plan.channel_lanes ? problem.channels_per_group > lanes ? 2 * lanes : lanes : 0;
  plan.channels = std::min(problem.channels_per_group, plan.channel_lanes ? plan.pixel_pitch : kMostChannels);
  plan.channel_blocks = divide_up(problem.channels_per_group, plan.channels);

  set_tile(width, kWidestTile, lanes, plan.channel_lanes ? 0 : lanes);
  set_tile(depth, 1, 1, 0);
  // As many rows as fit, so that few of the halo's are staged twice, unless threads would go without work. A
  // correlation over several channel blocks keeps its sums between them, of one row.
  const int64_t wanted = divide_up(4 * threads, problem.batch * problem.groups * depth.tiles * width.tiles *
                                                    (correlation ? 1 : plan.channel_blocks));
  int64_t rows = threads > 1 ? std::max<int64_t>(1, height.result / wanted) : height.result;
  plan.groups_innermost = problem.groups > 1 && problem.w.group < problem.w.space[kWidth];
  if (plan.groups_innermost) {
    // The groups of a tile, one after the other, find the lines of the cache that they share.
    const int64_t row = std::min(width.tile, width.result) * problem.w.space[kWidth] * accumulate_bytes;
    rows = std::clamp<int64_t>(kSharedBytes / std::max<int64_t>(1, row), 1, rows);
  }
  if (correlation && plan.channel_blocks > 1) rows = std::min<int64_t>(rows, 2);
  for (;; rows = divide_up(rows, 2)) {
    set_tile(height, rows, 1, 0);
    plan.paired = plan.channel_lanes ? 0 : find_pairing(height);
    if (correlation && plan.channel_blocks > 1 && plan.paired == 0 && rows > 1) continue;
    plan.channel_pitch = depth.slots * height.slots * width.slots;
    if (plan.channel_lanes) {
      if (rows == 1 || plan.pixel_pitch * plan.channel_pitch * accumulate_bytes <= kStagedPixelBytes) break;
      continue;
    }
    // Not a multiple of a page, where the channels would compete for the same lines of the cache.
    plan.channel_pitch = round_up(plan.channel_pitch, kCacheLine / accumulate_bytes);
    if (plan.channel_pitch / (kCacheLine / accumulate_bytes) % 2 == 0)
      plan.channel_pitch += kCacheLine / accumulate_bytes;
    if (rows == 1 || plan.channels * plan.channel_pitch * accumulate_bytes <= kStagedBytes) break;
  }

  if (plan.channel_lanes) {
    chain_runs(width);
    list_slots(width);
  }
  const int64_t rows_together = plan.paired != 0 ? 2 : 1;
  const int64_t taps = rows_together * plan.points;  // at most: those of two rows that have few in common

  plan.row_pitch = round_up(std::min(width.tile, width.result), lanes);
  const auto aligned = [](int64_t bytes) { return round_up(bytes, kCacheLine); };
  // The source; kernel values, or a correlation's sums, of the rows at hand; their results, or the
  // correlation's query; and the lists of what they are made of.
  const int64_t staged =
      plan.channel_lanes ? plan.pixel_pitch * plan.channel_pitch : plan.channels * plan.channel_pitch;
  if (plan.channel_lanes) plan.row_pitch = std::max(plan.row_pitch, kFewestResults);
  plan.weight_offset = aligned(staged * accumulate_bytes + kCacheLine);
  plan.result_offset = plan.weight_offset + aligned(rows_together * taps * plan.row_pitch * accumulate_bytes);
  const int64_t result_channels = plan.channel_lanes ? plan.pixel_pitch : rows_together * plan.channels;
  plan.tap_offset = plan.result_offset + aligned(result_channels * plan.row_pitch * accumulate_bytes);
  // Links: those of the item, and of a row.
  plan.stretch_offset =
      plan.tap_offset +
      aligned(plan.channel_lanes ? 2 * taps * kLinkBytes : taps * static_cast<int64_t>(sizeof(Tap)));
  const int64_t phases = std::min(height.phases, height.result) * std::min(width.phases, width.result);
  plan.scratch_bytes = plan.stretch_offset +
                       aligned(plan.channel_lanes ? phases * kLinksBytes
                                                  : 3 * depth.kernel * static_cast<int64_t>(sizeof(Stretch)));

  plan.items = problem.batch * problem.groups * depth.tiles * height.tiles * width.tiles *
               (correlation ? 1 : plan.channel_blocks);
  plan.multiply_adds = plan.points * std::min(depth.tile, depth.result) *
                       std::min(height.tile, height.result) * std::min(width.tile, width.result) *
                       (correlation ? problem.channels_per_group : plan.channels);
  for (AxisPlan& axis : plan.axis) {
    axis.run = axis.runs.data();
    axis.segment = axis.segments.data();
    axis.segment_count = static_cast<int64_t>(axis.segments.size());
    axis.chain = axis.chains.data();
    axis.chain_count = static_cast<int64_t>(axis.chains.size());
    axis.slot_of = axis.slots_of.data();
  }
  return plan;
}

}  // namespace involution::cpu
