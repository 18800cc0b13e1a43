// The gradients of the fused layer's weight and bias, for which no gradient of a kernel is ever in memory.
//
//   dk[p, g, kh, kw] = sum_c dy[p, c] * x[p + (kh, kw) - 3, c] over the 16 channels of group g   (rounded to T)
//   dweight[tap, r]  = sum over all p of dk[p, tap] * features[p, r]
//   dbias[tap]       = sum over all p of dk[p, tap]
//
// A block owns a pack of groups, a slice of the reduced channels, a strip of columns, a chunk of rows and
// some images, and marches down by 4 rows a step, through one image after another. Rows of x with a halo of
// 3, of dy and of the features come by asynchronous copies into rings, a step ahead, from two warps that do
// nothing else. Each other warp owns one group and a tile of 4 rows and 8 columns, and its sums over all
// steps stay in registers. For each row kh of the kernel:
//
//   1. dk     D[16 columns of x x 8 positions] = x (16 x 16 channels) * dy^T, for each row of the tile: column j
//             from 3 left of the tile and position n are tap kw = j - n. Of columns j and j + 8 exactly one is a
//             tap, or neither (kw = 7): one select.
//   2. B      Pairs along K of the second product are two rows of the tile at ONE column, so that a lane's two
//             registers are positions 2t and 2t + 1 and each has one tap: one shuffle each brings tap n to the
//             lanes of quad n.
//   3. sums   D[16 reduced channels x 8 taps] += features^T (16 x 16 positions) * dk.
//             D[16 kernel rows x 8 taps]      += (row kh is ones, the others are zeros) * dk, which is the bias's.
//
// Then the warps that share groups add their sums up in shared memory, in order, and the block writes its
// part; fused_parts_kernel adds the parts, in order.
//
// Warp instructions of 32 positions and a group at R = 16: 56 HMMA, 14 LDSM, 28 SHFL, 28 F2FP.
// A whole block executes 13 a position on a map of 64x56x56 (python -m benchmarks.instructions).
//
// A NaN or infinity of dk makes NaN of the bias's sums of its column kw, in all kernel rows.
#pragma once

#include "fused_backward_rows.cuh"

namespace involution {

template <int kSteps>
struct FusedWeightGradient {
  static constexpr FusedBackwardBlock kBlock = fused_backward_block(FusedGradient::kWeight, kSteps);
  static constexpr FusedBackwardLayout kLayout = fused_backward_layout(FusedGradient::kWeight, kSteps);
  static constexpr int kReduced = kSteps * 16;     // sums of a tap; the bias's is behind them
  static constexpr int kTap = (kReduced + 1) * 4;  // their bytes
};

__device__ __forceinline__ uint32_t pair_of_ones(Float16) { return 0x3c003c00; }
__device__ __forceinline__ uint32_t pair_of_ones(BFloat16) { return 0x3f803f80; }

// `parts`: for each strip, chunk and set of images (groups * 49, reduced + 1), the bias's last.
template <typename T, int kSteps>
__global__ void __launch_bounds__(fused_backward_block(FusedGradient::kWeight, kSteps).threads())
    fused_weight_gradient_kernel(const __grid_constant__ FusedBackwardMarch m, const T* __restrict__ dy,
                                 const T* __restrict__ x, const T* __restrict__ features,
                                 float* __restrict__ parts) {
  using F = FusedWeightGradient<kSteps>;
  constexpr int kSize = kFusedBackwardSize, kRows = kFusedTileRows, kGroups = F::kBlock.groups;
  constexpr int kFeature = F::kLayout.feature, kRing = F::kLayout.ring;
  const int threads = static_cast<int>(blockDim.x), lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = uniform(static_cast<int>(threadIdx.x) / 32);
  const int tile = warp / kGroups, sub = warp - tile * kGroups;
  const int columns = m.runs * F::kBlock.tile_columns, position = tile * F::kBlock.tile_columns;
  const FusedBackwardPlace at = fused_backward_place(m, kGroups, F::kReduced, columns);
  const int64_t map = static_cast<int64_t>(m.height) * m.width;

  const Spot pixels = shared_memory();
  const Spot gradients = pixels + kRing * m.pixel_row;
  const Spot reduced = gradients + 2 * kRows * m.gradient_row;

  using Columns = FusedNeighbours<kGroups>;
  FusedRows<Columns> pixel_rows(x + at.image * map * m.channels, m.channels, at.group * kFusedGroupChannels,
                                at.first_column - kFusedReach, columns + 8, columns + kFusedHalo, m.width,
                                pixels, kRing, m.pixel_row);
  FusedRows<Columns> gradient_rows(dy + at.image * map * m.channels, m.channels,
                                   at.group * kFusedGroupChannels, at.first_column, columns, columns, m.width,
                                   gradients, 2 * kRows, m.gradient_row);
  FusedRows<FusedFeatures<kSteps>> feature_rows(features + at.image * map * m.reduced, m.reduced, at.reduced,
                                                at.first_column, columns, columns, m.width, reduced,
                                                2 * kRows, m.feature_row);
  // What a step does not share with the one before: all that it meets, if that is of another image. The warp
  // is one of so many.
  int next_step = 0, next_slot = 0;  // of the image, and of the ring of x
  const auto bring = [&](int step, int of_warps, int warps) {
    const int row = at.first_row + next_step * kRows, slot = step % 2 * kRows;
    gradient_rows.template bring<kRows>(row, kRows, slot, m.height, of_warps, warps);
    feature_rows.template bring<kRows>(row, kRows, slot, m.height, of_warps, warps);
    constexpr int kAll = kFusedHalo + kRows;
    if (next_step == 0) {
      pixel_rows.template bring<kAll / 2>(row - kFusedReach, kAll, next_slot, m.height, of_warps, warps);
      next_slot += kAll;
    } else {
      pixel_rows.template bring<kRows>(row - kFusedReach + kFusedHalo, kRows, next_slot, m.height, of_warps,
                                       warps);
      next_slot += kRows;
    }
    if (next_slot >= kRing) next_slot -= kRing;
    if (++next_step < at.steps) return;
    next_step = 0;
    pixel_rows.advance(map * m.channels * 2);
    gradient_rows.advance(map * m.channels * 2);
    feature_rows.advance(map * m.reduced * 2);
  };
  // At first all warps bring what there is.
  bring(0, warp, threads / 32);
  commit_copies();
  wait_for_copies<0>();

  // ---- what a lane has to do with ----
  const int quad = lane / 4, t = lane % 4, matrix = lane / 8, i = lane % 8;
  const bool first_even = quad >= 2 * t, first_odd = quad >= 2 * t + 1;  // of columns j and j + 8
  const int even_source = ((quad + 2 * t) & 7) * 4 + t, odd_source = ((quad + 2 * t + 1) & 7) * 4 + t;
  // Of x: matrices (columns 0-7, channels 0-7), (8-15, 0-7), (0-7, 8-15), (8-15, 8-15).
  const int pixel_lane = Columns::at(position + matrix % 2 * 8 + i, sub * 2 + matrix / 2);
  // Of dy: (row y, channels 0-7), (y, 8-15), (y + 1, 0-7), (y + 1, 8-15).
  const int gradient_lane = matrix / 2 * m.gradient_row + Columns::at(position + i, sub * 2 + matrix % 2);
  // Of the features: (even positions of rows y and y + 1 by turns, channels 0-7), (even, 8-15), (odd, 0-7),
  // (odd, 8-15).
  const int feature_lane =
      i % 2 * m.feature_row + (position + (i & ~1) + matrix / 2) * kFeature + matrix % 2 * 16;
  // Two zeros, and twice the same quad, that the compiler must not know to be equal: it would copy one of two
  // equal registers of a product at every use.
  const uint32_t zero = static_cast<unsigned>(m.batch) >> 31,
                 other_zero = static_cast<unsigned>(m.height) >> 31;
  const int other_quad = quad + static_cast<int>(zero);

  // Of reduced channels `quad` and quad + 8 of 16: taps 2t and 2t + 1; of the bias: kernel row `quad`.
  float sums[kSize][kSteps][4] = {}, bias_sums[4] = {};
  const int steps = at.steps * at.images, workers = m.runs * kGroups;
  if (warp >= workers) {
    bring_steps(steps, [&](int step) { bring(step, warp - workers, F::kBlock.copying); });
  }
  int first_slot = 0, of_image = 0;  // of the ring of x, and which step of the image it is
#pragma unroll 1
  for (int step = 0; step < steps && warp < workers; ++step) {
    meet();
    int slot_of_x = first_slot;
    const bool last = ++of_image == at.steps;
    if (last) of_image = 0;
    first_slot += last ? kFusedHalo + kRows : kRows;
    if (first_slot >= kRing) first_slot -= kRing;

    uint32_t of_dy[kRows / 2][4], of_features[kRows / 2][kSteps][4], of_x[4][4];
#pragma unroll
    for (int q = 0; q < kRows / 2; ++q) {
      const int slot = step % 2 * kRows + 2 * q;
      load_matrices<4, false>(of_dy[q], gradients + slot * m.gradient_row + gradient_lane);
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
        load_matrices<4, true>(of_features[q][k], reduced + slot * m.feature_row + feature_lane + k * 32);
      }
    }
    const auto fetch = [&](int r) {
      load_matrices<4, false>(of_x[r % 4], pixels + slot_of_x * m.pixel_row + pixel_lane);
      slot_of_x = slot_of_x + 1 == kRing ? 0 : slot_of_x + 1;
    };
#pragma unroll
    for (int r = 0; r < kRows - 1; ++r) fetch(r);
#pragma unroll
    for (int kh = 0; kh < kSize; ++kh) {
      fetch(kh + kRows - 1);
      float even[kRows], odd[kRows];
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
        float d[4] = {};
        multiply_add(d, of_x[(kh + row) % 4], of_dy[row / 2][row % 2 * 2], of_dy[row / 2][row % 2 * 2 + 1],
                     T{});
        even[row] = first_even ? d[0] : d[2];
        odd[row] = first_odd ? d[1] : d[3];
      }
      const uint32_t ones[4] = {quad == kh ? pair_of_ones(T{}) : 0, zero,
                                other_quad == kh ? pair_of_ones(T{}) : 0, other_zero};
#pragma unroll
      for (int q = 0; q < kRows / 2; ++q) {
        const uint32_t even_taps = pack(even[2 * q], even[2 * q + 1], T{});
        const uint32_t odd_taps = pack(odd[2 * q], odd[2 * q + 1], T{});
        const uint32_t b0 = __shfl_sync(0xffffffffu, even_taps, even_source);
        const uint32_t b1 = __shfl_sync(0xffffffffu, odd_taps, odd_source);
#pragma unroll
        for (int k = 0; k < kSteps; ++k) multiply_add(sums[kh][k], of_features[q][k], b0, b1, T{});
        multiply_add(bias_sums, ones, b0, b1, T{});
      }
    }
  }
  meet();

  // The sums of all warps take the place of what they read.
  const Spot all = shared_memory();
  if (warp < workers) {
#pragma unroll
    for (int kh = 0; kh < kSize; ++kh) {
      const Spot own = all + warp * F::kLayout.warp + (kh * 8 + 2 * t) * F::kTap;
#pragma unroll
      for (int n = 0; n < kSteps; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          store_shared(own + e % 2 * F::kTap + (n * 16 + e / 2 * 8 + quad) * 4, sums[kh][n][e]);
        }
      }
      if (quad == kh) {
        store_shared(own + F::kReduced * 4, bias_sums[0]);
        store_shared(own + F::kTap + F::kReduced * 4, bias_sums[1]);
      }
    }
  }
  meet();
  // A lane has one reduced channel of every so many taps.
  constexpr int kTaps = kSize * kSize;
  const int taps = smaller(m.groups - at.group, kGroups) * kTaps, numbers = m.reduced + 1;
  const int r = static_cast<int>(threadIdx.x) % F::kReduced;
  const auto sum_of_runs = [&](int tap, int place) {
    const int g = tap / kTaps, of_group = tap - g * kTaps;
    Spot from = all + g * F::kLayout.warp + (of_group / kSize * 8 + of_group % kSize) * F::kTap + place * 4;
    float sum = 0;
#pragma unroll 1
    for (int run = 0; run < m.runs; ++run, from += kGroups * F::kLayout.warp) sum += load_shared<float>(from);
    return sum;
  };
  parts += (at.part * m.groups + at.group) * kTaps * numbers;
  if (at.reduced + r < m.reduced) {
#pragma unroll 1
    for (int tap = static_cast<int>(threadIdx.x) / F::kReduced; tap < taps; tap += threads / F::kReduced) {
      parts[tap * numbers + at.reduced + r] = sum_of_runs(tap, r);
    }
  }
  if (at.reduced > 0) return;  // the first slice has the bias
#pragma unroll 1
  for (int tap = static_cast<int>(threadIdx.x); tap < taps; tap += threads) {
    parts[tap * numbers + m.reduced] = sum_of_runs(tap, F::kReduced);
  }
}

// The sum of `count` parts of (rows, reduced + 1), rounded to T: 32 numbers a block, of which each warp adds
// up every kWarps-th part. Where there is no dweight or no dbias, it is not asked for.
template <typename T, int kWarps>
__global__ void __launch_bounds__(kWarps * 32)
    fused_parts_kernel(const float* __restrict__ parts, int64_t count, int rows, int reduced,
                       T* __restrict__ dweight, T* __restrict__ dbias) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t numbers = static_cast<int64_t>(rows) * (reduced + 1);
  const int64_t number = static_cast<int64_t>(blockIdx.x) * 32 + lane;
  float sum = 0;
  if (number < numbers) {
#pragma unroll 4
    for (int64_t part = warp; part < count; part += kWarps) sum += parts[part * numbers + number];
  }
  const Spot sums = shared_memory() + lane * 4;
  store_shared(sums + warp * 128, sum);
  meet();
  if (warp > 0 || number >= numbers) return;
#pragma unroll
  for (int other = 1; other < kWarps; ++other) sum += load_shared<float>(sums + other * 128);
  const auto row = static_cast<int>(number / (reduced + 1)), r = static_cast<int>(number % (reduced + 1));
  if (r < reduced) {
    if (dweight != nullptr) dweight[static_cast<int64_t>(row) * reduced + r] = narrowed<T>(sum);
  } else if (dbias != nullptr) {
    dbias[row] = narrowed<T>(sum);
  }
}

}  // namespace involution
