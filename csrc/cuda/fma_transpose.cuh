// The transposed involution of float32: x[c, q] = sum_k w[k, o] * y[c, o], q = o*stride - padding + k.
//
// The march goes down the rows of y and w, so that each is brought once. At row o of y the row
// q = o*stride - padding + kh of x takes kernel row kh, for every kh. A set of threads for each kh owns every
// KH-th row q: its sums stay in registers until its last kernel row, leave, and the set goes on with the row
// KH further down. No sums are shared. A thread owns 7*S neighbouring columns and 4 channels.
//
// With S = 1 a row of the kernel is summed by itself before it is added, which halves the error of a sum
// of 49.
#pragma once

#include "fma_forward.cuh"

namespace involution {

// kResidue: of the padding by S.
template <int KW, int S, int kResidue>
__device__ __forceinline__ void fma_transpose(const March& m, const Place&, const Steps& steps) {
  constexpr int kPositions = kFmaRun, P = kFmaRun * S, kReach = (KW - 1) / S;
  const FmaThread own(m, threadIdx.x);
  const int stride = m.stride[1], height = m.kernel[1];
  const bool active = own.rest < m.sets;  // the last warp may have threads too many

  const Spot shared = shared_memory();
  const Spot pixels = shared + m.source.base + own.run * kPositions * m.source_pitch.column + own.quad * 16;
  const Spot taps = shared + m.second.base + (own.run * kPositions + m.weight_phase) * m.weight_pitch.column +
                    quotient(own.quad * 4, m.by_group_channels) * m.weight_pitch.group;
  const Spot out =
      shared + m.result.base + own.run * P * m.other_pitch.column + own.quad * 4 * m.other_pitch.channel;
  const int source_ring = m.source.rows * m.source.row_pitch;
  const int taps_ring = m.second.rows * m.second.row_pitch;

  float4 acc[P] = {};
  const int turned = steps.result_row + m.sets_bias;
  int kh = own.rest - (turned - quotient(turned, m.by_sets) * m.sets);  // of the set's row
  if (kh < 0) kh += m.sets;
  int row = 0, slot = 0;
  const auto add_row = [&](auto together) {
#pragma unroll 1
    for (int kd = 0; kd < m.kernel[0]; ++kd) {
      const Spot y = pixels + row + kd * m.source.slice_pitch;
      constexpr int kColumns = kPositions + kReach + kResidue;
      const KernelValues<decltype(together)::value, KW> values(
          m.weight_pitch, taps + slot + kd * m.second.slice_pitch + kh * m.weight_pitch.kernel_row);
      float4 of_row[S == 1 ? P : 1] = {};
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        const float4 value = load_shared<float4>(y + j * m.source_pitch.column);
#pragma unroll
        for (int p = 0; p < P; ++p) {
          const int k = p + kResidue + S * (kReach - j);
          if (k < 0 || k >= KW) continue;
          add_product(S == 1 ? of_row[S == 1 ? p : 0] : acc[p], load_shared<float>(values.of(j, k)), value);
        }
      }
      if constexpr (S == 1) {
#pragma unroll
        for (int p = 0; p < P; ++p) add(acc[p], of_row[p]);
      }
    }
  };
  walk_values<float>(m, [&](auto together) {
#pragma unroll 1
    for (int step = 0; step < steps.count; ++step) {
      meet();
      const int q = steps.result_row + step * stride + kh;
      const bool inside = steps.source_row + step < m.output[1] && kh < height && q >= steps.result_begin &&
                          q < steps.result_end;
      if (active && inside) add_row(together);
      if (active && kh < stride) {  // the set's row is finished
        const Spot to = out + ((step & 1) * stride + kh) * m.result.row_pitch;
#pragma unroll
        for (int p = 0; p < P; ++p) {
          store_quad(to + p * m.other_pitch.column, m.other_pitch, acc[p]);
          acc[p] = float4{0.f, 0.f, 0.f, 0.f};
        }
      }
      kh -= stride;
      if (kh < 0) kh += m.sets;
      row = next_in_ring(row, m.source.row_pitch, source_ring);
      slot = next_in_ring(slot, m.second.row_pitch, taps_ring);
    }
  });
  meet();
}

}  // namespace involution
