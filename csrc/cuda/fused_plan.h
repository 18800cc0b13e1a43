// The fused involution layer: what its kernel (fused.cuh) takes, how a launch is cut up, and where it has
// none. A plain value, made on the host, that can be printed and tested without a GPU.
#pragma once

#include <cstdint>
#include <string>

#include "../integer_math.h"
#include "device_limits.h"
#include "divisor.h"

namespace involution {

// y = involution(x, weight * features + bias) with windows centred at positions o * stride ("same"); channels
// are the innermost axis of x, features and y, and nothing lies between their elements.
struct FusedProblem {
  int64_t batch;
  int64_t channels;
  int64_t group_channels;
  int64_t reduced;  // channels of the features
  int64_t height;   // of x; features and y have ceil(height / stride) rows
  int64_t width;
  int64_t kernel[2];
  int64_t stride[2];
};

constexpr int kFusedGroupChannels = 16;
constexpr int kFusedTileRows = 4;  // of the result, that a warp computes at once
constexpr int fused_tile_columns(int stride) { return stride == 1 ? 8 : 4; }

// What a block of the kernel for `K` x `K` windows and up to 16 * `steps` reduced channels is made of. Groups
// are those that were fastest on an H200 for K = 7 on RedNet's map with so many channels, but for one step;
// that one, and all warps that copy, are chosen by counted instructions and registers, and not measured.
struct FusedBlock {
  int groups;
  int warp_groups;   // of these, those that one warp computes, one after the other
  int most_threads;  // that compute
  int copying;       // warps that bring rows, beside these
  int residents;     // blocks that a multiprocessor's registers have room for
  bool held;         // a warp keeps the weights of its one group in registers

  constexpr int threads() const { return most_threads + copying * 32; }
};

constexpr FusedBlock fused_block(int K, int steps, int stride) {
  if (stride == 2) return {2, 1, 256, 2, 2, false};
  if (steps == 1) return K == 3 ? FusedBlock{2, 2, 448, 2, 2, false} : FusedBlock{2, 1, 448, 2, 1, true};
  if (steps == 2) return {2, 2, 128, 1, 3, false};
  if (steps == 4) return {4, 2, 128, 1, 3, false};
  return {4, 1, 128, 1, 2, false};
}

// How a block lies in shared memory, in bytes but for `ring`. The kernels and the plan have it from here.
struct FusedLayout {
  int pixel;         // of a column of x
  int feature;       // of a column of the features, and a row of the weight: 8 for each row of the kernel
  int group_weight;  // of a group, the biases included
  int ring;          // rows of x: those that a step meets, and those that the next one brings
  int result;        // of a warp's tile
};

constexpr FusedLayout fused_layout(int K, int steps, int stride) {
  const int pixel = fused_block(K, steps, stride).groups * 32;
  const int tile = kFusedTileRows * fused_tile_columns(stride) * 32;
  const int row = steps * 32 + 16;
  if (stride == 1) return {pixel, row, 8 * K * row, 2 * kFusedTileRows + K - 1, tile};
  return {pixel, row, 8 * K * row + K * 32, 4 * kFusedTileRows + K - 1, tile};
}

// Columns that a row of the features has room for, if it has `columns` of 16 * `steps` channels: a warp
// copies as many at once as fill it, 16 of a single step.
inline int fused_feature_columns(int columns, int steps) { return round_up(columns, steps == 1 ? 16 : 8); }

// The kernels' parameters. A block owns a pack of groups, a strip of `runs` tiles' columns and a chunk of
// rows.
struct FusedMarch {
  int channels;
  int groups;
  int reduced;
  int height;  // of x
  int width;
  int result_height;
  int result_width;
  int runs;
  int packs;  // a grid is packs * strips, chunks, images
  int strips;
  int chunks;
  int chunk_rows;   // of the result, a multiple of a tile's
  int pixel_row;    // bytes of a row of x in shared memory
  int feature_row;  // and of the features
  int relu;
  Divisor by_packs;
};

struct FusedPlan {
  const char* reason;  // why there is none, or null
  FusedMarch march;
  int kernel;
  int stride;
  int steps;  // of 16 reduced channels: 1, 2, 4 or 8
  int threads;
  int64_t shared_bytes;
  int64_t images;
  int64_t blocks;
};

// Why the fused kernels do not take a problem, whatever the device, or null.
const char* why_not_fused(const FusedProblem& problem);

FusedPlan make_fused_plan(const FusedProblem& problem, const DeviceLimits& limits);

// In words, on one line.
std::string describe(const FusedPlan& plan);

}  // namespace involution
