// The transposed involution of float16 and bfloat16: x[c, q] = sum_k w[k, o] * y[c, o], q = o*stride -
// padding + k.
//
// The march goes down the rows of y and w, so that each is brought once: row o adds to the KH rows
// q = o*stride - padding + kh of x, whose sums stay in registers. After the step every sum moves up by
// `stride` rows, without an instruction where the compiler knows the height, and `stride` rows are finished.
// A warp owns a run of 8*S columns of x and, S = 1, two units of channels, S = 2, one: 8 columns of either
// residue.
//
// For each row of the kernel, unit and 8 columns: two LDS of two bytes, two PRMT and one HMMA; one LDSM
// serves all rows of the kernel.
#pragma once

#include "band.cuh"

namespace involution {

// KH: rows of the kernel, where the compiler knows them, and then the stride of the rows is S as well; 0: up
// to 7 rows and any stride.
template <typename T, int KW, int KH, int S, bool kChannelsLast>
__device__ __forceinline__ void band_transpose(const March& m, const Steps& steps) {
  constexpr int kUnit = KH > 0 ? 16 : 8, kUnits = 2 / S;
  constexpr int kHeight = KH > 0 ? KH : 7;
  const int lane = threadIdx.x % 32;
  const BandWarp<kUnits, kUnit> own(m, uniform(threadIdx.x / 32));
  const SourceLane<kChannelsLast, kUnit> source(m.source_pitch, lane);
  BandLane<2> band[S];
#pragma unroll
  for (int e = 0; e < S; ++e) {
    band[e] =
        BandLane<2>::template transposed<KW, S>(m.weight_pitch, m.phase, m.weight_phase, m.residue + e, lane);
  }
  const BandResults<T, kUnit> results(m.other_pitch, m.result.piece_columns == 0, S, lane);

  const Spot shared = shared_memory();
  const Spot pixels = shared + m.source.base + own.run * 8 * m.source_pitch.column + source.own +
                      own.channel * m.source_pitch.channel;
  const int to_next_unit = kChannelsLast ? kUnit * 2 : kUnit * m.source_pitch.channel;
  const Spot taps = shared + m.second.base + own.run * 8 * m.weight_pitch.column;
  const Spot out =
      shared + m.result.base + own.run * 8 * S * m.other_pitch.column + own.channel * m.other_pitch.channel;
  const int source_ring = m.source.rows * m.source.row_pitch;
  const int taps_ring = m.second.rows * m.second.row_pitch;
  const int stride = KH > 0 ? S : m.stride[1];

  float sums[kHeight][S][kUnits][4] = {};
  int row = 0, slot = 0;
#pragma unroll 1
  for (int step = 0; step < steps.count; ++step) {
    meet();
    if (const int o = steps.source_row + step; o < m.output[1]) {
      for (int kd = 0; kd < m.kernel[0]; ++kd) {
        uint32_t a[kUnits][4];
#pragma unroll
        for (int i = 0; i < kUnits; ++i) {
          load_source<kChannelsLast, kUnit>(a[i],
                                            pixels + row + kd * m.source.slice_pitch + i * to_next_unit);
        }
        Spot kernel_row = taps + slot + kd * m.second.slice_pitch;
        uint32_t low[2][S][kUnits], high[2][S][kUnits];
        const auto fetch = [&](int into) {
#pragma unroll
          for (int e = 0; e < S; ++e) {
#pragma unroll
            for (int i = 0; i < kUnits; ++i) {
              low[into][e][i] = load_shared<uint16_t>(kernel_row + own.group[i] + band[e].low);
              high[into][e][i] = load_shared<uint16_t>(kernel_row + own.group[i] + band[e].high);
            }
          }
          kernel_row += m.weight_pitch.kernel_row;
        };
        const auto multiply = [&](int from, float (&to)[S][kUnits][4]) {
#pragma unroll
          for (int e = 0; e < S; ++e) {
#pragma unroll
            for (int i = 0; i < kUnits; ++i) {
              multiply_add(to[e][i], a[i], permute(low[from][e][i], high[from][e][i], band[e].select[0]),
                           permute(low[from][e][i], high[from][e][i], band[e].select[1]), T{});
            }
          }
        };
        if constexpr (KH > 0) {
          fetch(0);
#pragma unroll
          for (int kh = 0; kh < KH; ++kh) {
            if (kh + 1 < KH) fetch((kh + 1) % 2);
            multiply(kh % 2, sums[kh]);
          }
        } else {
#pragma unroll
          for (int kh = 0; kh < kHeight; ++kh) {
            if (kh < m.kernel[1]) {
              fetch(0);
              multiply(0, sums[kh]);
            }
          }
        }
      }
    }
    row = next_in_ring(row, m.source.row_pitch, source_ring);
    slot = next_in_ring(slot, m.second.row_pitch, taps_ring);

    // The finished rows leave, the others move up.
    Spot to = out + (step & 1) * stride * m.result.row_pitch;
    const auto finish = [&](const float (&done)[S][kUnits][4]) {
#pragma unroll
      for (int e = 0; e < S; ++e) {
#pragma unroll
        for (int i = 0; i < kUnits; ++i) {
          if (!own.live[i]) continue;
          results.store(to + e * m.other_pitch.column + i * kUnit * m.other_pitch.channel, done[e][i]);
        }
      }
      to += m.result.row_pitch;
    };
    constexpr int kMoves = KH > 0 ? S : 1;
#pragma unroll 1
    for (int moved = 0; moved < stride; moved += kMoves) {
#pragma unroll
      for (int i = 0; i < kMoves; ++i) finish(sums[i]);
#pragma unroll
      for (int kh = 0; kh < kHeight; ++kh) {
#pragma unroll
        for (int e = 0; e < S; ++e) {
#pragma unroll
          for (int i = 0; i < kUnits; ++i) {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
              sums[kh][e][i][j] = kh + kMoves < kHeight ? sums[kh + kMoves][e][i][j] : 0.f;
            }
          }
        }
      }
    }
  }
  meet();
}

}  // namespace involution
