// What the kernels of the fused layer's gradients have in common: where a block works, and how columns lie
// that are not those of a sparse product.
#pragma once

#include "fused_backward_plan.h"
#include "fused_rows.cuh"

namespace involution {

constexpr int kFusedReach = kFusedBackwardSize / 2, kFusedHalo = kFusedBackwardSize - 1;

// Where a block works: the grid is packs * slices * strips * chunks * sets of images.
struct FusedBackwardPlace {
  int group;
  int reduced;  // the first of its channels of the features
  int first_column;
  int first_row;
  int end_row;
  int steps;  // of a tile's rows, for an image
  int image;
  int images;
  int64_t part;  // number of the block among those of its groups and reduced channels
};

// Of blocks with so many groups, reduced channels and columns.
__device__ __forceinline__ FusedBackwardPlace fused_backward_place(const FusedBackwardMarch& m, int groups,
                                                                   int reduced, int columns) {
  unsigned block = blockIdx.x;
  const auto next = [&](int count) {
    const auto digit = static_cast<int>(block % static_cast<unsigned>(count));
    block /= static_cast<unsigned>(count);
    return digit;
  };
  FusedBackwardPlace at;
  at.group = next(m.packs) * groups;
  at.reduced = next(m.slices) * reduced;
  at.part = block;
  at.first_column = next(m.strips) * columns;
  at.first_row = next(m.chunks) * m.chunk_rows;
  const int end = at.first_row + m.chunk_rows;
  at.end_row = end < m.height ? end : m.height;
  at.steps = (at.end_row - at.first_row + kFusedTileRows - 1) / kFusedTileRows;
  at.image = static_cast<int>(block) * m.images;
  at.images = m.images < m.batch - at.image ? m.images : m.batch - at.image;
  return at;
}

// Columns of kGroups groups: eight neighbours are in different banks.
template <int kGroups>
struct FusedNeighbours {
  static constexpr int kPieces = kGroups * 2;
  static_assert(kGroups == 2 || kGroups == 4, "columns are 64 or 128 bytes");

  static __device__ __forceinline__ int at(int column, int piece) {
    const int key = kGroups == 2 ? column / 2 % 4 : column % 8;
    return column * kGroups * 32 + (piece ^ key) * 16;
  }
};

}  // namespace involution
