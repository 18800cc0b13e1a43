// From a plan of the fused layer to a launch.
#pragma once

#include "../half_types.h"
#include "fused_plan.h"

// The tests' stand-in for the CUDA runtime, where its folder is on the include path.
#if __has_include("cuda_on_host.h")
#include "cuda_on_host.h"
#else
#include <cuda_runtime_api.h>
#endif

namespace involution {

// Addresses of device memory, of the activations, weight and features at multiples of 16 bytes.
template <typename T>
struct FusedOperands {
  const T* x;
  const T* features;
  const T* weight;     // (groups * kernel points, reduced)
  const T* bias;       // (groups * kernel points), or null
  const float* scale;  // (channels), or null, and then so is shift
  const float* shift;
  T* y;
};

// On `stream`; returns the launch's error and never synchronises. The plan has no `reason`.
template <typename T>
cudaError_t launch_fused(const FusedPlan& plan, const FusedOperands<T>& operands, cudaStream_t stream);

}  // namespace involution
