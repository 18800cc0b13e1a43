// The border between the kernels and what runs them: nvcc on a GPU, or a C++ compiler on the host.
//
// The kernels are ordinary C++ apart from a few built-ins. Without nvcc a header of the tests supplies
// these, one fiber per CUDA thread, so that a machine with no GPU executes the kernels that ship.
#pragma once

#ifdef __CUDACC__

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>

namespace involution {

__device__ __forceinline__ unsigned char* dynamic_shared_memory() {
  extern __shared__ __align__(16) unsigned char involution_shared_memory[];
  return involution_shared_memory;
}

// Launches on `stream` and returns the launch's own error; never synchronises.
template <typename Kernel, typename... Arguments>
cudaError_t launch_kernel(Kernel kernel, unsigned grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                          const Arguments&... arguments) {
  constexpr size_t kWithoutOptIn = 48 * 1024;
  if (shared_bytes > kWithoutOptIn) {
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  kernel<<<grid, block, shared_bytes, stream>>>(arguments...);
  return cudaGetLastError();
}

}  // namespace involution

#else

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <vector>

#include "cuda_on_host.h"

namespace involution {

using std::min;

inline unsigned char* dynamic_shared_memory() { return host::shared_memory(); }

template <typename Kernel, typename... Arguments>
cudaError_t launch_kernel(Kernel kernel, unsigned grid, dim3 block, size_t shared_bytes, cudaStream_t,
                          const Arguments&... arguments) {
  return host::launch(kernel, dim3(grid), block, shared_bytes, arguments...);
}

}  // namespace involution

#endif
