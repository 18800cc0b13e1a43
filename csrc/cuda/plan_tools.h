// What the plans of the tiled and the banded kernels have in common.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "gather.h"
#include "plan_types.h"
#include "policy.h"

namespace involution {
namespace plan_detail {

struct TileShape {
  int height;
  int width;
};

inline int round_up(int64_t value, int multiple) {
  return static_cast<int>((value + multiple - 1) / multiple * multiple);
}

inline int64_t ceil_div(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

// Whether a kernel row is worked on in pieces of kPiece points, and in how many.
inline bool is_in_pieces(int width) { return width != 3 && width != 5 && width != 7; }
inline int pieces_of(int width) {
  return is_in_pieces(width) ? static_cast<int>(ceil_div(width, kPiece)) : 1;
}

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

// Neighbouring threads read along the channels, or the kernel points.
inline bool is_channels_last(const ActivationStrides& strides) {
  return strides.channel == 1 && strides.space[kWidth] != 1;
}

inline bool is_channels_last(const WeightStrides& strides) {
  return strides.kernel[kWidth] == 1 && strides.space[kWidth] != 1;
}

inline bool fits(const Plan& plan, const DeviceLimits& limits) {
  return plan.shared_bytes <= limits.shared_memory_per_block &&
         plan.blocks <= std::numeric_limits<int>::max();
}

// Elements that the whole launch moves through its multiprocessors, in waves of a block each: halo
// overlap, positions beyond the border, idle lanes and a grid that does not fill the machine all count
// against a tile. `halo` has the elements of a channel's halo, `rows` the rows of the kernel that a block
// works on, and `resident_threads` are those that a multiprocessor has registers for.
inline double cost(const Plan& plan, const Gather& gather, const DeviceLimits& limits, double halo, int rows,
                   int slices, int resident_threads) {
  const double positions = static_cast<double>(plan.tile_height) * plan.tile_width;
  const double elements = gather.channels * (halo * slices + positions) +
                          static_cast<double>(rows) * gather.kernel[kWidth] * positions;
  const double waves =
      static_cast<double>(ceil_div(plan.blocks, std::max<int64_t>(1, limits.multiprocessors)));
  // A block alone on its multiprocessor cannot load while it computes.
  const bool alone =
      2 * plan.shared_bytes > limits.shared_memory_per_multiprocessor || 2 * plan.threads > resident_threads;
  const double idle_lanes = static_cast<double>(round_up(plan.threads, 32)) / plan.threads;
  return elements * waves * idle_lanes * (alone ? 1.5 : 1.0);
}

}  // namespace plan_detail
}  // namespace involution
