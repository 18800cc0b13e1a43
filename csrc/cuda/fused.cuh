// The involution layer of float16 and bfloat16 in one kernel: no position's kernel is ever in memory.
// Channels are the innermost axis of all maps, 16 of them are a group; windows are K x K and centred, with
// K = 3, 5 or 7.
//
//   k[p, g, kh, kw] = bias + sum_r weight[g*K*K + kh*K + kw, r] * features[p, r]   (rounded to T)
//   y[p, c]         = sum_kh,kw k[p, c/16, kh, kw] * x[p + (kh, kw) - K/2, c]
//
// and then perhaps y*scale + shift and ReLU.
//
// A block owns a pack of groups, a strip of columns and a chunk of rows of one image and marches down by 4
// rows a step. Rows of x and of the features come by asynchronous copies into rings, a step ahead, which one
// or two warps do that do nothing else; the weights of the groups stay. Each other warp owns a tile of 4 rows
// and 8 columns and some of the groups. For each group, and each row kh of the kernel:
//
//   1. k     D[16 positions x 8 taps] = features (16 x R) * weight^T + bias
//
//            The features are in registers for all groups and kernel rows; the bias is one more column of the
//            weight where the features have a one. A lane gets pairs of taps, and a pair has to begin at an
//            even column of the band. Hence there are two tiles:
//
//              E   the even positions, with taps (w0 .. w6, 0)
//              O   the odd positions, with taps (0, w0 .. w6)
//
//            O is made like E and then multiplied by a matrix that moves taps by one. Its own rows of the
//            weight would be as many wavefronts of shared memory as E's, which set the pace of many features.
//
//   2. band  Tap j - n of position n, in 16 columns j of x. Pair q = n/2 + e of the columns is pair e of the
//            taps; lane t of a quad has pair t of the columns, or pair t + 4: one shuffle turns the pairs
//            within the quad. Row i of E is even position i of one row of the tile and i - 1 of the next, row
//            i of O odd position i and i + 1: one select of (E, O) gives one row of the tile, with position i
//            at quad i, and the other select the next row with position i^1 at quad i, which the shuffle
//            undoes.
//
//   3. y     Of pairs t and t + 4 exactly one is taps, the other zeros. With columns in the order
//
//              0 1 8 9   2 3 10 11   4 5 12 13   6 7 14 15
//
//            the band has two zeros in every four, which is what sparse tensor cores want, at places that
//            depend on the lane alone: the shuffled register is their operand A, and the order of columns is
//            that of ldmatrix's addresses. The 16 rows of A are 8 positions of rows 2P and 2P + 1 of the
//            tile, its 32 columns rows 2u and 2u + 1 of x. With u = P + j they meet
//
//              taps kh = 2j, 2j + 1   of the upper row
//              taps kh = 2j - 1, 2j   of the lower row
//
// Warp instructions of 32 positions and a group at K = 7, R = 16, 8 a position:
//
//   k         14 HMMA, 7 HMMA.1688 (bias), 8 LDSM
//   band      7 HMMA.1688, 42 F2FP, 28 SEL, 28 SHFL
//   y         16 HMMA.SP, 10 LDSM
//   results   16 FFMA, 8 F2FP, 8 HMNMX2, 4 LDS; 2 STSM, 2 LDS, 2 STG
//
// A whole block executes 12 a position on a map of 64x56x56 and 24 on 256x14x14, R = 64 (python -m
// benchmarks.instructions).
//
// Bytes of a position and group:
//
//   x          32 * (1 + (K-1)/rows) * (1 + 8/columns)
//   features   2R/groups
//   y          32
//
// Besides its taps a position multiplies some columns by zero, and makes NaN of a NaN or infinity there:
// column +4 of an even and -4 of an odd position, and eight columns of the row below (even rows of a tile) or
// above the kernel's. An infinite tap of an odd position makes NaN of its kernel row's others.
#pragma once

#include "fused_rows.cuh"

namespace involution {

// The constants of a kernel.
template <int K, int kSteps>
struct Fused {
  static constexpr FusedBlock kBlock = fused_block(K, kSteps, 1);
  static constexpr FusedLayout kLayout = fused_layout(K, kSteps, 1);
  static constexpr int kTileColumns = fused_tile_columns(1);
  static constexpr int kWarpsOfTile = kBlock.groups / kBlock.warp_groups;
  static constexpr int kFeaturePieces = kSteps * 2;            // of 16 bytes
  static constexpr int kUnits = (kFusedTileRows + K - 1) / 2;  // pairs of rows of x that a step meets
  static_assert((kWarpsOfTile + kBlock.copying) * 4 >= kFeaturePieces, "too few threads for a kernel row");
  static_assert(!kBlock.held || kBlock.warp_groups == 1, "a warp holds the weights of one group");

  // The weights of the block's groups, and the biases behind each row. Row 8*kh + kw of a group's weight is
  // tap (kh, kw), the others are zeros.
  template <typename T>
  static __device__ __forceinline__ void bring_weights(const FusedMarch& m, int group, const T* weight,
                                                       const T* bias, Spot weights) {
    const int groups = smaller(m.groups - group, kBlock.groups);
    bring_taps<K, 0, K, kFeaturePieces>(weight, m.reduced, m.reduced, group, groups, threadIdx.x, blockDim.x,
                                        [&](int g, int kh, int kw, int piece) {
                                          return weights + (g * 8 * K + kh * 8 + kw) * kLayout.feature +
                                                 piece * 16;
                                        });
    // Of eight more columns the first is for positions 0-7 of a product and the second for 8-15.
    bring_biases<K>(group, groups, bias, [&](int i, T value) {
      store_shared(weights + i * kLayout.feature + kSteps * 32, uint4{value.bits * 0x10001u, 0, 0, 0});
    });
  }
};

// Makes the band of each row of the kernel, in registers: steps 1 and 2 above.
template <typename T, int K, int kSteps>
class FusedBand {
  using F = Fused<K, kSteps>;

 public:
  __device__ __forceinline__ explicit FusedBand(int lane) {
    const int quad = lane / 4, t = lane % 4, matrix = lane / 8, i = lane % 8;
    even_ = quad % 2 == 0;
    const int pair = (t - quad / 2) & 3;  // of the taps, in the lane's register of the band
    source_[0] = quad * 4 + pair;
    source_[1] = (quad ^ 1) * 4 + pair;
    // Of eight taps, matrices of channels 0-7 and 8-15, and of two steps 16-23 and 24-31.
    rows_ = i * F::kLayout.feature + matrix * 16;
    // Of kernel rows kh and kh + 1.
    biases_ = (i + matrix % 2 * 8) * F::kLayout.feature + kSteps * 32;
    ones_[0] = t == 0 ? one(T{}) : 0;
    ones_[1] = t == 0 ? one(T{}) << 16 : 0;
    moved_ = (2 * t == quad - 1 ? one(T{}) : 0) | (2 * t + 1 == quad - 1 ? one(T{}) << 16 : 0);
  }

  // For a warp that holds the weights of its one group.
  __device__ __forceinline__ void hold(Spot weights) {
#pragma unroll
    for (int kh = 0; kh < K; ++kh) {
      load_taps(held_[F::kBlock.held ? kh : 0], weights, kh);
      if (kh % 2 == 0) load_biases(held_biases_[F::kBlock.held ? kh / 2 : 0], weights, kh);
    }
  }

  // band[r]: the lane's pair of taps of row r of the tile. Rows are asked for in their order.
  __device__ __forceinline__ void make(int kh, const uint32_t (&features)[2][kSteps][4], Spot weights,
                                       uint32_t (&band)[kFusedTileRows]) {
    if constexpr (!F::kBlock.held) {
      load_taps(held_[0], weights, kh);
      if (kh % 2 == 0) load_biases(held_biases_[0], weights, kh);
    }
    const uint32_t (&taps)[2 * kSteps] = held_[F::kBlock.held ? kh : 0];
    const uint32_t bias = held_biases_[F::kBlock.held ? kh / 2 : 0][kh + 1 < K ? kh % 2 : 1];
    float even[4] = {}, odd[4] = {}, moved[4] = {};
    multiply_add(even, ones_, bias, T{});
    multiply_add(odd, ones_, bias, T{});
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      multiply_add(even, features[0][k], taps[2 * k], taps[2 * k + 1], T{});
      multiply_add(odd, features[1][k], taps[2 * k], taps[2 * k + 1], T{});
    }
    multiply_add(moved, {pack(odd[0], odd[1], T{}), pack(odd[2], odd[3], T{})}, moved_, T{});
#pragma unroll
    for (int r = 0; r < kFusedTileRows; r += 2) {
      const uint32_t e = pack(even[r], even[r + 1], T{}), o = pack(moved[r], moved[r + 1], T{});
      band[r] = __shfl_sync(0xffffffffu, even_ ? e : o, source_[0]);
      band[r + 1] = __shfl_sync(0xffffffffu, even_ ? o : e, source_[1]);
    }
  }

 private:
  static __device__ __forceinline__ uint32_t one(Float16) { return 0x3c00; }
  static __device__ __forceinline__ uint32_t one(BFloat16) { return 0x3f80; }

  __device__ __forceinline__ void load_taps(uint32_t (&to)[2 * kSteps], Spot weights, int kh) const {
    const Spot at = weights + rows_ + kh * 8 * F::kLayout.feature;
    if constexpr (kSteps == 1) {
      load_matrices<2, false>(to, at);
    } else {
#pragma unroll
      for (int k = 0; k < kSteps; k += 2) load_matrices<4, false>(to + 2 * k, at + k * 32);
    }
  }

  // Of kernel rows kh and kh + 1; the last one comes with the one before it.
  __device__ __forceinline__ void load_biases(uint32_t (&to)[2], Spot weights, int kh) const {
    const int first = kh + 1 < K ? kh : kh - 1;
    load_matrices<2, false>(to, weights + biases_ + first * 8 * F::kLayout.feature);
  }

  bool even_;
  int source_[2];
  int rows_;
  int biases_;
  uint32_t ones_[2];
  uint32_t moved_;  // of the matrix that moves taps by one
  uint32_t held_[F::kBlock.held ? K : 1][2 * kSteps];
  uint32_t held_biases_[F::kBlock.held ? (K + 1) / 2 : 1][2];
};

template <typename T, int K, int kSteps>
__global__ void __launch_bounds__(fused_block(K, kSteps, 1).threads(), fused_block(K, kSteps, 1).residents)
    fused_kernel(const __grid_constant__ FusedMarch m, const T* __restrict__ x,
                 const T* __restrict__ features, const T* __restrict__ weight, const T* __restrict__ bias,
                 const float* __restrict__ scale, const float* __restrict__ shift, T* __restrict__ y) {
  using F = Fused<K, kSteps>;
  constexpr int kGroups = F::kBlock.groups, kPairs = kFusedTileRows / 2, kTileColumns = F::kTileColumns;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = uniform(static_cast<int>(threadIdx.x) / 32), workers = m.runs * F::kWarpsOfTile;
  const int tile = warp / F::kWarpsOfTile, sub = (warp - tile * F::kWarpsOfTile) * F::kBlock.warp_groups;
  const int columns = m.runs * kTileColumns, position = tile * kTileColumns;
  const FusedPlace at = fused_place<kGroups>(m, columns);
  const int group = at.group, first_column = at.first_column, first_row = at.first_row;
  const int end_row = at.end_row, steps = at.steps;
  const int64_t image = at.image * m.height * m.width;

  const Spot pixels = shared_memory();
  const Spot weights = pixels + F::kLayout.ring * m.pixel_row;
  const Spot factors = weights + kGroups * F::kLayout.group_weight;
  const FusedEpilogue<T, kGroups> epilogue(m, factors, scale != nullptr);
  const Spot all_results = factors + FusedEpilogue<T, kGroups>::kBytes;
  const Spot reduced = all_results + workers * F::kLayout.result;
  const Spot results = all_results + warp * F::kLayout.result;

  const FusedRows<FusedPixels<kGroups>> pixel_rows(
      x + image * m.channels, m.channels, group * kFusedGroupChannels, first_column - K / 2, columns + 8,
      columns + K - 1, m.width, pixels, F::kLayout.ring, m.pixel_row);
  const FusedRows<FusedFeatures<kSteps>> feature_rows(features + image * m.reduced, m.reduced, 0,
                                                      first_column, columns, columns, m.width, reduced,
                                                      2 * kFusedTileRows, m.feature_row);
  // What a step does not share with the one before, which are all rows of the first; `at_once` of x are
  // brought at once. The warp is one of so many.
  constexpr int kRows = kFusedTileRows + K - 1;
  int slot = 0;  // of the ring
  const auto bring = [&](int step, int shared, auto at_once, int of_warps, int warps) {
    const int row = first_row + step * kFusedTileRows;
    feature_rows.template bring<kFusedTileRows>(row, kFusedTileRows, step % 2 * kFusedTileRows, m.height,
                                                of_warps, warps);
    pixel_rows.template bring<decltype(at_once)::value>(row - K / 2 + shared, kRows - shared, slot, m.height,
                                                        of_warps, warps);
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
      bring(step, K - 1, std::integral_constant<int, kFusedTileRows>{}, warp - workers, F::kBlock.copying);
    });
  }

  // ---- what a lane has to do with ----
  const int quad = lane / 4, t = lane % 4, matrix = lane / 8, i = lane % 8;
  FusedBand<T, K, kSteps> band_of(lane);
  const uint32_t places = fused_places(quad / 2);
  // Rows of E and of O: matrices (positions 0-7, channels 0-7), (8-15, 0-7), (0-7, 8-15), (8-15, 8-15).
  const auto feature_lane = [&](int odd) {
    const int row = matrix % 2 * 2 + ((i & 1) ^ odd), column = position + (i & ~1) + odd;
    return row * m.feature_row + column * F::kLayout.feature + matrix / 2 * 16;
  };
  const int lane_of_e = feature_lane(0), lane_of_o = feature_lane(1);
  // Of x: eight channels of columns k of matrices (row 2u, k 0-7), (2u, 8-15), (2u + 1, 0-7), (2u + 1, 8-15).
  const int k_of_lane = matrix % 2 * 8 + i;
  const int pixel_lane =
      FusedPixels<kGroups>::at(position + k_of_lane / 4 * 2 + k_of_lane % 2 + k_of_lane / 2 % 2 * 8, 0) +
      matrix / 2 * m.pixel_row;
  // Results: 16 positions (8 of two rows) x 32 bytes. The halves of every other four positions are swapped.
  const int result_to = (matrix / 2 * 8 + i) * 32 + ((matrix ^ i >> 2) & 1) * 16;
  const int result_from = lane / 2 * 32 + ((lane ^ lane >> 3) & 1) * 16;
  const int column = first_column + position + lane / 2 % 8;
  int row = first_row + lane / 16;
  const unsigned to_next_row = static_cast<unsigned>(m.width) * static_cast<unsigned>(m.channels);
  unsigned to = static_cast<unsigned>(row) * to_next_row + static_cast<unsigned>(column * m.channels) +
                static_cast<unsigned>((group + sub) * kFusedGroupChannels + lane % 2 * 8);
  y += image * m.channels;

  int first_unit = 0;  // of the ring: pairs of rows of x
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    meet();
    if constexpr (F::kBlock.held) {
      if (step == 0) band_of.hold(weights + sub * F::kLayout.group_weight);
    }

    uint32_t of_tile[2][kSteps][4];
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      const Spot rows = reduced + step % 2 * kFusedTileRows * m.feature_row;
      load_matrices<4, false>(of_tile[0][k], rows + lane_of_e + k * 32);
      load_matrices<4, false>(of_tile[1][k], rows + lane_of_o + k * 32);
    }
    int unit_rows[F::kUnits];
#pragma unroll
    for (int u = 0; u < F::kUnits; ++u) {
      const int unit =
          first_unit + u < F::kLayout.ring / 2 ? first_unit + u : first_unit + u - F::kLayout.ring / 2;
      unit_rows[u] = unit * 2 * m.pixel_row;
    }
    first_unit += kPairs;
    if (first_unit >= F::kLayout.ring / 2) first_unit -= F::kLayout.ring / 2;

#pragma unroll 1
    for (int g = 0; g < F::kBlock.warp_groups; ++g) {
      if (group + sub + g >= m.groups) break;
      const int pixel_now = pixel_lane ^ (sub + g) * 32;
      const Spot group_weights = weights + (sub + g) * F::kLayout.group_weight;

      // Of position `quad` of rows 2P and 2P + 1:
      //   [channels 0-7, 8-15][(2P: channels 2t, 2t+1), (2P + 1: the same)]
      float sums[kPairs][2][4] = {};
      uint32_t source[kPairs + 1][2][4], before[kPairs] = {};  // taps kh = 2j - 1 of the lower rows
      const auto fetch = [&](int u) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          load_matrices<4, true>(source[u % (kPairs + 1)][c], pixels + unit_rows[u] + (pixel_now ^ c * 16));
        }
      };
#pragma unroll
      for (int u = 0; u < kPairs; ++u) fetch(u);
#pragma unroll
      for (int j = 0; j < (K + 1) / 2; ++j) {
        uint32_t band[2][kFusedTileRows] = {};
        band_of.make(2 * j, of_tile, group_weights, band[0]);
        if (j < K / 2) {
          band_of.make(2 * j + 1, of_tile, group_weights, band[1]);
          fetch(j + kPairs);
        }
#pragma unroll
        for (int p = 0; p < kPairs; ++p) {
          const uint32_t taps[4] = {band[0][2 * p], before[p], band[1][2 * p], band[0][2 * p + 1]};
          before[p] = band[1][2 * p + 1];
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            multiply_add_sparse(sums[p][c], taps, source[(p + j) % (kPairs + 1)][c], places, T{});
          }
        }
      }

      const auto factors = epilogue.factors((sub + g) * kFusedGroupChannels + 2 * t);
      const auto rounded = [&](const float (&pair)[4], int first, int octet) {
        return epilogue.rounded(pair[first], pair[first + 1], factors, octet);
      };
#pragma unroll
      for (int p = 0; p < kPairs; ++p) {
        const float (&v)[2][4] = sums[p];
        store_matrices(results + p * 512 + result_to, rounded(v[0], 0, 0), rounded(v[1], 0, 1),
                       rounded(v[0], 2, 0), rounded(v[1], 2, 1));
      }
      __syncwarp();
#pragma unroll
      for (int p = 0; p < kPairs; ++p) {
        if (column < m.width && row + 2 * p < end_row) {
          store_global(y + to + static_cast<unsigned>(2 * p) * to_next_row +
                           static_cast<unsigned>(g * kFusedGroupChannels),
                       load_shared<uint4>(results + p * 512 + result_from));
        }
      }
      __syncwarp();
    }
    row += kFusedTileRows;
    to += kFusedTileRows * to_next_row;
  }
}

}  // namespace involution
