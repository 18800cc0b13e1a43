#include "plan.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace involution::cpu {

namespace {

// What the staged source of an item may take: it shares the second-level cache with the kernel tensor.
constexpr int64_t kStagedBytes = 160 * 1024;
constexpr int64_t kStagedPixelBytes = 352 * 1024;
constexpr int64_t kSharedBytes = 512 * 1024;
constexpr int64_t kFewestResults = 64;
constexpr int64_t kFewBytes = 80 * 1024;
constexpr int64_t kFewWidenedBytes = 192 * 1024;
constexpr int64_t kWidestTile = 128;
constexpr int64_t kMostChannels = 32;
constexpr int64_t kMostQuadChannels = 128;
constexpr int64_t kLongRow = 16;
constexpr int64_t kCacheLine = 64;
constexpr int64_t kQuadBytes = 16;
constexpr int64_t kWindow = 8;
constexpr int64_t kRowsSharing = 3;
constexpr int64_t kRowsScattered = 2;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }
int64_t modulo(int64_t a, int64_t b) { return (a % b + b) % b; }

// `gap` slots behind each segment may be read by a vector that runs over its end.
void place_segments(AxisPlan& plan, int64_t gap) {
  const int64_t length = (divide_up(plan.tile, plan.phases) - 1) * plan.advance + 1;
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
  plan.advance = 1;
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
  plan.shift = plan.tile / plan.phases * plan.step * plan.advance;
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
      count = count >= 7 ? 7 : count == 6 ? 3 : count == 5 ? 4 : count == 2 ? 1 : count;
      plan.chains.push_back({runs[order[begin]], order[begin], kernel_step, count});
    }
  }
}

// Where each position of the source lies.
void list_slots(AxisPlan& plan) {
  plan.lowest = plan.segments.front().position;
  plan.highest = plan.lowest;
  for (const Segment& segment : plan.segments) {
    plan.lowest = std::min(plan.lowest, segment.position);
    plan.highest = std::max(plan.highest, segment.position + (segment.count - 1) * plan.step);
  }
  plan.slots_of.assign(plan.highest - plan.lowest + 1, -1);
  for (const Segment& segment : plan.segments) {
    for (int64_t i = 0; i < segment.count; ++i)
      plan.slots_of[segment.position + i * plan.step - plan.lowest] = segment.slot + i;
  }
}

// What of each tile's segments exists.
void list_insides(AxisPlan& plan) {
  plan.insides.reserve(plan.tiles * plan.segments.size());
  for (int64_t tile = 0; tile < plan.tiles; ++tile) {
    for (const Segment& segment : plan.segments) {
      const int64_t position = segment.position + tile * plan.shift;
      const int64_t begin = std::clamp<int64_t>(divide_up(-position, plan.step), 0, segment.count);
      const int64_t end = divide_up(plan.source - position, plan.step);
      plan.insides.push_back({begin, std::clamp(end, begin, segment.count)});
    }
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

// From one kernel value of a position to the next; 0 where they are not evenly spaced, or all the same one.
int64_t find_tap_stride(const Problem& problem) {
  int64_t points = 1, stride = 1;
  for (int axis = kWidth; axis >= kDepth; --axis) {
    if (problem.kernel[axis] == 1) continue;
    if (points == 1) stride = problem.w.kernel[axis];
    if (problem.w.kernel[axis] != points * stride) return 0;
    points *= problem.kernel[axis];
  }
  return stride;
}

// The kernel, and how much of a group it takes at a time; `widens` if kernel values are stored narrower than
// they are summed.
void choose_form(Plan& plan, int64_t lanes, int64_t quad, bool widens) {
  const Problem& problem = plan.problem;
  const auto& [depth, height, width] = plan.axis;
  const int64_t channels = problem.channels_per_group;
  plan.tap_stride = find_tap_stride(problem);
  plan.form = Form::kRows;
  plan.rows_sharing = 1;
  if (plan.operation == Operation::kCorrelation) {
    // Long rows fill vectors along the width, whose sums are where they belong if the kernel points lie
    // apart.
    const bool long_rows = width.result > kLongRow && width.step == 1;
    const bool full = 4 * channels >= 3 * quad && channels <= kMostQuadChannels;
    if (full && plan.tap_stride != 0 && (plan.tap_stride == 1 || !long_rows)) plan.form = Form::kQuads;
    const bool fills = width.kernel <= kWindow && 2 * width.kernel > kWindow && problem.dilation[kWidth] == 1;
    const bool windows = lanes >= kWindow && fills && height.kernel > 1 && channels <= kMostQuadChannels;
    if (windows && plan.tap_stride != 0 && (plan.tap_stride == 1 || !long_rows)) plan.form = Form::kWindows;
  } else if (4 * channels >= 3 * lanes) {  // channels that fill vectors make better ones than the width
    // With a stride, the sums would come and go for a few kernel points each; a single row meets no other.
    // Planes of a volume would be staged for each plane of the kernel, which pays where that saves widening.
    const bool planes_meet = depth.kernel == 1 || widens;
    const bool rows_meet = depth.kernel * height.kernel > 1 && height.phases == 1 && width.phases == 1;
    const bool scatters =
        plan.operation == Operation::kTranspose && plan.tap_stride == 1 && planes_meet && rows_meet;
    plan.form = scatters ? Form::kScatter : Form::kPixels;
  }
  if (plan.form == Form::kRows) {
    plan.channels = std::min(channels, kMostChannels);
  } else if (plan.form == Form::kWindows) {
    plan.channels = channels;
    plan.rows_sharing =
        problem.dilation[kHeight] == 1 && height.step <= 2 ? kRowsSharing - (height.step - 1) : 1;
  } else if (plan.form == Form::kQuads) {
    plan.quads = divide_up(channels, quad);
    plan.pixel_pitch = plan.quads * quad;
    plan.channels = channels;
  } else {
    if (plan.form == Form::kScatter) plan.rows_sharing = kRowsScattered;
    plan.pixel_pitch = channels > lanes ? 2 * lanes : lanes;
    plan.channels = std::min(channels, plan.pixel_pitch);
  }
  plan.channel_blocks = divide_up(channels, plan.channels);
}

// Of a plane, the rows between the first and the last that a row of results meets.
int64_t rows_met(const AxisPlan& height) {
  int64_t lowest = height.runs.front().position, highest = lowest;
  for (const Run& run : height.runs) {
    lowest = std::min(lowest, run.position);
    highest = std::max(highest, run.position);
  }
  return highest - lowest + (height.phases > 1 ? 2 : 1);
}

// Tiles of `rows` results along the height, or fewer, until what is staged fits; false if that takes so few
// that most of it is halo.
bool cut_rows(Plan& plan, int64_t rows, int64_t accumulate_bytes) {
  auto& [depth, height, width] = plan.axis;
  const int64_t line = kCacheLine / accumulate_bytes;
  for (;; rows = divide_up(rows, 2)) {
    set_tile(height, rows, 1, 0);
    plan.paired = plan.form == Form::kRows ? find_pairing(height) : 0;
    // An odd tile would leave a row without another.
    if (plan.paired != 0 && height.tiles > 1 && height.tile > 1 && height.tile % 2 != 0) {
      set_tile(height, height.tile + 1, 2, 0);
      plan.paired = find_pairing(height);
    }
    const bool sums_stay = plan.operation == Operation::kCorrelation && plan.channel_blocks > 1;
    if (sums_stay && plan.paired == 0 && rows > 1) continue;
    plan.channel_pitch = depth.slots * height.slots * width.slots;
    if (plan.rolling > 0) plan.channel_pitch = depth.slots * plan.rolling * width.slots;
    if (plan.form == Form::kRows || plan.form == Form::kWindows) {
      // Not a multiple of a page, where the channels would compete for the same lines of the cache.
      plan.channel_pitch = round_up(plan.channel_pitch, line);
      if (plan.channel_pitch / line % 2 == 0) plan.channel_pitch += line;
    } else if (plan.form == Form::kScatter) {
      // The rows that are not finished while a row of the source is added to them; with several planes all.
      const int64_t reach = (height.kernel - 1) * plan.problem.dilation[kHeight] + plan.rows_sharing;
      plan.rows_summed = depth.kernel > 1 ? height.tile : std::min(height.tile, reach);
      plan.channel_pitch = plan.rows_summed * width.tile;
    }
    plan.group_pitch = (plan.pixel_pitch == 0 ? plan.channels : plan.pixel_pitch) * plan.channel_pitch;
    const int64_t most = plan.form == Form::kRows ? kStagedBytes : kStagedPixelBytes;
    if (rows == 1 || plan.groups * plan.group_pitch * accumulate_bytes <= most) break;
  }
  const bool stages_all = plan.form != Form::kScatter && plan.rolling == 0;
  return !stages_all || height.tiles == 1 || height.slots <= 2 * height.tile * height.step;
}

// As many rows as fit, so that few of the halo's are staged twice, unless threads would go without work.
void cut_items(Plan& plan, int64_t accumulate_bytes, int64_t threads) {
  const Problem& problem = plan.problem;
  const auto& [depth, height, width] = plan.axis;
  const bool correlation = plan.operation == Operation::kCorrelation;
  const bool groups_together = problem.groups > 1 && problem.w.group < problem.w.space[kWidth];
  const auto cut = [&](int64_t groups) {
    plan.groups = groups;
    plan.group_blocks = divide_up(problem.groups, groups);
    const int64_t others = problem.batch * plan.group_blocks * depth.tiles * width.tiles;
    const int64_t wanted = divide_up(4 * threads, others * (correlation ? 1 : plan.channel_blocks));
    int64_t rows = threads > 1 ? std::max<int64_t>(1, height.result / wanted) : height.result;
    if (groups_together && groups == 1) {
      // The groups of a tile, one after the other, find the lines of the cache that they share.
      const int64_t row = std::min(width.tile, width.result) * problem.w.space[kWidth] * accumulate_bytes;
      rows = std::clamp<int64_t>(kSharedBytes / std::max<int64_t>(1, row), 1, rows);
    }
    // A correlation over several channel blocks keeps its sums between them, of a row or a pair.
    if (correlation && plan.channel_blocks > 1) rows = std::min<int64_t>(rows, 2);
    return cut_rows(plan, rows, accumulate_bytes);
  };
  plan.groups_innermost = groups_together;
  // Rows with the channels apart are staged together, as many as fill vectors.
  const bool rolls = plan.form == Form::kPixels || plan.form == Form::kQuads;
  if (rolls && plan.source_strides().space[kWidth] != 1) plan.rolling = rows_met(height);
  if (plan.form == Form::kWindows) plan.rolling = rows_met(height) + (plan.rows_sharing - 1) * height.step;
  const bool together = groups_together && plan.form != Form::kRows && plan.channel_blocks == 1;
  if (!together || !cut(problem.groups)) cut(1);
  // Sums of rows need no halo, but have to stay in the cache.
  const bool halves = plan.form == Form::kScatter || plan.form == Form::kWindows;
  for (int64_t groups = plan.groups; halves && groups > 1;) {
    if (groups * plan.group_pitch * accumulate_bytes <= kStagedPixelBytes) break;
    groups = divide_up(groups, 2);
    cut(groups);
  }
}

// Whether all kernel values of a group lie together, are one item's, and find room in the cache beside the
// next item's. Those that are widened may be more: row by row that takes longer.
bool has_few_values(const Plan& plan, int64_t element_bytes, int64_t accumulate_bytes) {
  const int64_t most = element_bytes < accumulate_bytes ? kFewWidenedBytes : kFewBytes;
  const auto& [depth, height, width] = plan.axis;
  const int64_t* output = plan.problem.output;
  const WeightStrides& strides = plan.problem.w;
  int64_t positions = 1;
  bool dense = true;
  for (int axis = kWidth; axis >= kDepth; --axis) {
    dense = dense && (output[axis] == 1 || strides.space[axis] == positions);
    positions *= output[axis];
  }
  const bool has_use = plan.form == Form::kPixels || plan.form == Form::kWindows;
  return has_use && dense && plan.tap_stride == positions && depth.tiles == 1 && height.tiles == 1 &&
         width.tiles == 1 && plan.points * positions * accumulate_bytes <= most;
}

// Where the parts of an item's scratch begin: the source; kernel values, or a correlation's sums, of the rows
// at hand; their results, or the correlation's query, or the scattered row; and the lists of what they are
// made of.
void lay_out_scratch(Plan& plan, int64_t accumulate_bytes, int64_t lanes) {
  const auto& [depth, height, width] = plan.axis;
  const auto aligned = [](int64_t bytes) { return round_up(bytes, kCacheLine); };
  const bool rows = plan.form == Form::kRows, quads = plan.form == Form::kQuads;
  const bool windows = plan.form == Form::kWindows;
  const int64_t rows_together = plan.paired != 0 ? 2 : 1;
  const int64_t taps = rows_together * plan.points;  // at most: those of two rows that have few in common
  plan.row_pitch = round_up(std::min(width.tile, width.result), lanes);
  if (!rows) plan.row_pitch = std::max(plan.row_pitch, kFewestResults);
  plan.sums_pitch = round_up(plan.points, quads ? kQuadBytes / accumulate_bytes : lanes);
  if (windows) {
    plan.row_pitch = std::max(plan.row_pitch, plan.rows_sharing * std::min(width.tile, width.result));
    plan.sums_pitch = depth.kernel * height.kernel * kWindow;
  }
  // Of the source there may be more than are staged: those between the runs of a large dilation.
  const int64_t met = std::min(width.source, width.highest - width.lowest + 1);
  int64_t positions = std::max({plan.row_pitch, width.slots, met});
  if (plan.form == Form::kScatter) positions *= plan.rows_sharing;
  int64_t values = rows ? rows_together * taps * plan.row_pitch : plan.sums_pitch * positions;
  plan.values_pitch = round_up(width.kernel, kWindow);
  if (plan.form == Form::kPixels) {
    values = std::max(values, depth.kernel * height.kernel * positions * plan.values_pitch);
    if (plan.few_values) values = std::max(values, plan.points * plan.tap_stride);
  }
  const int64_t results = windows ? plan.rows_sharing * plan.groups * plan.channels * (plan.row_pitch + lanes)
                          : rows  ? rows_together * plan.channels * plan.row_pitch
                                  : plan.groups * plan.pixel_pitch * (positions + lanes);

  plan.weight_offset = aligned(plan.groups * plan.group_pitch * accumulate_bytes + kCacheLine);
  plan.result_offset = plan.weight_offset + aligned((values + lanes) * accumulate_bytes);
  plan.tap_offset = plan.result_offset + aligned(results * accumulate_bytes);
  int64_t list = taps * static_cast<int64_t>(sizeof(Tap));
  int64_t lists = 3 * depth.kernel * static_cast<int64_t>(sizeof(Stretch));
  if (quads || windows) {
    const int64_t rows_listed = depth.kernel * ((plan.rows_sharing - 1) * height.step + height.kernel);
    list = ((quads ? plan.points : rows_listed) + depth.slots * plan.rolling) *
           static_cast<int64_t>(sizeof(int64_t));
    lists = 0;
  } else if (!rows) {
    // Links of an item, and of a row of staged kernel values; and which rows are staged, or targets.
    list = 2 * plan.rows_sharing * depth.kernel * height.kernel * kRowLinkBytes;
    list += plan.form == Form::kScatter ? plan.rows_sharing * height.kernel * kTargetBytes
                                        : depth.slots * plan.rolling * static_cast<int64_t>(sizeof(int64_t));
    lists = std::min(width.phases, width.result) * kPhaseBytes +
            2 * static_cast<int64_t>(width.chains.size()) * kTapChainBytes;
  }
  plan.stretch_offset = plan.tap_offset + aligned(list);
  plan.scratch_bytes = plan.stretch_offset + aligned(lists);
}

}  // namespace

Plan make_plan(Operation operation, const Problem& problem, int64_t element_bytes, int64_t vector_bytes,
               int64_t threads) {
  const int64_t accumulate_bytes = std::max<int64_t>(4, element_bytes);
  const int64_t lanes = vector_bytes / accumulate_bytes;
  const bool correlation = operation == Operation::kCorrelation;
  Plan plan{};
  plan.operation = operation;
  plan.problem = problem;
  for (int axis = 0; axis < 3; ++axis) plan.axis[axis] = make_axis(operation, problem, axis);
  auto& [depth, height, width] = plan.axis;
  plan.points = depth.kernel * height.kernel * width.kernel;
  choose_form(plan, lanes, kQuadBytes / accumulate_bytes, element_bytes < accumulate_bytes);
  if (plan.form == Form::kWindows) std::swap(width.advance, width.step);
  // A vector of a row may run over its end.
  set_tile(width, kWidestTile, lanes, plan.form == Form::kRows ? lanes : 0);
  if (plan.form == Form::kWindows) {
    const int64_t read = width.slots + kWindow - width.kernel;  // the last window's vector runs over
    set_tile(width, kWidestTile, lanes, round_up(read, kWindow) - width.slots);
  }
  set_tile(depth, 1, 1, 0);
  cut_items(plan, accumulate_bytes, threads);
  chain_runs(width);
  for (AxisPlan& axis : plan.axis) list_slots(axis);
  list_insides(plan.axis[kWidth]);
  plan.few_values = has_few_values(plan, element_bytes, accumulate_bytes);
  lay_out_scratch(plan, accumulate_bytes, lanes);

  plan.query_extent = 1;
  if (correlation) {
    const ActivationStrides& query = problem.y;
    plan.query_extent +=
        (problem.batch - 1) * query.batch + (problem.groups * problem.channels_per_group - 1) * query.channel;
    for (int axis = 0; axis < 3; ++axis) plan.query_extent += (problem.output[axis] - 1) * query.space[axis];
  }
  plan.items = problem.batch * plan.group_blocks * depth.tiles * height.tiles * width.tiles *
               (correlation ? 1 : plan.channel_blocks);
  plan.multiply_adds = plan.groups * plan.points * std::min(depth.tile, depth.result) *
                       std::min(height.tile, height.result) * std::min(width.tile, width.result) *
                       (correlation ? problem.channels_per_group : plan.channels);
  for (AxisPlan& axis : plan.axis) {
    axis.run = axis.runs.data();
    axis.segment = axis.segments.data();
    axis.segment_count = static_cast<int64_t>(axis.segments.size());
    axis.chain = axis.chains.data();
    axis.chain_count = static_cast<int64_t>(axis.chains.size());
    axis.slot_of = axis.slots_of.data();
    axis.inside = axis.insides.data();
  }
  return plan;
}

}  // namespace involution::cpu
