// From a plan to the marching kernel that it names. One small .cu file for each element type and operation
// instantiates launch_march, so that they compile side by side.
#pragma once

#include <type_traits>

#include "band_correlation.cuh"
#include "band_forward.cuh"
#include "band_transpose.cuh"
#include "fma_correlation.cuh"
#include "fma_forward.cuh"
#include "fma_transpose.cuh"
#include "plan.h"

namespace involution {

// The warps behind those that compute copy, each the rows of one operand or of the result.
template <Operation kOperation, typename T, typename Compute>
__device__ __forceinline__ void march(const March& m, const T* source, const T* second, T* result,
                                      const Compute& compute) {
  const Place at = place_of(m);
  const Steps steps = steps_of<kOperation == Operation::kTranspose>(m, at);
  if (m.cleared) {
    clear_ring(m.source);
    if (kOperation == Operation::kTranspose) clear_ring(m.second);
    meet();
  }
  // Each warp does one thing: a block begins with less where none has to find its share of all.
  const int warp = uniform(threadIdx.x / 32);
  const int source_end = m.consumers + m.source.warps, second_end = source_end + m.second.warps;
  const int thread = threadIdx.x;
  if (warp < m.consumers) {
    compute(at, steps);
  } else if (warp < source_end) {
    bring_source<kOperation>(m, at, steps, thread - m.consumers * 32, reinterpret_cast<Bytes>(source));
  } else if (warp < second_end) {
    bring_second<kOperation>(m, at, steps, thread - source_end * 32, reinterpret_cast<Bytes>(second));
  } else {
    take_result<kOperation>(m, at, steps, thread - second_end * 32, reinterpret_cast<Bytes>(source),
                            reinterpret_cast<unsigned char*>(result));
  }
}

// KH = 0: any number of kernel rows, and groups of a multiple of 8 channels.
template <typename T, Operation kOperation, int KW, int KH, int S, bool kChannelsLast>
__global__ void __launch_bounds__(kBandThreads, 1)
    band_kernel(const __grid_constant__ March m, const T* __restrict__ source, const T* __restrict__ second,
                T* __restrict__ result) {
  march<kOperation>(m, source, second, result, [&](const Place& at, const Steps& steps) {
    if constexpr (kOperation == Operation::kInvolution) {
      band_forward<T, KW, KH, S, kChannelsLast>(m, at, steps);
    } else if constexpr (kOperation == Operation::kTranspose) {
      band_transpose<T, KW, KH, S, kChannelsLast>(m, at, steps);
    } else {
      band_correlation<T, KW, KH, S, kChannelsLast>(m, at, steps);
    }
  });
}

// kResidue: of the transposed operation's padding by S.
template <Operation kOperation, int KW, int S, int kResidue = 0>
__global__ void __launch_bounds__(kOperation == Operation::kCorrelation ? kFmaCorrelationThreads
                                                                        : kFmaThreads,
                                  1)
    fma_kernel(const __grid_constant__ March m, const float* __restrict__ source,
               const float* __restrict__ second, float* __restrict__ result) {
  march<kOperation>(m, source, second, result, [&](const Place& at, const Steps& steps) {
    if constexpr (kOperation == Operation::kInvolution) {
      fma_forward<KW, S>(m, at, steps);
    } else if constexpr (kOperation == Operation::kTranspose) {
      fma_transpose<KW, S, kResidue>(m, at, steps);
    } else {
      fma_correlation<KW, S>(m, at, steps);
    }
  });
}

namespace launch_detail {

// Calls `with(std::integral_constant<int, v>)` with the one of the values that `value` is; false where none
// is.
template <int... kValues, typename With>
bool choose(int64_t value, const With& with) {
  bool known = false;
  const auto try_one = [&](auto constant) {
    if (value != constant.value || known) return;
    known = true;
    with(constant);
  };
  (try_one(std::integral_constant<int, kValues>{}), ...);
  return known;
}

}  // namespace launch_detail

// `source`, `second` and `result` as march.h names them.
template <typename T, Operation kOperation>
cudaError_t launch_march(const Plan& plan, const T* source, const T* second, T* result, cudaStream_t stream) {
  using launch_detail::choose;
  const March& m = plan.march;
  cudaError_t error = cudaErrorInvalidValue;  // no plan names a kernel that is not here
  const auto run = [&](auto kernel) {
    const dim3 grid(static_cast<unsigned>(m.packs * m.strips), static_cast<unsigned>(m.chunks * m.slices),
                    static_cast<unsigned>(plan.images));
    error = launch_kernel(kernel, grid, static_cast<unsigned>(plan.threads),
                          static_cast<size_t>(plan.shared_bytes), stream, m, source, second, result);
  };
  choose<1, 2>(m.stride[2], [&](auto s) {
    if constexpr (sizeof(T) == 2) {
      choose<3, 5, 7>(m.kernel[2], [&](auto kw) {
        choose<0, 1>(plan.source_channels_last, [&](auto last) {
          constexpr int KW = kw.value, S = s.value;
          if (plan.square) {
            run(&band_kernel<T, kOperation, KW, KW, S, last.value != 0>);
          } else {
            run(&band_kernel<T, kOperation, KW, 0, S, last.value != 0>);
          }
        });
      });
    } else {
      choose<3, 5, 7, 9>(m.kernel[2], [&](auto kw) {
        constexpr int KW = kw.value, S = s.value;
        if constexpr (kOperation == Operation::kTranspose && S == 2) {
          run(m.residue == 0 ? &fma_kernel<kOperation, KW, S, 0> : &fma_kernel<kOperation, KW, S, 1>);
        } else {
          run(&fma_kernel<kOperation, KW, S>);
        }
      });
    }
  });
  return error;
}

}  // namespace involution
