// The tile and the shared memory of the banded kernels (banded.cuh).
#pragma once

#include "gather.h"
#include "plan_tools.h"
#include "policy.h"

namespace involution {
namespace plan_detail {

// Of problems that have a tiled kernel.
inline const char* why_not_banded(const Gather& gather, int element_size) {
  if (element_size != 2) return "tiled: tensor cores would lose digits of this type";
  if (is_in_pieces(gather.kernel[kWidth])) return "tiled: the kernel's width is not 3, 5 or 7";
  if (gather.stride[kWidth] != 1) return "tiled: the stride along the width is not 1";
  if (gather.dilation[kWidth] != 1) return "tiled: the kernel is dilated along its width";
  if (gather.channels % 8 != 0) return "tiled: the channels of a group are not a multiple of 8";
  return nullptr;
}

// Eight neighbours along an axis of stride 1 lie on a 16-byte boundary wherever the other axes lead.
inline bool octets_are_vectors(const ActivationStrides& strides, int alignment, bool channels_last,
                               int64_t width) {
  if (alignment < kVectorBytes) return false;
  const int64_t inner = channels_last ? strides.channel : strides.space[kWidth];
  const int64_t outer = channels_last ? strides.space[kWidth] : strides.channel;
  if (inner != 1 || (!channels_last && width % 8 != 0)) return false;
  return (strides.batch | outer | strides.space[kDepth] | strides.space[kHeight]) % 8 == 0;
}

// Rows of 16 bytes that start an odd number of them apart lie in different banks, eight at a time.
inline int odd_octets(int64_t elements) { return (round_up(elements, 8) / 8 | 1) * 8; }

inline void lay_out_banded(Plan& plan, Operation operation, const Problem& p, const Gather& gather,
                           TileShape tile) {
  const bool correlation = operation == Operation::kCorrelation;
  const bool channels_last = plan.source_channels_last;
  const int columns = channels_last ? kBandColumnsOfPixels : kBandColumnsOfPlanes;
  plan.tile_height = tile.height;
  plan.tile_width = tile.width;
  plan.runs = tile.height * tile.width / kBandRun;
  plan.lanes = 1;
  plan.row_groups = 1;
  plan.threads = plan.runs / kBandRunsOfWarp * 32;
  // Local correlation keeps no sums from one stage to the next, so it takes all channels at once.
  plan.channels_staged = correlation ? round_up(gather.channels, kBandChannels) : kBandChannels;

  // Planes are staged from a multiple of 8 columns on, where a row may be read 16 bytes at a time.
  const int beyond = -gather.padding[kWidth] % 8;
  plan.band_phase = channels_last ? 0 : (beyond + 8) % 8;
  plan.halo_height = (tile.height - 1) * gather.stride[kHeight] +
                     (gather.kernel[kHeight] - 1) * gather.dilation[kHeight] + 1;
  plan.halo_width = tile.width - kBandRun + columns;
  const int positions = tile.height * tile.width;
  int64_t halo;
  int64_t query;
  if (channels_last) {
    plan.plane_pitch = odd_octets(plan.channels_staged);
    plan.halo_pitch = plan.halo_width * plan.plane_pitch;
    plan.points_pitch = plan.plane_pitch;
    halo = static_cast<int64_t>(plan.halo_height) * plan.halo_pitch;
    query = static_cast<int64_t>(positions) * plan.points_pitch;
  } else {
    plan.halo_pitch = plan.halo_width;
    plan.plane_pitch = odd_octets(static_cast<int64_t>(plan.halo_height) * plan.halo_pitch);
    plan.points_pitch = odd_octets(positions);
    halo = static_cast<int64_t>(plan.channels_staged) * plan.plane_pitch;
    query = static_cast<int64_t>(plan.channels_staged) * plan.points_pitch;
  }
  const int64_t patches = static_cast<int64_t>(plan.runs) * kBandRun * band_pitch(columns);
  plan.shared_bytes = 2 * (patches + halo + (correlation ? query : 0));

  plan.tiles_y = static_cast<int>(ceil_div(gather.result[kHeight], tile.height));
  plan.tiles_x = static_cast<int>(ceil_div(gather.result[kWidth], tile.width));
  plan.blocks = p.batch * p.groups * gather.result[kDepth] * plan.tiles_y * plan.tiles_x;
  if (correlation) plan.blocks *= gather.kernel[kDepth];
}

// False where no tile fits; `plan` is then as it was.
inline bool plan_banded(Plan& plan, Operation operation, const Problem& p, const Gather& gather,
                        OperandAlignment alignment, const DeviceLimits& limits) {
  const bool correlation = operation == Operation::kCorrelation;
  double best = std::numeric_limits<double>::infinity();
  Plan chosen{};
  for (const TileShape tile :
       {TileShape{8, 32}, TileShape{16, 16}, TileShape{4, 32}, TileShape{8, 16}, TileShape{4, 16},
        TileShape{2, 16}, TileShape{1, 256}, TileShape{1, 128}, TileShape{1, 64}, TileShape{1, 32}}) {
    Plan candidate{};
    candidate.source_channels_last = plan.source_channels_last;
    lay_out_banded(candidate, operation, p, gather, tile);
    if (!fits(candidate, limits)) continue;
    const int rows = (correlation ? 1 : gather.kernel[kDepth]) * gather.kernel[kHeight];
    const double halo = static_cast<double>(candidate.halo_height) * candidate.halo_width;
    const double candidate_cost =
        cost(candidate, gather, limits, halo, rows, correlation ? 1 : gather.kernel[kDepth],
             kBandMostThreads * band_blocks(gather.mirrored));
    if (candidate_cost < best) {
      best = candidate_cost;
      chosen = candidate;
    }
  }
  if (chosen.blocks == 0) return false;
  plan = chosen;
  plan.kind = PlanKind::kBanded;
  plan.reason = "banded";
  plan.result_channels_last = is_channels_last(gather.result_strides);
  plan.weight_channels_last = is_channels_last(gather.weight_strides);
  const int source_alignment = gather.mirrored ? alignment.y : alignment.x;
  const int result_alignment = gather.mirrored ? alignment.x : alignment.y;
  plan.source_vector = octets_are_vectors(gather.source_strides, source_alignment, plan.source_channels_last,
                                          gather.source[kWidth]);
  // What is read of y follows the source's format in shared memory; what is written follows its own.
  plan.result_vector = octets_are_vectors(gather.result_strides, result_alignment,
                                          correlation ? plan.source_channels_last : plan.result_channels_last,
                                          gather.result[kWidth]);
  return true;
}

}  // namespace plan_detail
}  // namespace involution
