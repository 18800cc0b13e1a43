// From a plan to the fused kernel that it names; one small .cu file for each element type instantiates it.
#pragma once

#include "fused.cuh"
#include "fused_launcher.h"
#include "fused_strided.cuh"

namespace involution {

inline dim3 grid_of(const FusedPlan& plan) {
  const FusedMarch& m = plan.march;
  return {static_cast<unsigned>(m.packs * m.strips), static_cast<unsigned>(m.chunks),
          static_cast<unsigned>(plan.images)};
}

template <typename T>
cudaError_t launch_fused(const FusedPlan& plan, const FusedOperands<T>& operands, cudaStream_t stream) {
  const auto run = [&](auto kernel) {
    return launch_kernel(kernel, grid_of(plan), static_cast<unsigned>(plan.threads),
                         static_cast<size_t>(plan.shared_bytes), stream, plan.march, operands.x,
                         operands.features, operands.weight, operands.bias, operands.scale, operands.shift,
                         operands.y);
  };
  const auto of_size = [&](auto k) {
    constexpr int K = decltype(k)::value;
    if (plan.stride == 2) {
      if (plan.steps == 2) return run(&fused_strided_kernel<T, K, 2>);
      if (plan.steps == 4) return run(&fused_strided_kernel<T, K, 4>);
      return run(&fused_strided_kernel<T, K, 8>);
    }
    if (plan.steps == 1) return run(&fused_kernel<T, K, 1>);
    if (plan.steps == 2) return run(&fused_kernel<T, K, 2>);
    if (plan.steps == 4) return run(&fused_kernel<T, K, 4>);
    return run(&fused_kernel<T, K, 8>);
  };
  if (plan.kernel == 3) return of_size(std::integral_constant<int, 3>{});
  if (plan.kernel == 5) return of_size(std::integral_constant<int, 5>{});
  return of_size(std::integral_constant<int, 7>{});
}

}  // namespace involution
