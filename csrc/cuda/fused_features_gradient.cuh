// The gradient of the fused layer's features, for which no gradient of a kernel is ever in memory.
//
//   dk[p, g, kh, kw] = sum_c dy[p, c] * x[p + (kh, kw) - 3, c] over the 16 channels of group g   (rounded to T)
//   dfeatures[p, r]  = sum over all groups and taps of dk[p, tap] * weight[tap, r]
//
// A block owns a strip of columns, a chunk of rows of one image and a slice of the reduced channels, and goes
// through all groups, a pack at a time: x with a halo of 3, dy and the weights of a pack come by asynchronous
// copies, a pack ahead, from two warps that do nothing else. Each other warp owns a tile of 4 rows and 8
// columns and one group of each pack; the warps that share a tile add their sums up in shared memory at the
// end, in order. For each row of x that a tile meets:
//
//   1. dk     D[16 positions x 8 columns] = dy (16 x 16 channels) * x^T, for rows 2P and 2P + 1 of the tile and
//             two sets of columns, j = 0..15 from 3 left of the tile: tap kw = j - n of position n. Of columns j
//             and j + 8 exactly one is a tap, or neither (kw = 7): one select.
//   2. A      Pairs along K of the second product are kernel rows kh and kh + 1 at ONE kw, so that the two
//             columns of a lane go to two registers, of even and of odd kw: which is which depends on n alone
//             (one select each), and where in the quad they go on n and t (one shuffle each).
//   3. sums   D[16 positions x 8 reduced channels] += A (16 x 16 taps) * weight, whose rows lie in the order of
//             these pairs, with zeros for kh = 7 and kw = 7.
//
// Warp instructions of 32 positions and a group at R = 16: 48 HMMA, 16 LDSM, 32 SHFL, 32 F2FP.
// A whole block executes 24 a position on a map of 64x56x56 (python -m benchmarks.instructions).
//
// Besides what it needs, a position multiplies by zero what is in column +4 (even columns) or -4 of x, and
// makes NaN of a NaN or infinity there.
#pragma once

#include "fused_backward_rows.cuh"

namespace involution {

template <int kSteps>
struct FusedFeaturesGradient {
  static constexpr FusedBackwardBlock kBlock = fused_backward_block(FusedGradient::kFeatures, kSteps);
  static constexpr FusedBackwardLayout kLayout = fused_backward_layout(FusedGradient::kFeatures, kSteps);
  static constexpr int kWeightPieces = kSteps * 2;                            // of 16 bytes
  static constexpr int kPackBytes = kBlock.groups * kFusedGroupChannels * 2;  // of a column in memory
  static constexpr int kRow = fused_features_sums(kSteps);

  // Row 16*(kh/2) + 8*(kw%2) + 2*(kw/2) + kh%2 of a group's weight is tap (kh, kw), the others are zeros.
  template <typename T>
  static __device__ __forceinline__ void bring_weights(const FusedBackwardMarch& m, int group, int reduced,
                                                       const T* weight, Spot weights, int thread,
                                                       int threads) {
    bring_taps<kFusedBackwardSize, 0, kFusedBackwardSize + 1, kWeightPieces>(
        weight + reduced, m.reduced, m.reduced - reduced, group, smaller(m.groups - group, kBlock.groups),
        static_cast<unsigned>(thread), static_cast<unsigned>(threads), [&](int g, int kh, int kw, int piece) {
          const int row = kh / 2 * 16 + kw % 2 * 8 + kw / 2 * 2 + kh % 2;
          return weights + g * kLayout.group_weight + row * kLayout.feature + piece * 16;
        });
  }
};

template <typename T, int kSteps>
__global__ void __launch_bounds__(fused_backward_block(FusedGradient::kFeatures, kSteps).threads())
    fused_features_gradient_kernel(const __grid_constant__ FusedBackwardMarch m, const T* __restrict__ dy,
                                   const T* __restrict__ x, const T* __restrict__ weight,
                                   T* __restrict__ dfeatures) {
  using F = FusedFeaturesGradient<kSteps>;
  constexpr int kGroups = F::kBlock.groups, kFeature = F::kLayout.feature, kPairs = kFusedTileRows / 2;
  const int threads = static_cast<int>(blockDim.x), lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = uniform(static_cast<int>(threadIdx.x) / 32);
  const int tile = warp / kGroups, sub = warp - tile * kGroups;
  const int columns = m.runs * F::kBlock.tile_columns;
  const int position = tile % m.runs * F::kBlock.tile_columns, first_row = tile / m.runs * kFusedTileRows;
  const FusedBackwardPlace at = fused_backward_place(m, 0, kSteps * 16, columns);
  const int64_t image = static_cast<int64_t>(at.image) * m.height * m.width;
  const int pixel_rows_of_pack = m.chunk_rows + kFusedHalo;

  // Twice each, for packs by turns.
  const Spot pixels = shared_memory();
  const Spot gradients = pixels + 2 * pixel_rows_of_pack * m.pixel_row;
  const Spot weights = gradients + 2 * m.chunk_rows * m.gradient_row;

  using Columns = FusedNeighbours<kGroups>;
  FusedRows<Columns> pixel_rows(x + image * m.channels, m.channels, 0, at.first_column - kFusedReach,
                                columns + 8, columns + kFusedHalo, m.width, pixels, 2 * pixel_rows_of_pack,
                                m.pixel_row);
  FusedRows<Columns> gradient_rows(dy + image * m.channels, m.channels, 0, at.first_column, columns, columns,
                                   m.width, gradients, 2 * m.chunk_rows, m.gradient_row);
  // The rows and weights of a pack; the warp is one of so many.
  const auto bring = [&](int step, int of_warps, int warps) {
    // What a group that is not there has is not read.
    if (pixel_rows.piece * 8 < m.channels - step * kGroups * kFusedGroupChannels) {
      const int row = at.first_row - kFusedReach, slot = step % 2 * pixel_rows_of_pack;
      pixel_rows.template bring<kFusedHalo>(row, kFusedHalo, slot, m.height, of_warps, warps);
      pixel_rows.template bring<kFusedTileRows>(row + kFusedHalo, m.chunk_rows, slot + kFusedHalo, m.height,
                                                of_warps, warps);
      gradient_rows.template bring<kFusedTileRows>(at.first_row, m.chunk_rows, step % 2 * m.chunk_rows,
                                                   m.height, of_warps, warps);
    }
    pixel_rows.advance(F::kPackBytes);
    gradient_rows.advance(F::kPackBytes);
    F::bring_weights(m, step * kGroups, at.reduced, weight,
                     weights + step % 2 * kGroups * F::kLayout.group_weight, of_warps * 32 + lane,
                     warps * 32);
  };
  // At first all warps bring what there is.
  bring(0, warp, threads / 32);
  commit_copies();
  wait_for_copies<0>();

  // ---- what a lane has to do with ----
  const int quad = lane / 4, t = lane % 4, matrix = lane / 8, i = lane % 8;
  const bool first_columns = t >= quad / 2, even = quad % 2 == 0;
  const int even_source = quad * 4 + ((t + quad / 2) & 3), odd_source = quad * 4 + ((t + (quad + 1) / 2) & 3);
  // Of x: matrices (columns 0-7, channels 0-7), (0-7, 8-15), (8-15, 0-7), (8-15, 8-15).
  const int pixel_lane =
      first_row * m.pixel_row + Columns::at(position + matrix / 2 * 8 + i, sub * 2 + matrix % 2);
  // Of dy: (row 2P, channels 0-7), (2P + 1, 0-7), (2P, 8-15), (2P + 1, 8-15).
  const int gradient_lane =
      (first_row + matrix % 2) * m.gradient_row + Columns::at(position + i, sub * 2 + matrix / 2);
  // Of the weight: (even kw, channels 0-7), (odd kw, 0-7), (even, 8-15), (odd, 8-15).
  const int weight_lane = sub * F::kLayout.group_weight + (matrix % 2 * 8 + i) * kFeature + matrix / 2 * 16;

  // Of position `quad` of rows 2P and 2P + 1:
  //   [8 reduced channels][(2P: channels 2t, 2t+1), (2P + 1: the same)]
  float sums[kPairs][2 * kSteps][4] = {};
  const int steps = (m.groups + kGroups - 1) / kGroups, workers = threads / 32 - F::kBlock.copying;
  if (warp >= workers) {
    bring_steps(steps, [&](int step) { bring(step, warp - workers, F::kBlock.copying); });
  }
#pragma unroll 1
  for (int step = 0; step < steps && warp < workers; ++step) {
    meet();
    if (step * kGroups + sub >= m.groups) continue;

    const Spot own_pixels = pixels + step % 2 * pixel_rows_of_pack * m.pixel_row + pixel_lane;
    const Spot own_gradients = gradients + step % 2 * m.chunk_rows * m.gradient_row + gradient_lane;
    const Spot own_weights = weights + step % 2 * kGroups * F::kLayout.group_weight + weight_lane;
    uint32_t of_dy[kPairs][4], of_x[3][4];
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      load_matrices<4, false>(of_dy[p], own_gradients + 2 * p * m.gradient_row);
    }
    load_matrices<4, false>(of_x[0], own_pixels);
    load_matrices<4, false>(of_x[1], own_pixels + m.pixel_row);
    // Of columns 2t and 2t + 1, waiting for the next kernel row: of rows 2P, and of rows 2P + 1.
    float upper[kPairs][2], lower[kPairs][2];
    uint32_t a[kPairs][4];  // (even kw, row 2P), (even, 2P + 1), (odd, 2P), (odd, 2P + 1)
    const auto place = [&](uint32_t first, uint32_t second, uint32_t& even_taps, uint32_t& odd_taps) {
      even_taps = __shfl_sync(0xffffffffu, even ? first : second, even_source);
      odd_taps = __shfl_sync(0xffffffffu, even ? second : first, odd_source);
    };
    const auto add = [&](int pair) {
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
        uint32_t b[4];
        load_matrices<4, true>(b, own_weights + pair * 16 * kFeature + k * 32);
#pragma unroll
        for (int p = 0; p < kPairs; ++p) {
          multiply_add(sums[p][2 * k], a[p], b[0], b[1], T{});
          multiply_add(sums[p][2 * k + 1], a[p], b[2], b[3], T{});
        }
      }
    };
    // Rows r and r + 2 of x are kernel row r of rows 2P, and r - 1 of rows 2P + 1.
#pragma unroll
    for (int r = 0; r <= kFusedBackwardSize; ++r) {
      load_matrices<4, false>(of_x[(r + 2) % 3], own_pixels + (r + 2) * m.pixel_row);
#pragma unroll
      for (int p = 0; p < kPairs; ++p) {
        const uint32_t (&b)[4] = of_x[(r + 2 * p) % 3];
        float d0[4] = {}, d1[4] = {}, now[4];
        multiply_add(d0, of_dy[p], b[0], b[1], T{});
        multiply_add(d1, of_dy[p], b[2], b[3], T{});
#pragma unroll
        for (int k = 0; k < 4; ++k) now[k] = first_columns ? d0[k] : d1[k];
        if (r % 2 == 0) {
          if (r > 0) place(pack(lower[p][0], now[2], T{}), pack(lower[p][1], now[3], T{}), a[p][1], a[p][3]);
          upper[p][0] = now[0], upper[p][1] = now[1];
        } else {
          const bool last = r == kFusedBackwardSize;  // there is no such kernel row
          place(pack(upper[p][0], last ? 0.f : now[0], T{}), pack(upper[p][1], last ? 0.f : now[1], T{}),
                a[p][0], a[p][2]);
          lower[p][0] = now[2], lower[p][1] = now[3];
          if (last) place(pack(now[2], 0.f, T{}), pack(now[3], 0.f, T{}), a[p][1], a[p][3]);
        }
      }
      if (r > 0 && r % 2 == 0) add(r / 2 - 1);
      if (r == kFusedBackwardSize) add(r / 2);
    }
  }
  meet();

  // The sums of all warps take the place of what they read.
  const Spot parts = shared_memory();
  if (warp < workers) {
#pragma unroll
    for (int row = 0; row < kFusedTileRows; ++row) {
      const Spot own = parts + warp * F::kLayout.warp + (row * 8 + quad) * F::kRow + t * 8;
#pragma unroll
      for (int n = 0; n < 2 * kSteps; ++n) {
        store_shared(own + n * 32, sums[row / 2][n][row % 2 * 2]);
        store_shared(own + n * 32 + 4, sums[row / 2][n][row % 2 * 2 + 1]);
      }
    }
  }
  meet();
  dfeatures += image * m.reduced;
  constexpr int kFours = kSteps * 4;  // of the reduced channels
#pragma unroll 1
  for (int e = static_cast<int>(threadIdx.x); e < workers / kGroups * 32 * kFours; e += threads) {
    const int four = e % kFours, of_tile = e / kFours % 32, of_block = e / kFours / 32;
    const int row = at.first_row + of_block / m.runs * kFusedTileRows + of_tile / 8;
    const int column = at.first_column + of_block % m.runs * 8 + of_tile % 8, r = at.reduced + four * 4;
    if (column >= m.width || row >= m.height || r >= m.reduced) continue;
    float4 sum{0, 0, 0, 0};
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const auto part = load_shared<float4>(parts + (of_block * kGroups + g) * F::kLayout.warp +
                                            of_tile * F::kRow + four * 16);
      sum.x += part.x, sum.y += part.y, sum.z += part.z, sum.w += part.w;
    }
    *reinterpret_cast<uint2*>(dfeatures + (static_cast<int64_t>(row) * m.width + column) * m.reduced + r) =
        uint2{pack(sum.x, sum.y, T{}), pack(sum.z, sum.w, T{})};
  }
}

}  // namespace involution
