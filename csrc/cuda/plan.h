// A plan turns a problem into a choice of kernel, tile, grid and shared memory.
//
// It is a plain value made on the host, can be printed and tested without a GPU, and is the only place
// where the tiled path is chosen over the generic one.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "gather.h"
#include "policy.h"

namespace involution {

// Alignment in bytes of each tensor's first element.
struct OperandAlignment {
  int x;
  int w;
  int y;
};

struct Plan {
  bool tiled;
  const char* reason;  // why the generic path is taken, or "tiled"

  // The tile: result positions of a block, and how its threads share them.
  int tile_height;
  int tile_width;       // a multiple of kRun
  int runs;             // threads along the tile; each owns kRun neighbouring positions of a row
  int lanes;            // threads that share a run: channel lanes, or kernel rows for local correlation
  int channels_staged;  // channels whose tiles are in shared memory at a time

  // Shared memory, in accumulator elements.
  int halo_height;
  int halo_width;
  int halo_pitch;    // from a row of the halo to the next
  int plane_pitch;   // from a channel to the next
  int points_pitch;  // from a kernel point's tile to the next; for local correlation, a channel's of y

  // Which accesses may be as wide as a run, and along which axis neighbouring threads read.
  bool source_channels_last;
  bool weight_channels_last;
  bool result_channels_last;
  bool weight_vector;
  bool result_vector;

  int tiles_y;
  int tiles_x;
  int row_groups;  // local correlation: groups of `lanes` kernel rows along the kernel's height
  int64_t blocks;
  int threads;
  int64_t shared_bytes;
};

namespace plan_detail {

inline int round_up(int64_t value, int multiple) {
  return static_cast<int>((value + multiple - 1) / multiple * multiple);
}

inline int64_t ceil_div(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

// The furthest element from a (batch, group) plane's first, for the 32-bit offsets within one.
inline int64_t plane_span(const ActivationStrides& strides, int64_t channels, const int64_t (&size)[3]) {
  int64_t span = (channels - 1) * strides.channel;
  for (int axis = 0; axis < 3; ++axis) span += (size[axis] - 1) * strides.space[axis];
  return span;
}

inline int64_t plane_span(const WeightStrides& strides, const int64_t (&kernel)[3],
                          const int64_t (&size)[3]) {
  int64_t span = 0;
  for (int axis = 0; axis < 3; ++axis) {
    span += (kernel[axis] - 1) * strides.kernel[axis] + (size[axis] - 1) * strides.space[axis];
  }
  return span;
}

// Kernel points follow each other at one stride, as in both storage formats of a kernel tensor.
inline bool points_are_uniform(const Problem& p) {
  const int64_t step = p.w.kernel[kWidth];
  return (p.kernel[kHeight] == 1 || p.w.kernel[kHeight] == p.kernel[kWidth] * step) &&
         (p.kernel[kDepth] == 1 || p.w.kernel[kDepth] == p.kernel[kHeight] * p.kernel[kWidth] * step);
}

inline const char* why_generic(Operation operation, const Problem& p) {
  constexpr int64_t kInt = std::numeric_limits<int>::max();
  const bool transpose = operation == Operation::kTranspose;
  const int64_t width = p.kernel[kWidth];
  if (width != 3 && width != 5 && width != 7) return "the kernel's width is not 3, 5 or 7";
  if (p.dilation[kWidth] != 1) return "the kernel is dilated along its width";
  if (p.stride[kWidth] > 2) return "the stride along the width is above 2";
  if (transpose && (p.stride[kDepth] != 1 || p.stride[kHeight] != 1 || p.stride[kWidth] != 1)) {
    return "the transposed operation has a stride";
  }
  if (p.groups > kInt || p.channels_per_group > kInt) return "channels need 64 bits";
  if (!points_are_uniform(p)) return "the kernel points are not at one stride";
  for (int axis = 0; axis < 3; ++axis) {
    const int64_t reach =
        p.dilation[axis] * p.kernel[axis] + p.padding[axis] + p.stride[axis] * p.output[axis];
    if (reach > kInt / 4 || p.input[axis] > kInt / 4) return "positions need 64 bits";
  }
  if (plane_span(p.x, p.channels_per_group, p.input) > kInt ||
      plane_span(p.y, p.channels_per_group, p.output) > kInt || plane_span(p.w, p.kernel, p.output) > kInt) {
    return "offsets within a (batch, group) plane need 64 bits";
  }
  return nullptr;
}

inline bool runs_are_vectors(const int64_t (&outer)[4], int64_t along_width, int alignment,
                             int element_size) {
  if (along_width != 1 || alignment < std::min(kRun * element_size, 16)) return false;
  return std::all_of(outer, outer + 4, [](int64_t stride) { return stride % kRun == 0; });
}

struct TileShape {
  int height;
  int width;
};

// Fills in what follows from a tile's shape. Shared memory is counted in accumulators.
inline void lay_out(Plan& plan, Operation operation, const Problem& p, const Gather& gather, TileShape tile,
                    int element_size) {
  const bool correlation = operation == Operation::kCorrelation;
  const int channels = gather.channels;
  const int rows = gather.kernel[kHeight];
  plan.tile_height = tile.height;
  plan.tile_width = tile.width;
  const int positions = tile.height * tile.width;
  plan.runs = positions / kRun;

  const int most_lanes = most_threads(element_size) / plan.runs;
  if (correlation) {
    plan.row_groups = static_cast<int>(ceil_div(rows, std::min(rows, most_lanes)));
    plan.lanes = static_cast<int>(ceil_div(rows, plan.row_groups));
    plan.channels_staged = std::min(channels, kCorrelationChannels);
  } else {
    plan.row_groups = 1;
    plan.lanes = static_cast<int>(
        std::min<int64_t>({ceil_div(channels, kLaneChannels), kMostChannelLanes, most_lanes}));
    plan.channels_staged = std::min(channels, plan.lanes * kLaneChannels);
  }
  const int rows_staged = correlation ? plan.lanes : rows;
  const int stride = gather.stride[kWidth];
  const int window = (kRun - 1) * stride + gather.kernel[kWidth];
  plan.halo_height =
      (tile.height - 1) * gather.stride[kHeight] + (rows_staged - 1) * gather.dilation[kHeight] + 1;
  plan.halo_width = (tile.width - 1) * stride + gather.kernel[kWidth];
  plan.halo_pitch = (tile.width - kRun) * stride + round_up(window, kRun);
  // Four elements past a multiple of the 32 banks: neighbouring channels start in different banks.
  plan.plane_pitch = round_up(static_cast<int64_t>(plan.halo_height) * plan.halo_pitch, 32) + kRun;
  plan.points_pitch = positions + kRun;
  const int64_t points = static_cast<int64_t>(gather.kernel[kDepth]) * rows * gather.kernel[kWidth];
  const int64_t planes = correlation ? plan.channels_staged : points;
  const int accumulator_size = element_size == 8 ? 8 : 4;
  plan.shared_bytes = accumulator_size * (static_cast<int64_t>(plan.channels_staged) * plan.plane_pitch +
                                          planes * plan.points_pitch);

  plan.threads = plan.runs * plan.lanes;
  plan.tiles_y = static_cast<int>(ceil_div(gather.result[kHeight], tile.height));
  plan.tiles_x = static_cast<int>(ceil_div(gather.result[kWidth], tile.width));
  plan.blocks = p.batch * p.groups * gather.result[kDepth] * plan.tiles_y * plan.tiles_x;
  if (correlation) plan.blocks *= static_cast<int64_t>(gather.kernel[kDepth]) * plan.row_groups;
}

// Elements that the whole launch moves through its multiprocessors, in waves of a block each: halo
// overlap, positions beyond the border and a grid that does not fill the machine all count against a tile.
inline double cost(const Plan& plan, Operation operation, const Gather& gather, const DeviceLimits& limits) {
  const bool correlation = operation == Operation::kCorrelation;
  const double positions = static_cast<double>(plan.tile_height) * plan.tile_width;
  const double halo = static_cast<double>(plan.halo_height) * plan.halo_pitch;
  const double rows = correlation ? plan.lanes : gather.kernel[kDepth] * gather.kernel[kHeight];
  const double slices = correlation ? 1 : gather.kernel[kDepth];
  const double elements =
      gather.channels * (halo * slices + positions) + rows * gather.kernel[kWidth] * positions;
  const double waves =
      static_cast<double>(ceil_div(plan.blocks, std::max<int64_t>(1, limits.multiprocessors)));
  // A block alone on its multiprocessor cannot load while it computes.
  const bool alone = 2 * plan.shared_bytes > limits.shared_memory_per_multiprocessor;
  return elements * waves * (alone ? 1.5 : 1.0);
}

}  // namespace plan_detail

inline Plan make_plan(Operation operation, const Problem& p, int element_size, OperandAlignment alignment,
                      const DeviceLimits& limits) {
  using namespace plan_detail;
  Plan plan{};
  plan.reason = why_generic(operation, p);
  if (plan.reason != nullptr) return plan;

  const Gather gather = make_gather(operation, p);
  double best = std::numeric_limits<double>::infinity();
  for (const TileShape tile :
       {TileShape{16, 16}, TileShape{8, 32}, TileShape{8, 16}, TileShape{4, 32}, TileShape{8, 8},
        TileShape{4, 16}, TileShape{1, 256}, TileShape{1, 128}, TileShape{1, 64}}) {
    Plan candidate{};
    lay_out(candidate, operation, p, gather, tile, element_size);
    if (candidate.shared_bytes > limits.shared_memory_per_block) continue;
    if (candidate.blocks > std::numeric_limits<int>::max()) continue;
    const double candidate_cost = cost(candidate, operation, gather, limits);
    if (candidate_cost < best) {
      best = candidate_cost;
      plan = candidate;
      plan.tiled = true;
    }
  }
  if (!plan.tiled) {
    plan.reason = "no tile fits into shared memory and the grid";
    return plan;
  }
  plan.reason = "tiled";

  const bool correlation = operation == Operation::kCorrelation;
  const WeightStrides& w = p.w;
  plan.weight_vector = !gather.mirrored && runs_are_vectors({w.batch, w.group, w.kernel[kWidth],
                                                             w.space[kDepth] | w.space[kHeight]},
                                                            w.space[kWidth], alignment.w, element_size);
  const ActivationStrides& result = gather.result_strides;
  plan.result_vector =
      !correlation &&
      runs_are_vectors({result.batch, result.channel, result.space[kDepth], result.space[kHeight]},
                       result.space[kWidth], gather.mirrored ? alignment.x : alignment.y, element_size);
  plan.source_channels_last = gather.source_strides.channel == 1 && gather.source_strides.space[kWidth] != 1;
  plan.result_channels_last = result.channel == 1 && result.space[kWidth] != 1;
  plan.weight_channels_last = w.kernel[kWidth] == 1 && w.space[kWidth] != 1;
  return plan;
}

}  // namespace involution
