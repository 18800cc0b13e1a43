// A plan turns a problem into a choice of kernel, tile, grid and shared memory.
//
// It is a plain value made on the host, can be printed and tested without a GPU, and is the only place
// where a fast path is chosen over the generic one.
#pragma once

#include "banded_plan.h"

namespace involution {

namespace plan_detail {

// Kernel points follow each other at one stride, as in both storage formats of a kernel tensor.
inline bool points_are_uniform(const Problem& p) {
  const int64_t step = p.w.kernel[kWidth];
  return (p.kernel[kHeight] == 1 || p.w.kernel[kHeight] == p.kernel[kWidth] * step) &&
         (p.kernel[kDepth] == 1 || p.w.kernel[kDepth] == p.kernel[kHeight] * p.kernel[kWidth] * step);
}

inline const char* why_generic(Operation operation, const Problem& p) {
  constexpr int64_t kInt = std::numeric_limits<int>::max();
  const bool transpose = operation == Operation::kTranspose;
  if (transpose && (p.stride[kDepth] != 1 || p.stride[kHeight] != 1 || p.stride[kWidth] != 1)) {
    return "the transposed operation has a stride that is not taken in parts";
  }
  const int64_t dilation = dilation_of(p, kWidth);
  if (dilation != 1 && dilation != 2 && dilation != 4) return "the dilation along the width is not 1, 2 or 4";
  if (dilation != 1 && p.stride[kWidth] != 1) return "the width has a stride and a dilation";
  if (p.stride[kWidth] > 2) return "the stride along the width is above 2";
  if (p.groups > kInt || p.channels_per_group > kInt) return "channels need 64 bits";
  if (operation == Operation::kInvolution && !points_are_uniform(p)) {
    return "the kernel points are not at one stride";
  }
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

// Fills in what follows from a tile's shape and, for local correlation, from the number of blocks that share
// the rows of its kernel. Shared memory is counted in accumulators.
inline void lay_out(Plan& plan, Operation operation, const Problem& p, const Gather& gather, TileShape tile,
                    int row_groups, int element_size) {
  const bool correlation = operation == Operation::kCorrelation;
  const int channels = gather.channels;
  const int rows = gather.kernel[kHeight];
  const int width = gather.kernel[kWidth];
  const int pieces = pieces_of(width);
  plan.tile_height = tile.height;
  plan.tile_width = tile.width;
  const int positions = tile.height * tile.width;
  plan.runs = positions / kRun;

  const int most_lanes = most_threads(element_size) / plan.runs;
  if (correlation) {
    const int64_t all = static_cast<int64_t>(rows) * pieces;
    const int64_t needed = ceil_div(all, std::min<int64_t>(all, most_lanes));
    plan.lanes = static_cast<int>(ceil_div(all, std::max<int64_t>(needed, row_groups)));
    plan.row_groups = static_cast<int>(ceil_div(all, plan.lanes));
    plan.channels_staged = std::min(channels, kCorrelationChannels);
  } else {
    plan.row_groups = 1;
    plan.lanes = static_cast<int>(
        std::min<int64_t>({ceil_div(channels, kLaneChannels), kMostChannelLanes, most_lanes}));
    plan.lane_channels = kLaneChannels;
    plan.channels_staged = std::min(channels, plan.lanes * kLaneChannels);
  }
  // As many rows as `lanes` pieces may lie in, wherever the first of them begins.
  const int rows_staged = correlation ? (plan.lanes + pieces - 2) / pieces + 1 : rows;
  const int stride = gather.stride[kWidth];
  const int dilation = gather.dilation[kWidth];
  const int window = (kRun - 1) * stride + (is_in_pieces(width) ? pieces * kPiece : width);
  plan.halo_height =
      (tile.height - 1) * gather.stride[kHeight] + (rows_staged - 1) * gather.dilation[kHeight] + 1;
  plan.halo_width = (tile.width - 1) * stride + (width - 1) * dilation + 1;
  plan.phase_shift = dilation / 2;  // the logarithm of 1, 2 and 4
  plan.phase_pitch = (tile.width / dilation - kRun) * stride + round_up(window, kRun);
  plan.halo_pitch = dilation * plan.phase_pitch;
  // Four elements past a multiple of the 32 banks: neighbouring channels start in different banks.
  plan.plane_pitch = round_up(static_cast<int64_t>(plan.halo_height) * plan.halo_pitch, 32) + kRun;
  plan.points_pitch = positions + kRun;
  const int64_t points = static_cast<int64_t>(gather.kernel[kDepth]) * rows * width;
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

// More lanes with fewer channels each, while the launch has too few warps for the machine. What is staged,
// and so the shared memory, stays as it is.
inline void spread_channels(Plan& plan, int element_size, const DeviceLimits& limits) {
  const int64_t blocks = ceil_div(plan.blocks, std::max<int64_t>(1, limits.multiprocessors));
  while (blocks * ceil_div(plan.threads, 32) < kWarpsWanted && plan.lane_channels > kFewestLaneChannels) {
    const int lane_channels = plan.lane_channels / 2;
    const int lanes = static_cast<int>(ceil_div(plan.channels_staged, lane_channels));
    if (lanes > kMostChannelLanes || lanes * plan.runs > most_threads(element_size)) return;
    plan.lane_channels = lane_channels;
    plan.lanes = lanes;
    plan.threads = plan.runs * lanes;
  }
}

// False where no tile fits; `plan` is then as it was.
inline bool plan_tiled(Plan& plan, Operation operation, const Problem& p, const Gather& gather,
                       int element_size, OperandAlignment alignment, const DeviceLimits& limits) {
  const bool correlation = operation == Operation::kCorrelation;
  double best = std::numeric_limits<double>::infinity();
  Plan chosen{};
  for (const TileShape tile : {TileShape{16, 16}, TileShape{8, 32}, TileShape{8, 16}, TileShape{4, 32},
                               TileShape{8, 8}, TileShape{4, 16}, TileShape{4, 8}, TileShape{2, 8},
                               TileShape{1, 256}, TileShape{1, 128}, TileShape{1, 64}}) {
    // A run's positions are a dilation apart.
    if (tile.width % (gather.dilation[kWidth] * kRun) != 0) continue;
    const int pieces = pieces_of(gather.kernel[kWidth]);
    for (const int row_groups : {1, 2, 4}) {
      if (row_groups > (correlation ? gather.kernel[kHeight] * pieces : 1)) break;
      Plan candidate{};
      lay_out(candidate, operation, p, gather, tile, row_groups, element_size);
      if (!fits(candidate, limits)) continue;
      const int rows = correlation ? static_cast<int>(ceil_div(candidate.lanes, pieces))
                                   : gather.kernel[kDepth] * gather.kernel[kHeight];
      const double halo = static_cast<double>(candidate.halo_height) * candidate.halo_pitch;
      const double candidate_cost = cost(candidate, gather, limits, halo, rows,
                                         correlation ? 1 : gather.kernel[kDepth], most_threads(element_size));
      if (candidate_cost < best) {
        best = candidate_cost;
        chosen = candidate;
      }
    }
  }
  if (chosen.blocks == 0) return false;
  if (!correlation) spread_channels(chosen, element_size, limits);
  chosen.reason = plan.reason;
  chosen.source_channels_last = plan.source_channels_last;
  plan = chosen;
  plan.kind = PlanKind::kTiled;
  const WeightStrides& w = p.w;
  const bool neighbours = plan.phase_shift == 0;  // are a thread's positions
  plan.weight_vector =
      !gather.mirrored && (neighbours || !correlation) &&
      runs_are_vectors({w.batch, w.group, w.kernel[kDepth] | w.kernel[kHeight] | w.kernel[kWidth],
                        w.space[kDepth] | w.space[kHeight]},
                       w.space[kWidth], alignment.w, element_size);
  const ActivationStrides& result = gather.result_strides;
  plan.result_vector =
      !correlation && neighbours &&
      runs_are_vectors({result.batch, result.channel, result.space[kDepth], result.space[kHeight]},
                       result.space[kWidth], gather.mirrored ? alignment.x : alignment.y, element_size);
  plan.result_channels_last = is_channels_last(result);
  plan.weight_channels_last = is_channels_last(w);
  return true;
}

}  // namespace plan_detail

inline Plan make_plan(Operation operation, const Problem& p, int element_size, OperandAlignment alignment,
                      const DeviceLimits& limits) {
  using namespace plan_detail;
  Plan plan{};
  plan.reason = why_generic(operation, p);
  if (plan.reason != nullptr) return plan;

  const Gather gather = make_gather(operation, p);
  plan.source_channels_last = is_channels_last(gather.source_strides);
  plan.reason = why_not_banded(gather, element_size);
  if (plan.reason == nullptr) {
    if (plan_banded(plan, operation, p, gather, alignment, limits)) return plan;
    plan.reason = "tiled: no banded tile fits into shared memory and the grid";
  }
  if (plan_tiled(plan, operation, p, gather, element_size, alignment, limits)) return plan;
  Plan generic{};
  generic.reason = "no tile fits into shared memory and the grid";
  return generic;
}

}  // namespace involution
