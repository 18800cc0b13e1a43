// The fused layer (fused.cuh) with a stride of 2: windows are centred at 2*o, and the features have the
// result's resolution.
//
//   k[p, g, kh, kw] = bias + sum_r weight[g*K*K + kh*K + kw, r] * features[p, r]
//   y[p, c]         = sum_kh,kw k[p, c/16, kh, kw] * x[2p + (kh, kw) - K/2, c]
//
// and then perhaps y*scale + shift and ReLU.
//
// Blocks are those of the layer without a stride. A warp owns a tile of 4 x 4 positions and one group. For
// each row kh of the kernel:
//
//   1. k     D[16 positions x 8 taps] = features (16 x R, in registers for all kernel rows) * weight^T + bias,
//            which is what the sums begin with.
//   2. band  Position n of four neighbours has its taps in columns 2n .. 2n + K - 1 of 16: pairs n + e, all
//            at even columns. Lane t of a quad has pair t of the columns or pair t + 4: one shuffle in the
//            quad.
//   3. y     As with stride 1, the shuffled registers are operand A of the sparse product. Its 16 rows are
//            the tile's positions, its 32 columns rows 2u and 2u + 1 of x. Row i of x meets row j of the tile
//            with kernel row i - 2j, so that a register is of kernel row i or i - 2 by lane (i - 4 or i - 6
//            in the lower half).
//
// Warp instructions of 16 positions and a group at K = 7:
//
//   k         7 HMMA and 4.5 LDSM for each 16 reduced channels, 7 LDS
//   band      14 F2FP, 14 SHFL
//   y         18 SEL, 14 HMMA.SP, 14 LDSM
//   results   8 FFMA, 4 F2FP, 4 HMNMX2, 4 LDS; 1 STSM, 1 LDS, 1 STG
//
// A whole block executes 27 a position on a map of 128x56x56, R = 32 (python -m benchmarks.instructions).
//
// Bytes of a position and group:
//
//   x          4 * 32
//   features   2R / 2
//   y          32
//
// Besides its taps a position multiplies by zero columns up to 15 - K behind its window, and in its columns
// rows of x from 9 above to 10 below its own, and makes NaN of a NaN or infinity there.
#pragma once

#include "fused_rows.cuh"

namespace involution {

template <int K, int kSteps>
struct FusedStrided {
  static constexpr FusedBlock kBlock = fused_block(K, kSteps, 2);
  static constexpr FusedLayout kLayout = fused_layout(K, kSteps, 2);
  static constexpr int kTileColumns = fused_tile_columns(2);
  static constexpr int kUnits = (K + 7) / 2;               // pairs of rows of x that a step meets
  static constexpr int kChunks = kSteps / 2;               // of 32 reduced channels
  static constexpr int kPieces = kSteps * 2;               // of 16 bytes in a row of the weight
  static constexpr int kBiases = 8 * K * kLayout.feature;  // where a group's begin
  static_assert((kBlock.groups + kBlock.copying) * 4 >= kPieces, "too few threads for a kernel row");
  static_assert(kSteps % 2 == 0 && kBlock.warp_groups == 1,
                "a lane loads weights of 32 channels of one group");

  // Row 8*kh + kw of a group's weight is tap (kh, kw), the others are zeros; behind them are the biases.
  template <typename T>
  static __device__ __forceinline__ void bring_weights(const FusedMarch& m, int group, const T* weight,
                                                       const T* bias, Spot weights) {
    const int groups = smaller(m.groups - group, kBlock.groups);
    bring_taps<K, 0, K, kPieces>(weight, m.reduced, m.reduced, group, groups, threadIdx.x, blockDim.x,
                                 [&](int g, int kh, int kw, int piece) {
                                   return weights + g * kLayout.group_weight +
                                          (kh * 8 + kw) * kLayout.feature + piece * 16;
                                 });
    bring_biases<K>(group, groups, bias, [&](int i, T value) {
      const int g = i / (8 * K), row = i - g * 8 * K;
      store_shared(weights + g * kLayout.group_weight + kBiases + row * 4, widen(value));
    });
  }
};

template <typename T, int K, int kSteps>
__global__ void __launch_bounds__(fused_block(K, kSteps, 2).threads(), fused_block(K, kSteps, 2).residents)
    fused_strided_kernel(const __grid_constant__ FusedMarch m, const T* __restrict__ x,
                         const T* __restrict__ features, const T* __restrict__ weight,
                         const T* __restrict__ bias, const float* __restrict__ scale,
                         const float* __restrict__ shift, T* __restrict__ y) {
  using F = FusedStrided<K, kSteps>;
  constexpr int kGroups = F::kBlock.groups, kTileColumns = F::kTileColumns;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = uniform(static_cast<int>(threadIdx.x) / 32), workers = m.runs * kGroups;
  const int tile = warp / kGroups, sub = warp - tile * kGroups;
  const int columns = m.runs * kTileColumns, position = tile * kTileColumns;
  const FusedPlace at = fused_place<kGroups>(m, columns);
  const int group = at.group, first_column = at.first_column, first_row = at.first_row;
  const int end_row = at.end_row, steps = at.steps;
  const int64_t image = at.image;

  const Spot pixels = shared_memory();
  const Spot weights = pixels + F::kLayout.ring * m.pixel_row;
  const FusedEpilogue<T, kGroups> epilogue(m, weights + kGroups * F::kLayout.group_weight, scale != nullptr);
  const Spot all_results = weights + kGroups * F::kLayout.group_weight + FusedEpilogue<T, kGroups>::kBytes;
  const Spot reduced = all_results + workers * F::kLayout.result;
  const Spot results = all_results + warp * F::kLayout.result;

  const FusedRows<FusedPixels<kGroups>> pixel_rows(x + image * m.height * m.width * m.channels, m.channels,
                                                   group * kFusedGroupChannels, 2 * first_column - K / 2,
                                                   2 * columns + 8, 2 * columns + K - 2, m.width, pixels,
                                                   F::kLayout.ring, m.pixel_row);
  const FusedRows<FusedFeatures<kSteps>> feature_rows(
      features + image * m.result_height * m.result_width * m.reduced, m.reduced, 0, first_column, columns,
      columns, m.result_width, reduced, 2 * kFusedTileRows, m.feature_row);
  // What a step does not share with the one before, which are all rows of the first; `at_once` of x are
  // brought at once. The warp is one of so many.
  constexpr int kRows = 2 * F::kUnits, kStepRows = 2 * kFusedTileRows;
  int slot = 0;  // of the ring
  const auto bring = [&](int step, int shared, auto at_once, int of_warps, int warps) {
    const int row = first_row + step * kFusedTileRows;
    feature_rows.template bring<kFusedTileRows>(row, kFusedTileRows, step % 2 * kFusedTileRows,
                                                m.result_height, of_warps, warps);
    pixel_rows.template bring<decltype(at_once)::value>(2 * row - K / 2 + shared, kRows - shared, slot,
                                                        m.height, of_warps, warps);
    slot += kRows - shared;
    if (slot >= F::kLayout.ring) slot -= F::kLayout.ring;
  };
  // At first all warps bring what there is.
  bring(0, 0, std::integral_constant<int, kRows / 2>{}, warp, static_cast<int>(blockDim.x) / 32);
  F::bring_weights(m, group, weight, bias, weights);
  commit_copies();
  epilogue.bring(m, group, scale, shift);
  wait_for_copies<0>();
  if (warp >= workers) {
    return bring_steps(steps, [&](int step) {
      bring(step, kRows - kStepRows, std::integral_constant<int, kStepRows>{}, warp - workers,
            F::kBlock.copying);
    });
  }

  // ---- what a lane has to do with ----
  const int quad = lane / 4, t = lane % 4, matrix = lane / 8, i = lane % 8;
  const int source_lane = quad * 4 + ((t - quad) & 3);  // of the pair of taps that the lane's columns meet
  const uint32_t places = fused_places(quad % 4);
  const bool upper = quad < 4;  // rows 0 and 2 of the tile, or 1 and 3
  // Of the features: matrices (positions 0-7, channels 0-7), (8-15, 0-7), (0-7, 8-15), (8-15, 8-15).
  const int feature_lane =
      (matrix % 2 * 2 + i / 4) * m.feature_row + FusedFeatures<kSteps>::at(position + i % 4, matrix / 2);
  // Of the weight: channels 0-7, 8-15, 16-23, 24-31 of eight taps.
  const int weight_lane = i * F::kLayout.feature + matrix * 16;
  // Of x: eight channels of columns k of matrices (row 2u, k 0-7), (2u, 8-15), (2u + 1, 0-7), (2u + 1, 8-15).
  const int k_of_lane = matrix % 2 * 8 + i;
  const int pixel_lane =
      FusedPixels<kGroups>::at(2 * position + k_of_lane / 4 * 2 + k_of_lane % 2 + k_of_lane / 2 % 2 * 8, 0) +
      matrix / 2 * m.pixel_row;
  const int pixel_now = pixel_lane ^ sub * 32;
  // Results: 16 positions x 32 bytes, whose halves are swapped for every other four positions.
  const int result_to = (matrix / 2 * 8 + i) * 32 + ((matrix ^ i >> 2) & 1) * 16;
  const int result_from = lane / 2 * 32 + ((lane ^ lane >> 3) & 1) * 16;
  const int column = first_column + position + lane / 2 % 4;
  y += ((image * m.result_height + first_row + lane / 8) * m.result_width + column) * m.channels +
       (group + sub) * kFusedGroupChannels + lane % 2 * 8;
  const Spot group_weights = weights + sub * F::kLayout.group_weight;
  const Spot group_biases = group_weights + F::kBiases + t * 8;

  int first_slot = 0;  // of the ring
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    const int first_of_step = first_row + step * kFusedTileRows;
    meet();

    if (group + sub >= m.groups) continue;
    uint32_t of_tile[kSteps][4];
    const Spot rows = reduced + step % 2 * kFusedTileRows * m.feature_row + feature_lane;
#pragma unroll
    for (int k = 0; k < kSteps; ++k) load_matrices<4, false>(of_tile[k], rows + k * 32);
    int unit_rows[F::kUnits];
#pragma unroll
    for (int u = 0; u < F::kUnits; ++u) {
      const int slot = first_slot + 2 * u;
      unit_rows[u] = (slot < F::kLayout.ring ? slot : slot - F::kLayout.ring) * m.pixel_row;
    }
    first_slot += kStepRows;
    if (first_slot >= F::kLayout.ring) first_slot -= F::kLayout.ring;

    uint32_t band[2][K];  // the lane's pair of taps by kernel row: of rows 0-1 and 2-3 of the tile
    const auto make_band = [&](int kh) {
      const float2 begin = load_shared<float2>(group_biases + kh * 32);
      float d[4] = {begin.x, begin.y, begin.x, begin.y};
#pragma unroll
      for (int k = 0; k < F::kChunks; ++k) {
        uint32_t taps[4];
        load_matrices<4, false>(taps, group_weights + kh * 8 * F::kLayout.feature + weight_lane + k * 64);
        multiply_add(d, of_tile[2 * k], taps[0], taps[1], T{});
        multiply_add(d, of_tile[2 * k + 1], taps[2], taps[3], T{});
      }
      band[0][kh] = __shfl_sync(0xffffffffu, pack(d[0], d[1], T{}), source_lane);
      band[1][kh] = __shfl_sync(0xffffffffu, pack(d[2], d[3], T{}), source_lane);
    };
    // Of kernel row kh for rows 0 and 2 of the tile, kh - 2 for rows 1 and 3; zeros where there is none.
    const auto of_kernel_row = [&](int half, int kh) {
      const bool first_exists = kh >= 0 && kh < K, second_exists = kh >= 2 && kh < K + 2;
      const uint32_t first = first_exists ? band[half][first_exists ? kh : 0] : 0;
      const uint32_t second = second_exists ? band[half][second_exists ? kh - 2 : 0] : 0;
      return upper ? first : second;
    };

    float sums[2][4] = {};  // [channels 0-7, 8-15][(position `quad`: channels 2t, 2t+1), (position quad + 8)]
#pragma unroll
    for (int u = 0; u < F::kUnits; ++u) {
      uint32_t source[2][4];
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        load_matrices<4, true>(source[c], pixels + unit_rows[u] + (pixel_now ^ c * 16));
      }
      if (2 * u < K) make_band(2 * u);
      if (2 * u + 1 < K) make_band(2 * u + 1);
      const uint32_t taps[4] = {of_kernel_row(0, 2 * u), of_kernel_row(1, 2 * u - 4),
                                of_kernel_row(0, 2 * u + 1), of_kernel_row(1, 2 * u - 3)};
#pragma unroll
      for (int c = 0; c < 2; ++c) multiply_add_sparse(sums[c], taps, source[c], places, T{});
    }

    const auto factors = epilogue.factors(sub * kFusedGroupChannels + 2 * t);
    const auto rounded = [&](int octet, int first) {
      return epilogue.rounded(sums[octet][first], sums[octet][first + 1], factors, octet);
    };
    store_matrices(results + result_to, rounded(0, 0), rounded(1, 0), rounded(0, 2), rounded(1, 2));
    __syncwarp();
    if (column < m.result_width && first_of_step + lane / 8 < end_row) {
      store_global(y + static_cast<int64_t>(step) * kFusedTileRows * m.result_width * m.channels,
                   load_shared<uint4>(results + result_from));
    }
    __syncwarp();
  }
}

}  // namespace involution
