// Involution of float32: y[c, o] = sum_k w[k, o] * x[c, o*stride - padding + k].
//
// Pixels lie in shared memory with their channels side by side, in either format of the input. A thread owns
// 7 neighbouring positions of a row and 4 channels; `parts` threads share the rows of the kernel, and their
// sums meet in shared memory. A kernel row is 6*S + KW loads of 16 bytes of x, 7*KW of 4 bytes of w (the
// lanes of a group read the same word) and 28*KW FMA: at K = 7 some 34 instructions a position and group of
// 16 channels, and in all that a block executes 51 on 64x56x56, 59 on 512x7x7 (python -m
// benchmarks.instructions).
#pragma once

#include "march.cuh"

namespace involution {

// A kernel row's values of several positions in shared memory. Those of a position lie side by side
// (kTogether), or those of neighbouring positions do: then the compiler is given the places of the KW values
// of the first position, so that a load costs no addition.
template <bool kTogether, int KW>
class KernelValues {
 public:
  __device__ __forceinline__ KernelValues(const WeightPitch& pitch, Spot first)
      : first_(first), column_(pitch.column) {
#pragma unroll
    for (int k = 0; k < (kTogether ? 0 : KW); ++k) places_[k] = first + k * pitch.point;
  }

  __device__ __forceinline__ Spot of(int position, int k) const {
    constexpr int kBytes = sizeof(float);
    return kTogether ? first_ + position * column_ + k * kBytes
                     : places_[kTogether ? 0 : k] + position * kBytes;
  }

 private:
  const Spot first_;
  const int column_;
  Spot places_[kTogether ? 1 : KW];
};

// What a thread of the FMA kernels works on.
struct FmaThread {
  int quad;  // of channels, in the pack
  int run;   // of the strip
  int rest;  // what the thread's number says beyond that

  __device__ __forceinline__ FmaThread(const March& m, int thread) {
    const int of_quad = quotient(thread, m.by_quads);
    quad = thread - of_quad * (m.pack_channels / 4);
    rest = quotient(of_quad, m.by_runs);
    const int number = of_quad - rest * m.runs;
    // Neighbouring lanes take runs that are half a strip apart, which begin in other banks.
    run = m.runs % 2 == 0 ? number % 2 * (m.runs / 2) + number / 2 : number;
  }
};

// 4 channels of one position of sums to a row of results.
__device__ __forceinline__ void store_quad(Spot at, const ActivationPitch& pitch, float4 sums) {
  if (pitch.channel == sizeof(float)) {
    store_shared(at, sums);
  } else {
    store_shared(at, sums.x);
    store_shared(at + pitch.channel, sums.y);
    store_shared(at + 2 * pitch.channel, sums.z);
    store_shared(at + 3 * pitch.channel, sums.w);
  }
}

__device__ __forceinline__ void add_product(float4& sums, float tap, float4 value) {
  sums.x += tap * value.x;
  sums.y += tap * value.y;
  sums.z += tap * value.z;
  sums.w += tap * value.w;
}

__device__ __forceinline__ void add(float4& sums, float4 more) {
  sums.x += more.x;
  sums.y += more.y;
  sums.z += more.z;
  sums.w += more.w;
}

template <int KW, int S>
__device__ __forceinline__ void fma_forward(const March& m, const Place& at, const Steps& steps) {
  constexpr int P = kFmaRun;
  const FmaThread own(m, threadIdx.x);
  const int part = quotient(own.rest, m.by_step_rows), row_of_step = own.rest - part * m.step_rows;
  const bool active = part < m.parts;  // the last warp may have threads too many
  const int first_kh = active ? quotient(part * m.kernel[1], m.by_parts) : 0;
  const int end_kh = active ? quotient((part + 1) * m.kernel[1], m.by_parts) : 0;
  const int threads = m.pack_channels / 4 * m.runs * m.step_rows;  // of a part

  const Spot shared = shared_memory();
  const Spot pixels = shared + m.source.base + own.run * P * S * m.source_pitch.column + own.quad * 16;
  const Spot taps = shared + m.second.base + row_of_step * m.weight_pitch.row +
                    own.run * P * m.weight_pitch.column +
                    quotient(own.quad * 4, m.by_group_channels) * m.weight_pitch.group;
  const int left = m.output[2] - (at.strip * m.runs + own.run) * P;  // columns
  const Spot out = shared + m.result.base + row_of_step * m.other_pitch.row +
                   own.run * P * m.other_pitch.column + own.quad * 4 * m.other_pitch.channel;
  const Spot sums = shared + m.sums_base + (static_cast<int>(threadIdx.x) - part * threads) * 16;
  const int taps_step = m.second.next * m.second.row_pitch, taps_ring = m.second.rows * m.second.row_pitch;

  int first_row = row_of_step * m.stride[1], slot = 0;  // rows of the source's ring, bytes of the taps'
  const auto add_rows = [&](auto together, float4(&acc)[P]) {
#pragma unroll 1
    for (int kd = 0; kd < m.kernel[0]; ++kd) {
      int row = first_row + first_kh;
      if (row >= m.source.rows) row -= m.source.rows;
      Spot w = taps + slot + kd * m.weight_pitch.kernel_slice + first_kh * m.weight_pitch.kernel_row;
#pragma unroll 1
      for (int kh = first_kh; kh < end_kh; ++kh) {
        const Spot x = pixels + row * m.source.row_pitch + kd * m.source.slice_pitch;
        const KernelValues<decltype(together)::value, KW> values(m.weight_pitch, w);
#pragma unroll
        for (int j = 0; j < (P - 1) * S + KW; ++j) {
          const float4 value = load_shared<float4>(x + j * m.source_pitch.column);
#pragma unroll
          for (int p = 0; p < P; ++p) {
            const int k = j - p * S;
            if (k < 0 || k >= KW) continue;
            add_product(acc[p], load_shared<float>(values.of(p, k)), value);
          }
        }
        w += m.weight_pitch.kernel_row;
        if (++row == m.source.rows) row = 0;
      }
    }
  };
#pragma unroll 1
  for (int step = 0; step < steps.count; ++step) {
    meet();
    float4 acc[P] = {};
    walk_values<float>(m, [&](auto together) { add_rows(together, acc); });
    if (m.parts > 1) {
      if (active && part > 0) {
#pragma unroll
        for (int p = 0; p < P; ++p) store_shared(sums + ((part - 1) * P + p) * threads * 16, acc[p]);
      }
      meet();
    }
    if (part == 0) {
      const Spot to = out + (step & 1) * m.result.next * m.result.row_pitch;
#pragma unroll
      for (int p = 0; p < P; ++p) {
        for (int other = 0; other + 1 < m.parts; ++other) {
          add(acc[p], load_shared<float4>(sums + (other * P + p) * threads * 16));
        }
        if (p < left) store_quad(to + p * m.other_pitch.column, m.other_pitch, acc[p]);
      }
    }
    first_row += m.source.next;
    if (first_row >= m.source.rows) first_row -= m.source.rows;
    slot = next_in_ring(slot, taps_step, taps_ring);
  }
  meet();
}

}  // namespace involution
