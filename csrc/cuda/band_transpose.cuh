// The transposed involution of float16 and bfloat16.
//
//   x[c, q] = sum over k, o with q = o*stride - padding + k of w[k, o] * y[c, o]
//
// The march goes down the rows of y and w, so that each is brought once: row o adds to the KH rows
// q = o*stride - padding + kh of x, whose sums stay in registers. After the step every sum moves up by
// `stride` rows, without an instruction where the compiler knows the height, and `stride` rows are finished.
// A warp owns a run of columns of x and some units of channels:
//
//   S = 1   8 columns, two units
//   S = 2   8 columns of either residue, one unit
//
// For each row of the kernel, unit and 8 columns: two LDS of two bytes, two PRMT and one HMMA; one LDSM
// serves all rows of the kernel. In all: 21 a position and group at K = 7 on 64x56x56, 36 on 512x7x7
// (band_forward.cuh).
#pragma once

#include "band.cuh"

namespace involution {

// KH: rows of the kernel, where the compiler knows them, and then the stride of the rows is S as well; 0: up
// to 7 rows and any stride.
template <typename T, int KW, int KH, int S, bool kChannelsLast>
__device__ __forceinline__ void band_transpose(const March& m, const Place& at, const Steps& steps) {
  constexpr int kUnit = KH > 0 ? 16 : 8, kUnits = 2 / S;
  constexpr int kHeight = KH > 0 ? KH : 7;
  const int lane = threadIdx.x % 32;
  const BandWarp<kUnits, kUnit> own(m, uniform(threadIdx.x / 32));
  const SourceLane<kChannelsLast, kUnit> source(m.source_pitch, lane);
  const int first_column =
      m.source.column_origin + m.phase + at.strip * m.source.column_step + own.run * kBandRun;
  BandLane<2> band[S];
  unsigned phase[S];
#pragma unroll
  for (int e = 0; e < S; ++e) {
    band[e] = BandLane<2>::template transposed<KW, S>(m.weight_pitch, m.phase, m.weight_phase, m.residue + e,
                                                      first_column, m.output[2], lane);
    phase[e] = slot_phase<true>(m, at, band[e].column);
  }
  const int left = m.input[2] - (at.strip * m.runs + own.run) * kBandRun * S;
  const BandResults<T, kUnits, kUnit, S> results(m.other_pitch, m.result_channels_last, left, own.last_unit,
                                                 lane);

  const Spot shared = shared_memory();
  const Spot pixels = shared + m.source.base + own.run * 8 * m.source_pitch.column + source.own +
                      own.channel * m.source_pitch.channel;
  // A unit that does not exist reads what the first reads: behind it there may be what is being written.
  const int of_unit = kChannelsLast ? kUnit * 2 : kUnit * m.source_pitch.channel;
  const int to_next_unit = own.last_unit ? of_unit : 0;
  const Spot taps = shared + m.second.base + own.run * 8 * m.weight_pitch.column + own.group;
  const Spot out =
      shared + m.result.base + own.run * 8 * S * m.other_pitch.column + own.channel * m.other_pitch.channel;
  const int source_ring = m.source.rows * m.source.row_pitch;
  const int taps_ring = m.second.rows * m.second.row_pitch;
  const int stride = KH > 0 ? S : m.stride[1];

  float sums[kHeight][S][kUnits][4] = {};
  float done[KH > 0 ? S : 1][S][kUnits][4];  // of the rows that a row of y finishes
  int row = 0, slot = 0;

  // Adds a slice of a row of y. `multiply(kh, fragments, taps)` says to which sums a row of the kernel adds.
  const auto add_slice = [&](auto form, int kd, Spot weights, const int (&low_at)[S], const int (&high_at)[S],
                             const auto& multiply) {
    using F = decltype(form);
    uint32_t a[kUnits][4];
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      load_source<kChannelsLast, kUnit>(a[i], pixels + row + kd * m.source.slice_pitch + i * to_next_unit);
    }
    const int kernel_row = F::kTogether ? KW * static_cast<int>(sizeof(T)) : m.weight_pitch.kernel_row;
    Spot low_from[S], high_from[S];
#pragma unroll
    for (int e = 0; e < S; ++e) {
      low_from[e] = weights + kd * m.second.slice_pitch + low_at[e];
      high_from[e] = weights + kd * m.second.slice_pitch + high_at[e];
    }
    uint32_t low[2][S][kUnits], high[2][S][kUnits];
    const auto fetch = [&](int into, int kh) {
#pragma unroll
      for (int e = 0; e < S; ++e) {
#pragma unroll
        for (int i = 0; i < kUnits; ++i) {
          low[into][e][i] = load_shared<uint16_t>(low_from[e] + i * own.to_next_group + kh * kernel_row);
          high[into][e][i] = load_shared<uint16_t>(high_from[e] + i * own.to_next_group + kh * kernel_row);
        }
      }
    };
    if constexpr (KH > 0) {
      fetch(0, 0);
#pragma unroll
      for (int kh = 0; kh < KH; ++kh) {
        if (kh + 1 < KH) fetch((kh + 1) % 2, kh + 1);
        multiply(kh, a, low[kh % 2], high[kh % 2]);
      }
    } else {
#pragma unroll
      for (int kh = 0; kh < kHeight; ++kh) {
        if (kh < m.kernel[1]) {
          fetch(0, kh);
          multiply(kh, a, low[0], high[0]);
        }
      }
    }
  };
  const auto add_to = [&](float (&to)[S][kUnits][4], const float (&from)[S][kUnits][4],
                          const uint32_t (&a)[kUnits][4], const uint32_t (&low)[S][kUnits],
                          const uint32_t (&high)[S][kUnits]) {
#pragma unroll
    for (int e = 0; e < S; ++e) {
#pragma unroll
      for (int i = 0; i < kUnits; ++i) {
        float sum[4] = {from[e][i][0], from[e][i][1], from[e][i][2], from[e][i][3]};
        multiply_add(sum, a[i], permute(low[e][i], high[e][i], band[e].select[0]),
                     permute(low[e][i], high[e][i], band[e].select[1]), T{});
#pragma unroll
        for (int j = 0; j < 4; ++j) to[e][i][j] = sum[j];
      }
    }
  };
  const auto set = [&](float (&to)[S][kUnits][4], const auto& value) {
#pragma unroll
    for (int e = 0; e < S; ++e) {
#pragma unroll
      for (int i = 0; i < kUnits; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) to[e][i][j] = value(e, i, j);
      }
    }
  };
  // Every sum moves up by kMoves rows, and zeros come in below. The first of them are done.
  constexpr int kMoves = KH > 0 ? S : 1;
  const auto place_of_sum = [&](int kh) -> float (&)[S][kUnits][4] {
    return kh < kMoves ? done[kh < kMoves ? kh : 0] : sums[kh < kMoves ? 0 : kh - kMoves];
  };
  const auto clear_last = [&] {
#pragma unroll
    for (int kh = kHeight - kMoves; kh < kHeight; ++kh) set(sums[kh], [](int, int, int) { return 0.f; });
  };
  const auto move_up = [&] {
#pragma unroll
    for (int kh = 0; kh < kHeight; ++kh) {
      set(place_of_sum(kh), [&](int e, int i, int j) { return sums[kh][e][i][j]; });
    }
    clear_last();
  };

  // Adds a row of y; with KH the sums have moved up then.
  const auto add_row = [&](auto form, int o, Spot weights) {
    int low_at[S], high_at[S];
#pragma unroll
    for (int e = 0; e < S; ++e) {
      low_at[e] = band[e].low + phase_in_row(m.second, phase[e], o);
      high_at[e] =
          band[e].high + phase_in_row(m.second, phase[e] + static_cast<unsigned>(m.second.segment_stride), o);
    }
    // The one slice of an image moves the sums as it adds to them, without an instruction.
    if constexpr (KH > 0 && decltype(form)::kFlat) {
      add_slice(form, 0, weights, low_at, high_at,
                [&](int kh, const auto& a, const auto& low, const auto& high) {
                  add_to(place_of_sum(kh), sums[kh], a, low, high);
                });
      clear_last();
    } else {
#pragma unroll 1
      for (int kd = 0; kd < m.kernel[0]; ++kd) {
        add_slice(form, kd, weights, low_at, high_at,
                  [&](int kh, const auto& a, const auto& low, const auto& high) {
                    add_to(sums[kh], sums[kh], a, low, high);
                  });
      }
      if constexpr (KH > 0) move_up();
    }
    row = next_in_ring(row, m.source.row_pitch, source_ring);
  };
  // The finished rows leave.
  const auto finish_rows = [&](Spot to) {
#pragma unroll 1
    for (int moved = 0; moved < stride; moved += kMoves) {
      if constexpr (KH == 0) move_up();
#pragma unroll
      for (int moves = 0; moves < kMoves; ++moves) {
#pragma unroll
        for (int e = 0; e < S; ++e) {
          results.store(to + e * m.other_pitch.column, done[moves][e]);
        }
        to += m.result.row_pitch;
      }
    }
  };
  walk_form<T>(m, [&](auto form) {
#pragma unroll 1
    for (int step = 0; step < steps.count; ++step) {
      meet();
      Spot to = out + (step & 1) * m.result.next * m.result.row_pitch;
      const int first = steps.source_row + step * m.step_rows;
      const int inside = smaller(m.step_rows, m.output[1] - first);
      int i = 0;
#pragma unroll 1
      for (; i < inside; ++i) {
        add_row(form, first + i, taps + slot + i * m.weight_pitch.row);
        finish_rows(to);
        to += stride * m.result.row_pitch;
      }
      // Behind the map: in a loop of its own, so that the one above needs no copies of the sums.
#pragma unroll 1
      for (; i < m.step_rows; ++i) {
        if constexpr (KH > 0) move_up();
        row = next_in_ring(row, m.source.row_pitch, source_ring);
        finish_rows(to);
        to += stride * m.result.row_pitch;
      }
      slot = next_in_ring(slot, m.second.next * m.second.row_pitch, taps_ring);
    }
  });
  meet();
}

}  // namespace involution
