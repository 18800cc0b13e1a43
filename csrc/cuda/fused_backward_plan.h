// The gradients of the fused involution layer with 7x7 windows and a stride of 1: what their kernels take,
// how a launch of each is cut up, and where there is none. A plain value, made on the host, that can be
// printed and tested without a GPU.
#pragma once

#include "fused_plan.h"

namespace involution {

// Of the input, of the features, and of the weight and the bias together: a kernel for each.
enum class FusedGradient { kInput, kFeatures, kWeight };

constexpr int kFusedBackwardSize = 7;  // of the windows

// What a block of a kernel is made of, for up to 16 * `steps` reduced channels. None of it is measured: few
// instructions, and no more registers than there are, decided.
struct FusedBackwardBlock {
  int groups;        // at once
  int tile_columns;  // of a warp's tile, which has kFusedTileRows rows
  int most_threads;  // that compute
  int copying;       // warps that bring rows, beside these; 0: all warps do
  int most_steps;    // where there are more reduced channels, blocks have slices of them

  constexpr int threads() const { return most_threads + copying * 32; }
};

constexpr FusedBackwardBlock fused_backward_block(FusedGradient gradient, int steps) {
  if (gradient == FusedGradient::kInput) return {4, steps == 1 ? 16 : 8, 512, 0, 8};
  if (gradient == FusedGradient::kFeatures) return {steps == 4 ? 4 : 2, 8, 448, 2, 4};
  return {2, 8, steps == 1 ? 448 : 320, 2, 2};
}

// Bytes of a position's sums in the gradient of the features: four neighbours are in different banks.
constexpr int fused_features_sums(int steps) { return steps * 64 + 32; }

// How a block lies in shared memory, in bytes but for `ring`. The kernels and the plan have it from here.
struct FusedBackwardLayout {
  int pixel;         // of a column of x and of the result's gradient
  int feature;       // of a column of the features, and of a row of the weight
  int group_weight;  // of a group, the biases included; 0: the kernel reads none
  int ring;  // rows: those that a step meets, and those that the next one brings; 0: a block has one step
  int warp;  // of a warp's results or sums
};

constexpr FusedBackwardLayout fused_backward_layout(FusedGradient gradient, int steps) {
  const FusedBackwardBlock block = fused_backward_block(gradient, steps);
  const int pixel = block.groups * 32, feature = steps * 32 + 16, size = kFusedBackwardSize;
  const int halo = size - 1;
  if (gradient == FusedGradient::kInput) {
    // Nine kernel rows of 8 taps and one zero more; as many biases as rows of which one can begin.
    const int weight = ((size + 2) * 8 + 1) * feature, biases = ((size + 1) * 8 + 1) * 16;
    return {pixel, feature, weight + biases, halo + 2 * kFusedTileRows, block.tile_columns * 64};
  }
  if (gradient == FusedGradient::kFeatures) {
    return {pixel, feature, (size + 1) * 8 * feature, 0,
            kFusedTileRows * block.tile_columns * fused_features_sums(steps)};
  }
  // The next step may be the first of another image, which shares no row.
  return {pixel, feature, 0, 2 * (halo + kFusedTileRows), size * 8 * (steps * 16 + 1) * 4};
}

// The kernels' parameters. A block owns a pack of groups (or all, one pack after another), a slice of the
// reduced channels, a strip of `runs` tiles' columns, a chunk of rows, and one or several images.
struct FusedBackwardMarch {
  int batch;
  int channels;
  int groups;
  int reduced;
  int height;
  int width;
  int runs;
  int packs;  // a grid is packs * slices * strips * chunks * sets of images
  int slices;
  int strips;
  int chunks;
  int chunk_rows;  // a multiple of a tile's
  int images;      // of a block, one after another
  int pixel_row;   // bytes in shared memory of a row of what has a halo of columns (x; for dx the gradient),
  int gradient_row;  // of a row of the result's gradient, where it has none,
  int feature_row;   // and of the features
};

struct FusedBackwardPlan {
  const char* reason;  // why there is none, or null
  FusedGradient gradient;
  FusedBackwardMarch march;
  int steps;  // of 16 reduced channels that a block has
  int threads;
  int64_t shared_bytes;
  int64_t blocks;
  int64_t parts;  // of the weight's gradient, that blocks sum up and one more kernel adds
};

FusedBackwardPlan make_fused_backward_plan(FusedGradient gradient, const FusedProblem& problem,
                                           const DeviceLimits& limits);

// In words, on one line.
std::string describe(const FusedBackwardPlan& plan);

}  // namespace involution
