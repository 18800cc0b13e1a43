// A row of the kernel as a band: how tensor cores multiply float16 and bfloat16.
//
// Along one row of the kernel, the results of 8 neighbouring positions n are a product of source columns j
// and a banded matrix,
//
//   D[channel][n] += A[channel][j] * B[j][n],   B[j][n] = w[tap(j, n)] of a position
//
//                w of position   tap(j, n)                               columns j
//   involution   n               j - phase - S*n                         16 with S = 1, 24 with S = 2
//   transpose    j               r + S*(phase + n + reach + carry - j)   16
//
// The transpose has one such product for each residue e of the result's columns by S; r and carry follow from
// e and the padding.
//
// A is 16 channels, 8 or 16 columns a fragment, by ldmatrix from rows of the source in either format. Of B a
// lane of mma holds the pairs of columns 2t, 2t+1 (+8, +16) for n = lane / 4. The taps of one n fill at most
// four pairs in a row, so each lane of its four has exactly one pair, always the same: two loads of two bytes
// at addresses that are fixed for the lane, and a PRMT for each fragment with a selector that is fixed too
// puts the pair where it belongs and zeros elsewhere. No band is built in memory and nothing is predicated.
#pragma once

#include "march.cuh"

namespace involution {

// Selectors of permute() for a pair (low, high) of zero-extended halves.
constexpr uint32_t kNoPair = 0x7632;
__device__ __forceinline__ uint32_t pair_selector(bool low, bool high) {
  return (low ? 0x0010u : 0x0032u) | (high ? 0x5400u : 0x7600u);
}

__device__ __forceinline__ int clamp(int value, int low, int high) {
  return value < low ? low : value > high ? high : value;
}

// A lane's pair of taps of a kernel row, kFragments fragments of 8 columns.
template <int kFragments>
struct BandLane {
  uint32_t select[kFragments];
  int low;  // where in a row of kernel values, in bytes
  int high;
  int column;  // transposed: of the tap `low`

  // Of involution.
  template <int KW, int S>
  static __device__ __forceinline__ BandLane forward(const WeightPitch& pitch, int phase, int lane) {
    const int n = lane / 4;
    const int first = S * n + phase;
    const int pair = first / 2 + ((lane - first / 2) & 3);
    const int tap = 2 * pair - first;
    BandLane band;
#pragma unroll
    for (int i = 0; i < kFragments; ++i) {
      band.select[i] =
          pair / 4 == i ? pair_selector(tap >= 0 && tap < KW, tap + 1 >= 0 && tap + 1 < KW) : kNoPair;
    }
    band.low = n * pitch.column + clamp(tap, 0, KW - 1) * pitch.point;
    band.high = n * pitch.column + clamp(tap + 1, 0, KW - 1) * pitch.point;
    return band;
  }

  // Of the transposed operation, for columns of the result whose sum with the padding is `shifted` by S.
  // Column 0 of the run's window is `first_column` of the map, of `width`; a column outside holds no tap.
  template <int KW, int S>
  static __device__ __forceinline__ BandLane transposed(const WeightPitch& pitch, int phase, int weight_phase,
                                                        int shifted, int first_column, int width, int lane) {
    constexpr int kReach = (KW - 1) / S;
    const int e = shifted % S, carry = shifted / S;
    const int most = (KW - 1 - e) / S;  // taps e + S*m, m = 0 .. most
    const int n = lane / 4;
    const int last = phase + n + kReach + carry;  // the column of m = 0
    const int pair = (last - most) / 2 + ((lane - (last - most) / 2) & 3);
    const int m = last - 2 * pair;
    const int column = 2 * pair - phase;
    const auto exists = [&](int of_m, int of_column) {
      const int in_map = first_column + of_column;
      return of_m >= 0 && of_m <= most && in_map >= 0 && in_map < width;
    };
    const bool low = exists(m, column), high = exists(m - 1, column + 1);
    BandLane band;
    band.column = first_column + column;
#pragma unroll
    for (int i = 0; i < kFragments; ++i) band.select[i] = pair / 4 == i ? pair_selector(low, high) : kNoPair;
    band.low = low ? (column + weight_phase) * pitch.column + (e + S * m) * pitch.point : 0;
    band.high = high ? (column + 1 + weight_phase) * pitch.column + (e + S * (m - 1)) * pitch.point : 0;
    return band;
  }
};

// The fragments of 8 channels (kUnit = 8) or 16 of a run of the source: where a lane's row of ldmatrix lies.
template <bool kChannelsLast, int kUnit>
struct SourceLane {
  int own;   // of columns 0 to 15
  int rest;  // of columns 16 to 23

  __device__ __forceinline__ SourceLane(const ActivationPitch& pitch, int lane) {
    const int row = lane % 8, matrix = lane / 8;
    // 16 channels: matrices by channels, then by columns. 8 channels: by columns.
    const int octet = kUnit == 16 ? matrix % 2 : 0, columns = kUnit == 16 ? matrix / 2 : matrix % 2;
    if constexpr (kChannelsLast) {
      own = (columns * 8 + row) * pitch.column + octet * 16;
      rest = (16 + row) * pitch.column + octet * 16;
    } else {
      own = (octet * 8 + row) * pitch.channel + columns * 16;
      rest = (octet * 8 + row) * pitch.channel + 32;
    }
  }
};

// a: columns 0 to 15; for S = 2, rest: columns 16 to 23. Rows 8 to 15 of a unit of 8 channels are zeros.
template <bool kChannelsLast, int kUnit>
__device__ __forceinline__ void load_source(uint32_t (&a)[4], Spot at) {
  if constexpr (kUnit == 16) {
    load_matrices<4, kChannelsLast>(a, at);
  } else {
    uint32_t octets[2];
    load_matrices<2, kChannelsLast>(octets, at);
    a[0] = octets[0], a[1] = 0, a[2] = octets[1], a[3] = 0;
  }
}
template <bool kChannelsLast, int kUnit>
__device__ __forceinline__ void load_source_rest(uint32_t (&a)[2], Spot at) {
  load_matrices<2, kChannelsLast>(a, at);
  if constexpr (kUnit == 8) a[1] = 0;
}

// kUnits units of 16 (8) channels by 8 positions of sums, kStep columns apart, to a row of results in either
// format: a lane's part of it. `columns` exist from the first position on; the last unit may not exist.
template <typename T, int kUnits, int kUnit, int kStep>
class BandResults {
 public:
  __device__ __forceinline__ BandResults(const ActivationPitch& pitch, bool channels_last, int columns,
                                         bool last_unit, int lane)
      : pitch_(pitch),
        channels_last_(channels_last),
        last_unit_(last_unit),
        lane_(channels_last ? lane / 4 * kStep * pitch.column + lane % 4 * 4
                            : lane / 4 * pitch.channel + lane % 4 * 2 * kStep * pitch.column),
        row_(lane % 8 * kStep * pitch.column + lane / 8 * 16),
        left_(columns - lane % 4 * 2 * kStep) {}

  __device__ __forceinline__ void store(Spot to, const float (&sums)[kUnits][4]) const {
    uint32_t pairs[kUnits * 2];  // matrices of 8 channels
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      pairs[2 * i] = pack(sums[i][0], sums[i][1], T{}), pairs[2 * i + 1] = pack(sums[i][2], sums[i][3], T{});
    }
    if (kUnit == 16 && channels_last_) {
      const uint32_t first[2] = {pairs[0], pairs[1]};
      if (kUnits == 1 || last_unit_) {
        store_transposed(to + row_, to + lane_, pairs);
      } else {
        store_transposed(to + row_, to + lane_, first);
      }
      return;
    }
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      const Spot of_unit = to + lane_ + i * kUnit * pitch_.channel;
      if (i > 0 && !last_unit_) return;
      if (channels_last_) {
        store_shared(of_unit, transpose_matrix(pairs[2 * i]));
      } else {
        put(of_unit, pairs[2 * i]);
        if constexpr (kUnit == 16) put(of_unit + 8 * pitch_.channel, pairs[2 * i + 1]);
      }
    }
  }

 private:
  __device__ __forceinline__ void put(Spot at, uint32_t pair) const {
    const bool second = left_ > kStep;
    if (kStep == 1 && second && (pitch_.channel | pitch_.row) % 4 == 0) {
      store_shared(at, pair);
    } else {
      if (left_ > 0) store_shared(at, static_cast<uint16_t>(pair));
      if (second) store_shared(at + kStep * pitch_.column, static_cast<uint16_t>(pair >> 16));
    }
  }

  const ActivationPitch& pitch_;
  const bool channels_last_;
  const bool last_unit_;
  const int lane_;
  const int row_;
  const int left_;  // columns from the lane's first on
};

// What one warp works on: every warp_rows-th row of a step, a run of 8 (transposed: 8*S) result columns and
// kUnits units of channels. The last warp of an odd number of units has one that does not exist, whose
// results go nowhere.
template <int kUnits, int kUnit>
struct BandWarp {
  int row;  // of a step, the first
  int run;
  int channel;        // the first of the first unit, in the pack
  int group;          // of the first unit, in bytes of kernel values
  int to_next_group;  // from the first unit's to the second's
  bool last_unit;     // exists

  __device__ __forceinline__ BandWarp(const March& m, int warp) {
    const int units = m.pack_channels / kUnit;
    const int run_of_step = quotient(warp, m.by_warps_of_run);
    row = quotient(run_of_step, m.by_runs);
    run = run_of_step - row * m.runs;
    const int first = (warp - run_of_step * m.warps_of_run) * kUnits;
    channel = first * kUnit;
    group = quotient(channel, m.by_group_channels) * m.weight_pitch.group;
    last_unit = first + kUnits <= units;
    to_next_group = 0;
    if (kUnits == 2 && last_unit) {
      to_next_group = quotient(channel + kUnit, m.by_group_channels) * m.weight_pitch.group - group;
    }
  }
};

}  // namespace involution
