// Local correlation of float16 and bfloat16.
//
//   w[k, o] = sum over c of y[c, o] * x[c, o*stride - padding + k]
//
// A warp owns a run of 8 positions n and two groups. For each row of the kernel and 16 channels, it makes one
// product D of 16 source columns j and 8 positions; with S = 2 one more, of the 8 columns behind them.
//
//   D[j][n] is tap j - phase - S*n
//
// Of the two or three sums that a lane holds for a position, in rows 8 apart, at most one is a tap, always
// the same. It goes by a store of two bytes to a row of taps in shared memory.
//
// Instructions for each row of the kernel and group of 16 channels, where y's fragments are loaded once:
//
//   S = 1   1 LDSM, 1 HMMA, 2 selects, 1 conversion, 2 stores
//   S = 2   2 LDSM, 2 HMMA, 2 selects, 1 conversion, 2 stores
//
// In all: 19 a position and group at K = 7 on 64x56x56, 32 on 512x7x7 (band_forward.cuh).
#pragma once

#include "band.cuh"

namespace involution {

// KH: rows of the kernel, where the compiler knows them, and then a group has 16 channels; 0: any, in units
// of 8.
template <typename T, int KW, int KH, int S, bool kChannelsLast>
__device__ __forceinline__ void band_correlation(const March& m, const Place& at, const Steps& steps) {
  constexpr int kUnit = KH > 0 ? 16 : 8, kGroups = 2;
  const int lane = threadIdx.x % 32, warp = uniform(threadIdx.x / 32);
  const int groups = quotient(m.pack_channels, m.by_group_channels);
  const int run_of_step = quotient(warp, m.by_warps_of_run);
  const int first_row_of_step = quotient(run_of_step, m.by_runs);
  const int run = (run_of_step - first_row_of_step * m.runs) * kBandRun;
  const int first_group = (warp - run_of_step * m.warps_of_run) * kGroups;
  int group[kGroups];
  bool live[kGroups];  // the last warp of an odd number of groups computes its last one twice
#pragma unroll
  for (int i = 0; i < kGroups; ++i) {
    const int wanted = first_group + i;
    live[i] = wanted < groups;
    group[i] = live[i] ? wanted : groups - 1;
  }

  // A: matrices by columns, then by channels. B: by channels.
  const int matrix = lane / 8, in_matrix = lane % 8;
  const auto place = [&](const ActivationPitch& pitch, bool channels_last, int column, int channel) {
    return channels_last ? (column + in_matrix) * pitch.column + channel * 2
                         : (channel + in_matrix) * pitch.channel + column * 2;
  };
  const bool query_channels_last = m.second.piece_columns == 0;
  const Spot shared = shared_memory();
  const Spot keys = shared + m.source.base + run * S * m.source_pitch.column;
  const int own_keys = place(m.source_pitch, kChannelsLast, matrix % 2 * 8, kUnit == 16 ? matrix / 2 * 8 : 0);
  const int to_rest = place(m.source_pitch, kChannelsLast, 16, kUnit == 16 ? matrix % 2 * 8 : 0) - own_keys;
  // Of 8 channels there is one matrix, which is loaded twice.
  const Spot queries = shared + m.second.base + run * m.other_pitch.column +
                       place(m.other_pitch, query_channels_last, 0, kUnit == 16 ? matrix % 2 * 8 : 0);
  const int source_ring = m.source.rows * m.source.row_pitch;
  const int second_ring = m.second.rows * m.second.row_pitch;
  const int to_next_step = m.source.next * m.source.row_pitch;
  const int to_next_row = m.stride[1] * m.source.row_pitch;
  const int height = KH > 0 ? KH : m.kernel[1];

  // Positions n and n + 1: which of a lane's sums holds the tap, and which tap it is.
  const int n = lane % 4 * 2;
  const int even = lane / 4 - m.phase - S * n, odd = even - S;
  const int even_octet = (7 - even) >> 3, odd_octet = (7 - odd) >> 3;
  const int even_tap = even + 8 * even_octet, odd_tap = odd + 8 * odd_octet;
  const Spot taps = shared + m.result.base + (run + n) * m.weight_pitch.column;
  const int left = m.output[2] - at.strip * m.runs * kBandRun - run;  // columns
  const bool has_even = even_tap < KW && n < left, has_odd = odd_tap < KW && n + 1 < left;
  const int even_at = even_tap * m.weight_pitch.point;
  const int odd_at = m.weight_pitch.column + odd_tap * m.weight_pitch.point;

  int first_row = 0, slot = 0;
  const auto compute_row = [&](auto form, int row_of_step, Spot to) {
    using F = decltype(form);
    const int slices = F::kFlat ? 1 : m.kernel[0];
    const int to_kernel_row = F::kTogether ? KW * static_cast<int>(sizeof(T)) : m.weight_pitch.kernel_row;
    int first = first_row + row_of_step * to_next_row;
    if (first >= source_ring) first -= source_ring;
    const Spot query = queries + slot + row_of_step * m.other_pitch.row;
    uint32_t b[kGroups][2];
    const auto load_query = [&](int i, int channel) {
      const Spot at = query + (group[i] * m.group_channels + channel) * m.other_pitch.channel;
      if (query_channels_last) {
        load_matrices<2, false>(b[i], at);
      } else {
        load_matrices<2, true>(b[i], at);
      }
    };
    const auto load_key = [&](uint32_t (&a)[4], uint32_t (&rest)[2], Spot at) {
      if constexpr (kUnit == 16) {
        load_matrices<4, !kChannelsLast>(a, at);
        if constexpr (S == 2) load_matrices<2, !kChannelsLast>(rest, at + to_rest);
      } else {
        uint32_t octets[2];
        load_matrices<2, !kChannelsLast>(octets, at);
        a[0] = octets[0], a[1] = octets[1];
        if constexpr (S == 2) {
          load_matrices<2, !kChannelsLast>(octets, at + to_rest);
          rest[0] = octets[0];
        }
      }
    };
    const auto product = [&](float (&c)[4], float (&c_rest)[4], const uint32_t (&a)[4],
                             const uint32_t (&rest)[2], int i) {
      if constexpr (kUnit == 16) {
        multiply_add(c, a, b[i][0], b[i][1], T{});
        if constexpr (S == 2) {
          const uint32_t rows[4] = {rest[0], 0, rest[1], 0};
          multiply_add(c_rest, rows, b[i][0], b[i][1], T{});
        }
      } else {
        const uint32_t columns[2] = {a[0], a[1]};
        multiply_add(c, columns, b[i][0], T{});
        if constexpr (S == 2) {
          const uint32_t rows[2] = {rest[0], 0};
          multiply_add(c_rest, rows, b[i][0], T{});
        }
      }
    };
    Spot even_to[kGroups] = {}, odd_to[kGroups] = {}, key[kGroups] = {};
    const auto finish = [&](const float (&c)[4], const float (&c_rest)[4], int kh, int i) {
      float of_even = even_octet == 0 ? c[0] : c[2], of_odd = odd_octet == 0 ? c[1] : c[3];
      if constexpr (S == 2) {
        of_even = even_octet == 2 ? c_rest[0] : of_even;
        of_odd = odd_octet == 2 ? c_rest[1] : of_odd;
      }
      const uint32_t pair = pack(of_even, of_odd, T{});
      if (has_even && live[i]) store_shared(even_to[i] + kh * to_kernel_row, static_cast<uint16_t>(pair));
      if (has_odd && live[i]) store_shared(odd_to[i] + kh * to_kernel_row, static_cast<uint16_t>(pair >> 16));
    };

    if constexpr (KH > 0) {
#pragma unroll
      for (int i = 0; i < kGroups; ++i) load_query(i, 0);
    }
#pragma unroll 1
    for (int kd = 0; kd < slices; ++kd) {
#pragma unroll
      for (int i = 0; i < kGroups; ++i) {
        const Spot of_group = to + kd * m.weight_pitch.kernel_slice + group[i] * m.weight_pitch.group;
        even_to[i] = of_group + even_at;
        odd_to[i] = of_group + odd_at;
        key[i] = keys + kd * m.source.slice_pitch + group[i] * m.group_channels * m.source_pitch.channel +
                 own_keys;
      }
      int row = first;
      if constexpr (KH > 0) {
        uint32_t a[2][kGroups][4], rest[2][kGroups][2];
        const auto fetch = [&](int into) {
#pragma unroll
          for (int i = 0; i < kGroups; ++i) load_key(a[into][i], rest[into][i], key[i] + row);
          row = next_in_ring(row, m.source.row_pitch, source_ring);
        };
        fetch(0);
#pragma unroll
        for (int kh = 0; kh < KH; ++kh) {
          if (kh + 1 < KH) fetch((kh + 1) % 2);
          float c[kGroups][4] = {}, c_rest[kGroups][4] = {};
#pragma unroll
          for (int i = 0; i < kGroups; ++i) product(c[i], c_rest[i], a[kh % 2][i], rest[kh % 2][i], i);
#pragma unroll
          for (int i = 0; i < kGroups; ++i) finish(c[i], c_rest[i], kh, i);
        }
      } else {
#pragma unroll 1
        for (int kh = 0; kh < height; ++kh) {
          float c[kGroups][4] = {}, c_rest[kGroups][4] = {};
#pragma unroll 1
          for (int channel = 0; channel < m.group_channels; channel += kUnit) {
            uint32_t a[4], rest[2];
#pragma unroll
            for (int i = 0; i < kGroups; ++i) {
              load_query(i, channel);
              load_key(a, rest, key[i] + row + channel * m.source_pitch.channel);
              product(c[i], c_rest[i], a, rest, i);
            }
          }
#pragma unroll
          for (int i = 0; i < kGroups; ++i) finish(c[i], c_rest[i], kh, i);
          row = next_in_ring(row, m.source.row_pitch, source_ring);
        }
      }
    }
  };
  walk_form<T>(m, [&](auto form) {
#pragma unroll 1
    for (int step = 0; step < steps.count; ++step) {
      meet();
      const Spot to = taps + (step & 1) * m.result.next * m.result.row_pitch;
#pragma unroll 1
      for (int row = first_row_of_step; row < m.step_rows; row += m.warp_rows) {
        compute_row(form, row, to + row * m.weight_pitch.row);
      }
      first_row += to_next_step;
      if (first_row >= source_ring) first_row -= source_ring;
      slot = next_in_ring(slot, m.second.next * m.second.row_pitch, second_ring);
    }
  });
  meet();
}

}  // namespace involution
