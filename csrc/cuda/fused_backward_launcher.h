// From a plan of one of the fused layer's gradients to a launch.
#pragma once

#include "fused_backward_plan.h"
#include "fused_launcher.h"

namespace involution {

// Addresses of device memory, of the activations, weight and features at multiples of 16 bytes. Those that a
// plan's gradient does not need may be null.
template <typename T>
struct FusedBackwardOperands {
  const T* dy;
  const T* x;
  const T* features;
  const T* weight;  // (groups * 49, reduced)
  const T* bias;    // (groups * 49), or null
  T* dx;
  T* dfeatures;
  T* dweight;    // null where it is not asked for
  T* dbias;      // the same
  float* parts;  // (plan.parts, groups * 49, reduced + 1), for dweight and dbias
};

// On `stream`; returns the launch's error and never synchronises. The plan has no `reason`.
template <typename T>
cudaError_t launch_fused_backward(const FusedBackwardPlan& plan, const FusedBackwardOperands<T>& operands,
                                  cudaStream_t stream);

}  // namespace involution
