// Local correlation of float32: w[k, o] = sum_c y[c, o] * x[c, o*stride - padding + k].
//
// Pixels of both operands lie in shared memory with their channels side by side. A thread owns 7 neighbouring
// positions, one row of the kernel and one group: 7*KW sums in registers, over the group's channels four at a
// time: 7 loads of 16 bytes of y and 6*S + KW of x for 28*KW FMA. Lanes of other groups or runs take the four
// quads of 16 channels in another order, so that the lanes that are served at once meet different banks.
#pragma once

#include "fma_forward.cuh"

namespace involution {

template <int KW, int S>
__device__ __forceinline__ void fma_correlation(const March& m, const Place& at, const Steps& steps) {
  constexpr int P = kFmaRun;
  const int groups = quotient(m.pack_channels, m.by_group_channels), quads = m.group_channels / 4;
  const int number = quotient(threadIdx.x, m.by_quads),
            group = static_cast<int>(threadIdx.x) - number * groups;
  const int row = quotient(number, m.by_runs), run = number - row * m.runs;
  const int set = quotient(row, m.by_step_rows), row_of_step = row - set * m.step_rows;
  const bool active = set < m.parts;  // m.parts threads share the rows of the kernel

  const Spot shared = shared_memory();
  const int channel = group * m.group_channels * 4;  // in bytes
  const int of_run = run * P * S * m.source_pitch.column;
  const Spot keys = shared + m.source.base + of_run + channel;
  // Of the eight lanes that are served at once every two begin with the same quad of 16 channels, of groups
  // or pixels an odd multiple of 64 bytes apart, and the others with other quads.
  int turn = number;
  if (groups % 4 == 0) turn = group / 2 + number % 2 * 2;
  if (groups == 1 && S == 2) turn = number % 2 + number / 4 % 2 * 2;
  turn -= (of_run + row_of_step * m.stride[1] * m.source.row_pitch) / 16;
  const int turns = (quads & -quads) - 1;  // the quads in which a lane takes them, by turns, less one
  const int left = m.output[2] - (at.strip * m.runs + run) * P;  // columns
  const Spot queries =
      shared + m.second.base + row_of_step * m.other_pitch.row + run * P * m.other_pitch.column + channel;
  const Spot out = shared + m.result.base + row_of_step * m.weight_pitch.row +
                   run * P * m.weight_pitch.column + group * m.weight_pitch.group;
  const int second_step = m.second.next * m.second.row_pitch,
            second_ring = m.second.rows * m.second.row_pitch;

  int first_row = row_of_step * m.stride[1], slot = 0;  // rows of the source's ring, bytes of the query's
#pragma unroll 1
  for (int step = 0; step < steps.count; ++step) {
    meet();
    const Spot y = queries + slot;
#pragma unroll 1
    for (int k = active ? set : m.kernel[0] * m.kernel[1]; k < m.kernel[0] * m.kernel[1]; k += m.parts) {
      const int kd = quotient(k, m.by_kernel_rows), kh = k - kd * m.kernel[1];
      int key_row = first_row + kh;
      if (key_row >= m.source.rows) key_row -= m.source.rows;
      const Spot x = keys + key_row * m.source.row_pitch + kd * m.source.slice_pitch;
      float acc[P][KW] = {};
#pragma unroll 1
      for (int i = 0; i < quads; ++i) {
        const int c = ((i & ~turns) + ((i + turn) & turns)) * 16;
        float4 query[P];
#pragma unroll
        for (int p = 0; p < P; ++p) query[p] = load_shared<float4>(y + c + p * m.other_pitch.column);
#pragma unroll
        for (int j = 0; j < (P - 1) * S + KW; ++j) {
          const float4 key = load_shared<float4>(x + c + j * m.source_pitch.column);
#pragma unroll
          for (int p = 0; p < P; ++p) {
            const int kw = j - p * S;
            if (kw < 0 || kw >= KW) continue;
            acc[p][kw] += key.x * query[p].x;
            acc[p][kw] += key.y * query[p].y;
            acc[p][kw] += key.z * query[p].z;
            acc[p][kw] += key.w * query[p].w;
          }
        }
      }
      const Spot to = out + (step & 1) * m.result.next * m.result.row_pitch +
                      kd * m.weight_pitch.kernel_slice + kh * m.weight_pitch.kernel_row;
      walk_values<float>(m, [&](auto together) {
        const KernelValues<decltype(together)::value, KW> values(m.weight_pitch, to);
#pragma unroll
        for (int p = 0; p < P; ++p) {
          if (p >= left) break;
#pragma unroll
          for (int kw = 0; kw < KW; ++kw) store_shared(values.of(p, kw), acc[p][kw]);
        }
      });
    }
    first_row += m.source.next;
    if (first_row >= m.source.rows) first_row -= m.source.rows;
    slot = next_in_ring(slot, second_step, second_ring);
  }
  meet();
}

}  // namespace involution
