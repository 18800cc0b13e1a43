// Involution of float16 and bfloat16.
//
//   y[c, o] = sum over k of w[k, o] * x[c, o*stride - padding + k]
//
// A warp owns a run of 8 positions and two units of 16 channels (8 in the form for any shape). A step is one
// row of y. Instructions for each row of the kernel and unit, while the operands of the next kernel row are
// on their way:
//
//   S = 1   2 LDS of two bytes, 2 PRMT, 1 HMMA, 1 LDSM
//   S = 2   2 LDS of two bytes, 3 PRMT, 2 HMMA, 2 LDSM
//
// At K = 7 a whole block executes 17 a position and group of 16 channels on a map of 64x56x56, copies and
// all; 31 on one of 512x7x7 (python -m benchmarks.instructions; channels_last, as in the following files).
#pragma once

#include "band.cuh"

namespace involution {

// KH: rows of the kernel, where the compiler knows them; 0: any number.
template <typename T, int KW, int KH, int S, bool kChannelsLast>
__device__ __forceinline__ void band_forward(const March& m, const Place& at, const Steps& steps) {
  constexpr int kUnit = KH > 0 ? 16 : 8, kUnits = 2;
  constexpr int kFragments = S + 1;
  const int lane = threadIdx.x % 32;
  const BandWarp<kUnits, kUnit> own(m, uniform(threadIdx.x / 32));
  const SourceLane<kChannelsLast, kUnit> source(m.source_pitch, lane);
  const auto band = BandLane<kFragments>::template forward<KW, S>(m.weight_pitch, m.phase, lane);
  const int left = m.output[2] - at.strip * m.runs * kBandRun - own.run * kBandRun;
  const BandResults<T, kUnits, kUnit, 1> results(m.other_pitch, m.result_channels_last, left, own.last_unit,
                                                 lane);

  const unsigned phase = slot_phase<false>(m, at, (at.strip * m.runs + own.run) * kBandRun + lane / 4);

  const Spot shared = shared_memory();
  const int run = own.run * 8;
  const Spot pixels = shared + m.source.base + run * S * m.source_pitch.column + source.own +
                      own.channel * m.source_pitch.channel;
  // A unit that does not exist reads what the first reads: behind it there may be what is being written.
  const int of_unit = kChannelsLast ? kUnit * 2 : kUnit * m.source_pitch.channel;
  const int to_next_unit = own.last_unit ? of_unit : 0;
  const int rest = source.rest - source.own;
  const Spot taps = shared + m.second.base + run * m.weight_pitch.column + own.group;
  const Spot out = shared + m.result.base + run * m.other_pitch.column + own.channel * m.other_pitch.channel;
  const int to_next_step = m.source.next * m.source.row_pitch;
  const int to_next_row = m.stride[1] * m.source.row_pitch;
  const int source_ring = m.source.rows * m.source.row_pitch;
  const int taps_ring = m.second.rows * m.second.row_pitch;
  const int height = KH > 0 ? KH : m.kernel[1];

  int first_row = 0, slot = 0;
  const auto compute_row = [&](auto form, int step, int row_of_step, Spot to) {
    using F = decltype(form);
    const int slices = F::kFlat ? 1 : m.kernel[0];
    const int kernel_row = F::kTogether ? KW * static_cast<int>(sizeof(T)) : m.weight_pitch.kernel_row;
    int first = first_row + row_of_step * to_next_row;
    if (first >= source_ring) first -= source_ring;
    const Spot row_taps = taps + slot + row_of_step * m.weight_pitch.row +
                          phase_in_row(m.second, phase, steps.second_row + step * m.step_rows + row_of_step);
    float sums[S][kUnits][4] = {};  // of columns 0 to 15, and 16 to 23
#pragma unroll 1
    for (int kd = 0; kd < slices; ++kd) {
      int row = first;
      Spot x[kUnits], low_at[kUnits], high_at[kUnits];
#pragma unroll
      for (int i = 0; i < kUnits; ++i) {
        x[i] = pixels + kd * m.source.slice_pitch + i * to_next_unit;
        low_at[i] = row_taps + kd * m.weight_pitch.kernel_slice + i * own.to_next_group + band.low;
        high_at[i] = low_at[i] + (band.high - band.low);
      }
      uint32_t a[2][kUnits][4], low[2][kUnits], high[2][kUnits];
      [[maybe_unused]] uint32_t b[2][kUnits][2];  // columns 16 to 23
      const auto fetch = [&](int into, int kh) {
#pragma unroll
        for (int i = 0; i < kUnits; ++i) {
          low[into][i] = load_shared<uint16_t>(low_at[i] + kh * kernel_row);
          high[into][i] = load_shared<uint16_t>(high_at[i] + kh * kernel_row);
          load_source<kChannelsLast, kUnit>(a[into][i], x[i] + row);
          if constexpr (S == 2) load_source_rest<kChannelsLast, kUnit>(b[into][i], x[i] + row + rest);
        }
        row = next_in_ring(row, m.source.row_pitch, source_ring);
      };
      const auto multiply = [&](int from) {
#pragma unroll
        for (int i = 0; i < kUnits; ++i) {
          multiply_add(sums[0][i], a[from][i], permute(low[from][i], high[from][i], band.select[0]),
                       permute(low[from][i], high[from][i], band.select[1]), T{});
        }
        if constexpr (S == 2) {
#pragma unroll
          for (int i = 0; i < kUnits; ++i) {
            multiply_add(sums[1][i], b[from][i],
                         permute(low[from][i], high[from][i], band.select[kFragments - 1]), T{});
          }
        }
      };
      if constexpr (KH > 0) {
        fetch(0, 0);
#pragma unroll
        for (int kh = 0; kh < KH; ++kh) {
          if (kh + 1 < KH) fetch((kh + 1) % 2, kh + 1);
          multiply(kh % 2);
        }
      } else {
#pragma unroll 1
        for (int kh = 0; kh < height; ++kh) {
          fetch(0, kh);
          multiply(0);
        }
      }
    }
    if constexpr (S == 2) {
#pragma unroll
      for (int i = 0; i < kUnits; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[0][i][j] += sums[1][i][j];
      }
    }
    results.store(to, sums[0]);
  };
  walk_form<T>(m, [&](auto form) {
#pragma unroll 1
    for (int step = 0; step < steps.count; ++step) {
      meet();
      const Spot to = out + (step & 1) * m.result.next * m.result.row_pitch;
#pragma unroll 1
      for (int row = own.row; row < m.step_rows; row += m.warp_rows) {
        compute_row(form, step, row, to + row * m.other_pitch.row);
      }
      first_row += to_next_step;
      if (first_row >= source_ring) first_row -= source_ring;
      slot = next_in_ring(slot, m.second.next * m.second.row_pitch, taps_ring);
    }
  });
  meet();
}

}  // namespace involution
