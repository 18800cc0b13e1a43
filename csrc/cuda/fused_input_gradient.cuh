// The gradient of the fused layer's input: a gather, in which a position's kernels are made again.
//
//   k[p, g, kh, kw] = bias + sum_r weight[g*49 + kh*7 + kw, r] * features[p, r]   (rounded to T)
//   dx[q, c]        = sum over p of k[p, c/16, q - p + 3] * dy[p, c]
//
// A block owns a pack of groups, a strip of columns and a chunk of rows of one image and marches down by 4
// rows a step. Rows of dy and of the features, both with a halo of 3, come by asynchronous copies into rings,
// a step ahead; the weights of the groups stay. A warp owns one group and a tile of dx: 4 rows, and one or
// two octets of columns. Rows q = 2P and 2P + 1 of the tile and row p = 2(P + j) + b, from three rows above
// the tile on, meet with kernel rows kh = 6 - b - 2j and kh + 1. For each j < 4 and b < 2:
//
//   1. k     D[16 taps x 8 positions] = weight (16 x R) * features^T + bias, 8 taps of kernel row kh and 8 of
//            kh + 1. The second product has positions p along K, so that a lane needs a tap of an even position
//            and the one before it of the odd position behind. Hence the weight comes in two forms:
//
//              even positions   rows (w0 .. w6, 0) of the weight
//              odd positions    rows (0, w0 .. w6)
//
//            The 8 columns are 4 even (or odd) positions of one octet and 4 of the next, by turns: a lane
//            (quad, t) has tap `quad` of pair t of both octets.
//   2. band  Of the 16 positions p from q - 3 on, position n of an octet of dx needs of pair t tap
//            (n - 2t + 6) mod 8, from the first octet if t >= n/2, else from the second: a permutation of the
//            lanes of equal t. The lane that has it knows whom it serves, and selects the octet: one shuffle.
//   3. dx    The shuffled registers are operand A of the sparse product, as in the forward pass (fused.cuh):
//            its rows are 8 positions of rows 2P and 2P + 1 of dx, its 32 columns 16 positions of two rows of dy.
//
// Warp instructions of 32 positions and a group at R = 16: 48 HMMA, 40 LDSM, 32 SHFL, 48 F2FP.
// A whole block executes 18 a position on a map of 64x56x56 (python -m benchmarks.instructions).
//
// Besides what it needs, a position multiplies by zero what is in row +4 (even rows of a tile) or -4 and in
// column +4 (even columns) or -4, and makes NaN of a NaN or infinity of dy or of the kernels there.
#pragma once

#include "fused_backward_rows.cuh"

namespace involution {

// Columns of the features: those of two octets, four of each, are rows of one matrix, in different banks.
template <int kSteps>
struct FusedOctets {
  static constexpr int kPieces = kSteps * 2;

  static __device__ __forceinline__ int at(int column, int piece) {
    return column * (kSteps * 32 + 16) + (piece ^ (column / 8 & 1)) * 16;
  }
};

template <int kSteps>
struct FusedInputGradient {
  static constexpr FusedBackwardBlock kBlock = fused_backward_block(FusedGradient::kInput, kSteps);
  static constexpr FusedBackwardLayout kLayout = fused_backward_layout(FusedGradient::kInput, kSteps);
  // A tile of so many octets needs the kernels of one more, and a product makes those of two.
  static constexpr int kOctets = kBlock.tile_columns / 8, kProducts = (kOctets + 2) / 2;
  static constexpr int kFeaturePieces = kSteps * 2;  // of 16 bytes
  static constexpr int kUnits = kLayout.ring / 2;    // pairs of rows
  static constexpr int kWeightRows = (kFusedBackwardSize + 2) * 8 + 1;
  static constexpr int kBiasRows = kWeightRows - 8;
  static constexpr int kBiases = kWeightRows * kLayout.feature;  // where a group's begin
  // Of the four j: those written out share loads, as far as there are registers.
  static constexpr int kUnrolled = kSteps == 1 ? 2 : (kSteps == 2 ? 4 : 1);

  // Row 9 + 8*kh + kw of a group's weight is tap (kh, kw), the others are zeros; -1 or the tap. Kernel rows
  // -1 and 7 are zeros too.
  static __device__ __forceinline__ int tap_of(int row) {
    const int kh = row / 8 - 1, kw = row % 8 - 1;
    return kh < 0 || kh >= kFusedBackwardSize || kw < 0 ? -1 : kh * kFusedBackwardSize + kw;
  }

  template <typename T>
  static __device__ __forceinline__ void bring_weights(const FusedBackwardMarch& m, int group,
                                                       const T* weight, const T* bias, Spot weights) {
    constexpr int kTaps = kFusedBackwardSize * kFusedBackwardSize;
    const int threads = static_cast<int>(blockDim.x), groups = smaller(m.groups - group, kBlock.groups);
    bring_taps<kFusedBackwardSize, 1, kFusedBackwardSize + 2, kFeaturePieces>(
        weight, m.reduced, m.reduced, group, groups, threadIdx.x, blockDim.x,
        [&](int g, int row, int kw, int piece) {
          return weights + g * kLayout.group_weight + (1 + row * 8 + kw) * kLayout.feature + piece * 16;
        });
    for (int e = static_cast<int>(threadIdx.x); e < kBlock.groups * kFeaturePieces; e += threads) {
      const int g = e / kFeaturePieces, piece = e % kFeaturePieces;
      store_shared(weights + g * kLayout.group_weight + piece * 16, uint4{0, 0, 0, 0});
    }
    // As a lane's four numbers of a product that begins with this row of the weight: two of its row, two of
    // the row 8 further on.
#pragma unroll 1
    for (int e = static_cast<int>(threadIdx.x); e < kBlock.groups * kBiasRows; e += threads) {
      const int row = e % kBiasRows, g = e / kBiasRows;
      const auto of_row = [&](int tap) {
        const bool there = bias != nullptr && tap >= 0 && group + g < m.groups;
        return there ? widen(bias[static_cast<int64_t>(group + g) * kTaps + tap]) : 0.f;
      };
      const float upper = of_row(tap_of(row)), lower = of_row(tap_of(row + 8));
      store_shared(weights + g * kLayout.group_weight + kBiases + row * 16,
                   float4{upper, upper, lower, lower});
    }
  }
};

template <typename T, int kSteps>
__global__ void __launch_bounds__(fused_backward_block(FusedGradient::kInput, kSteps).threads())
    fused_input_gradient_kernel(const __grid_constant__ FusedBackwardMarch m, const T* __restrict__ dy,
                                const T* __restrict__ features, const T* __restrict__ weight,
                                const T* __restrict__ bias, T* __restrict__ dx) {
  using F = FusedInputGradient<kSteps>;
  constexpr int kGroups = F::kBlock.groups, kOctets = F::kOctets, kPairs = kFusedTileRows / 2;
  constexpr int kFeature = F::kLayout.feature, kRing = F::kLayout.ring;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = uniform(static_cast<int>(threadIdx.x) / 32);
  const int tile = warp / kGroups, sub = warp - tile * kGroups;
  const int columns = m.runs * F::kBlock.tile_columns, position = tile * F::kBlock.tile_columns;
  const FusedBackwardPlace at = fused_backward_place(m, kGroups, kSteps * 16, columns);
  const int64_t image = static_cast<int64_t>(at.image) * m.height * m.width;

  const Spot pixels = shared_memory();
  const Spot reduced = pixels + kRing * m.pixel_row;
  const Spot weights = reduced + kRing * m.feature_row;
  const Spot results = weights + kGroups * F::kLayout.group_weight + warp * F::kLayout.warp;

  const FusedRows<FusedPixels<kGroups>> pixel_rows(
      dy + image * m.channels, m.channels, at.group * kFusedGroupChannels, at.first_column - kFusedReach,
      columns + 8, columns + kFusedHalo, m.width, pixels, kRing, m.pixel_row);
  const FusedRows<FusedOctets<kSteps>> feature_rows(
      features + image * m.reduced, m.reduced, 0, at.first_column - kFusedReach, columns + 8,
      columns + kFusedHalo, m.width, reduced, kRing, m.feature_row);
  // What a step does not share with the one before, which are all rows of the first, `at_once` at once.
  constexpr int kRows = kFusedHalo + kFusedTileRows;
  const int warps = static_cast<int>(blockDim.x) / 32, other_warp = warps - 1 - warp;
  int slot = 0;  // of the rings
  const auto bring = [&](int step, int shared, auto at_once) {
    constexpr int kAtOnce = decltype(at_once)::value;
    const int row = at.first_row + step * kFusedTileRows - kFusedReach + shared, rows = kRows - shared;
    pixel_rows.template bring<kAtOnce>(row, rows, slot, m.height, warp, warps);
    feature_rows.template bring<kAtOnce>(row, rows, slot, m.height, other_warp, warps);
    slot += rows;
    if (slot >= kRing) slot -= kRing;
  };
  bring(0, 0, std::integral_constant<int, kRows / 2>{});
  F::bring_weights(m, at.group, weight, bias, weights);
  commit_copies();

  // ---- what a lane has to do with ----
  const int quad = lane / 4, t = lane % 4, matrix = lane / 8, i = lane % 8;
  const int source_lane = ((quad - 2 * t + 6) & 7) * 4 + t;    // of the tap that the lane's pair needs
  const bool first_octet = t >= ((quad + 2 * t + 2) & 7) / 2;  // where the lane that it serves has its tap
  const uint32_t places = fused_places(quad / 2);
  // Of the weight: matrices (taps 0-7, channels 0-7), (8-15, 0-7), (0-7, 8-15), (8-15, 8-15).
  const Spot own_weights = weights + sub * F::kLayout.group_weight;
  const Spot tap_rows = own_weights + (matrix % 2 * 8 + i) * kFeature + matrix / 2 * 16;
  const Spot own_biases = own_weights + F::kBiases + quad * 16;
  // Of the features: matrices (even positions, channels 0-7), (even, 8-15), (odd, 0-7), (odd, 8-15). The last
  // product of an even number of octets has one octet twice.
  const auto feature_lane = [&](int octet) {
    return FusedOctets<kSteps>::at(position + octet * 8 + (i & ~1) + matrix / 2, matrix % 2);
  };
  const int first_features = feature_lane(i & 1);
  const int last_features = feature_lane(kOctets % 2 == 0 ? kOctets : 2 * (F::kProducts - 1) + (i & 1));
  // Of dy: eight channels of columns k of matrices (row b = 0, k 0-7), (0, 8-15), (1, 0-7), (1, 8-15).
  const int k_of_lane = matrix % 2 * 8 + i;
  const int column_of_lane = position + k_of_lane / 4 * 2 + k_of_lane % 2 + k_of_lane / 2 % 2 * 8;
  int pixel_lane[kOctets];
#pragma unroll
  for (int o = 0; o < kOctets; ++o) {
    pixel_lane[o] = FusedPixels<kGroups>::at(column_of_lane + o * 8, sub * 2) + matrix / 2 * m.pixel_row;
  }
  // Results: 16 positions (8 of two rows) x 32 bytes. The halves of every other four positions are swapped.
  const int result_to = (matrix / 2 * 8 + i) * 32 + ((matrix ^ i >> 2) & 1) * 16;
  const int result_from = lane / 2 * 32 + ((lane ^ lane >> 3) & 1) * 16;
  const int column = at.first_column + position + lane / 2 % 8;
  int row = at.first_row + lane / 16;
  const unsigned to_next_row = static_cast<unsigned>(m.width) * static_cast<unsigned>(m.channels);
  unsigned to = static_cast<unsigned>(row) * to_next_row + static_cast<unsigned>(column * m.channels) +
                static_cast<unsigned>((at.group + sub) * kFusedGroupChannels + lane % 2 * 8);
  dx += image * m.channels;

  int first_unit = 0;  // of the rings: pairs of rows
#pragma unroll 1
  for (int step = 0; step < at.steps; ++step) {
    wait_for_copies<0>();
    meet();
    if (step + 1 < at.steps) bring(step + 1, kFusedHalo, std::integral_constant<int, kFusedTileRows>{});
    commit_copies();
    const int unit_of_step = first_unit;
    first_unit += kPairs;
    if (first_unit >= F::kUnits) first_unit -= F::kUnits;

    if (at.group + sub < m.groups) {
      // Of position `quad` of rows 2P and 2P + 1 of an octet:
      //   [channels 0-7, 8-15][(2P: channels 2t, 2t+1), (2P + 1: the same)]
      float sums[kPairs][kOctets][2][4] = {};
#pragma unroll(F::kUnrolled)
      for (int j = 0; j < 4; ++j) {
        int slots[kPairs];  // of the rings, of rows p with b = 0
#pragma unroll
        for (int p = 0; p < kPairs; ++p) {
          const int unit = unit_of_step + j + p;
          slots[p] = (unit < F::kUnits ? unit : unit - F::kUnits) * 2;
        }
        uint32_t band[kPairs][2][2][kOctets];  // [P][b][row 2P, 2P + 1]
#pragma unroll
        for (int b = 0; b < 2; ++b) {
          const int even_row = 9 + 8 * (6 - b - 2 * j);  // of the weight; for odd positions one less
          const float4 even = load_shared<float4>(own_biases + even_row * 16);
          const float4 odd = load_shared<float4>(own_biases + (even_row - 1) * 16);
          float d[kPairs][F::kProducts][2][4];
#pragma unroll
          for (int p = 0; p < kPairs; ++p) {
#pragma unroll
            for (int n = 0; n < F::kProducts; ++n) {
              d[p][n][0][0] = even.x, d[p][n][0][1] = even.y, d[p][n][0][2] = even.z, d[p][n][0][3] = even.w;
              d[p][n][1][0] = odd.x, d[p][n][1][1] = odd.y, d[p][n][1][2] = odd.z, d[p][n][1][3] = odd.w;
            }
          }
#pragma unroll
          for (int k = 0; k < kSteps; ++k) {
            uint32_t even_taps[4], odd_taps[4];
            load_matrices<4, false>(even_taps, tap_rows + even_row * kFeature + k * 32);
            load_matrices<4, false>(odd_taps, tap_rows + (even_row - 1) * kFeature + k * 32);
#pragma unroll
            for (int p = 0; p < kPairs; ++p) {
              const Spot of_row = reduced + (slots[p] + b) * m.feature_row + k * 32;
#pragma unroll
              for (int n = 0; n < F::kProducts; ++n) {
                const bool last = n == F::kProducts - 1;
                uint32_t h[4];
                load_matrices<4, false>(h,
                                        of_row + (last ? last_features : first_features + n * 16 * kFeature));
                multiply_add(d[p][n][0], even_taps, h[0], h[1], T{});
                multiply_add(d[p][n][1], odd_taps, h[2], h[3], T{});
              }
            }
          }
#pragma unroll
          for (int p = 0; p < kPairs; ++p) {
#pragma unroll
            for (int a = 0; a < 2; ++a) {
              const auto octet = [&](int o) {
                const float (&of_pair)[2][4] = d[p][o / 2];
                return pack(of_pair[0][2 * a + o % 2], of_pair[1][2 * a + o % 2], T{});
              };
              uint32_t here = octet(0);
#pragma unroll
              for (int o = 0; o < kOctets; ++o) {
                const uint32_t next = octet(o + 1);
                band[p][b][a][o] = __shfl_sync(0xffffffffu, first_octet ? here : next, source_lane);
                here = next;
              }
            }
          }
        }
#pragma unroll
        for (int p = 0; p < kPairs; ++p) {
#pragma unroll
          for (int o = 0; o < kOctets; ++o) {
            const uint32_t taps[4] = {band[p][0][0][o], band[p][0][1][o], band[p][1][0][o], band[p][1][1][o]};
#pragma unroll
            for (int c = 0; c < 2; ++c) {
              uint32_t source[4];
              load_matrices<4, true>(source, pixels + slots[p] * m.pixel_row + (pixel_lane[o] ^ c * 16));
              multiply_add_sparse(sums[p][o][c], taps, source, places, T{});
            }
          }
        }
      }

#pragma unroll
      for (int p = 0; p < kPairs; ++p) {
#pragma unroll
        for (int o = 0; o < kOctets; ++o) {
          const float (&v)[2][4] = sums[p][o];
          store_matrices(results + o * 512 + result_to, pack(v[0][0], v[0][1], T{}),
                         pack(v[1][0], v[1][1], T{}), pack(v[0][2], v[0][3], T{}),
                         pack(v[1][2], v[1][3], T{}));
        }
        __syncwarp();
#pragma unroll
        for (int o = 0; o < kOctets; ++o) {
          if (column + o * 8 < m.width && row + 2 * p < at.end_row) {
            store_global(dx + to + static_cast<unsigned>(2 * p) * to_next_row +
                             static_cast<unsigned>(o * 8 * m.channels),
                         load_shared<uint4>(results + o * 512 + result_from));
          }
        }
        __syncwarp();
      }
    }
    row += kFusedTileRows;
    to += kFusedTileRows * to_next_row;
  }
  wait_for_copies<0>();  // nothing is left to come
}

}  // namespace involution
