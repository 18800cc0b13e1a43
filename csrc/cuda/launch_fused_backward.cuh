// From a plan to the kernel of the gradient that it names; one small .cu file for each element type
// instantiates it.
#pragma once

#include "fused_backward_launcher.h"
#include "fused_features_gradient.cuh"
#include "fused_input_gradient.cuh"
#include "fused_weight_gradient.cuh"

namespace involution {

template <typename T>
cudaError_t launch_fused_backward(const FusedBackwardPlan& plan, const FusedBackwardOperands<T>& operands,
                                  cudaStream_t stream) {
  const FusedBackwardOperands<T>& o = operands;
  const auto run = [&](auto kernel, auto... pointers) {
    return launch_kernel(kernel, dim3(static_cast<unsigned>(plan.blocks)),
                         static_cast<unsigned>(plan.threads), static_cast<size_t>(plan.shared_bytes), stream,
                         plan.march, pointers...);
  };
  if (plan.gradient == FusedGradient::kInput) {
    const auto input = [&](auto kernel) { return run(kernel, o.dy, o.features, o.weight, o.bias, o.dx); };
    if (plan.steps == 1) return input(&fused_input_gradient_kernel<T, 1>);
    if (plan.steps == 2) return input(&fused_input_gradient_kernel<T, 2>);
    if (plan.steps == 4) return input(&fused_input_gradient_kernel<T, 4>);
    return input(&fused_input_gradient_kernel<T, 8>);
  }
  if (plan.gradient == FusedGradient::kFeatures) {
    const auto features = [&](auto kernel) { return run(kernel, o.dy, o.x, o.weight, o.dfeatures); };
    if (plan.steps == 1) return features(&fused_features_gradient_kernel<T, 1>);
    if (plan.steps == 2) return features(&fused_features_gradient_kernel<T, 2>);
    return features(&fused_features_gradient_kernel<T, 4>);
  }
  const auto weight = [&](auto kernel) { return run(kernel, o.dy, o.x, o.features, o.parts); };
  const cudaError_t error = plan.steps == 1 ? weight(&fused_weight_gradient_kernel<T, 1>)
                                            : weight(&fused_weight_gradient_kernel<T, 2>);
  if (error != cudaSuccess) return error;
  constexpr int kWarps = 16;
  const int rows = plan.march.groups * kFusedBackwardSize * kFusedBackwardSize;
  const int64_t blocks = (static_cast<int64_t>(rows) * (plan.march.reduced + 1) + 31) / 32;
  return launch_kernel(&fused_parts_kernel<T, kWarps>, dim3(static_cast<unsigned>(blocks)), kWarps * 32,
                       kWarps * 128, stream, static_cast<const float*>(o.parts), plan.parts, rows,
                       plan.march.reduced, o.dweight, o.dbias);
}

}  // namespace involution
