// The gradients of the fused involution on CUDA tensors, by kernels that make no kernel tensor.
//
// What has no kernel comes back undefined: involution/_fused_derivatives.py composes it.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <array>
#include <tuple>

#include "cuda/fused_backward_launcher.h"
#include "fused.h"
#include "fused_cuda.h"
#include "tensors.h"

namespace involution {

namespace {

using at::Tensor;

// Undefined where there is none, or where it is not made.
struct Operands {
  Tensor grad, input, features, weight, bias;
};
struct Gradients {
  Tensor input, features, weight, bias;
};

template <typename T>
cudaError_t launch(const FusedBackwardPlan& plan, const Operands& o, const Gradients& made,
                   const Tensor& parts) {
  const auto read = [](const Tensor& tensor) {
    return tensor.defined() ? static_cast<const T*>(tensor.const_data_ptr()) : nullptr;
  };
  const auto written = [](const Tensor& tensor) {
    return tensor.defined() ? static_cast<T*>(tensor.mutable_data_ptr()) : nullptr;
  };
  const FusedBackwardOperands<T> addresses{
      read(o.grad),           read(o.input),
      read(o.features),       read(o.weight),
      read(o.bias),           written(made.input),
      written(made.features), written(made.weight),
      written(made.bias),     parts.defined() ? parts.mutable_data_ptr<float>() : nullptr};
  return launch_fused_backward<T>(plan, addresses, c10::cuda::getCurrentCUDAStream());
}

// The gradients that are asked for and have a kernel.
Gradients compute(const FusedProblem& problem, const Operands& operands, const std::array<bool, 4>& asked) {
  const auto launch_as = operands.input.scalar_type() == at::kHalf ? &launch<Float16> : &launch<BFloat16>;
  const Tensor& weight = operands.weight;
  Gradients made;
  const auto run = [&](FusedGradient gradient, const auto& allocate) {
    const FusedBackwardPlan plan =
        make_fused_backward_plan(gradient, problem, limits_of(c10::cuda::current_device()));
    if (plan.reason != nullptr) return;
    const Tensor parts = allocate(plan);
    C10_CUDA_CHECK(launch_as(plan, operands, made, parts));
  };
  if (asked[0]) {
    run(FusedGradient::kInput, [&](const FusedBackwardPlan&) {
      made.input = at::empty_like(operands.input);
      return Tensor();
    });
  }
  if (asked[1]) {
    run(FusedGradient::kFeatures, [&](const FusedBackwardPlan&) {
      made.features = at::empty_like(operands.features);
      return Tensor();
    });
  }
  if (asked[2] || asked[3]) {
    run(FusedGradient::kWeight, [&](const FusedBackwardPlan& plan) {
      if (asked[2]) made.weight = at::empty_like(weight);
      if (asked[3]) made.bias = at::empty({weight.size(0)}, weight.options());
      return at::empty({plan.parts, weight.size(0), weight.size(1) + 1}, weight.options().dtype(at::kFloat));
    });
  }
  return made;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> fused_backward_cuda(
    const Tensor& grad, const Tensor& input, const Tensor& features, const Tensor& weight,
    const std::optional<Tensor>& bias, at::IntArrayRef kernel_size, at::IntArrayRef stride,
    at::IntArrayRef padding, at::IntArrayRef dilation, std::array<bool, 4> asked) {
  const int64_t groups = check_fused_operands(input, features, weight, bias, kernel_size, stride, padding,
                                              dilation, std::nullopt, std::nullopt);
  check_operands("fused_involution_backward", input, grad, {kernel_size, stride, padding, dilation});
  const c10::cuda::CUDAGuard guard(input.device());
  Gradients result;
  if (has_fused_kernel(input, features, kernel_size, stride, padding, dilation) &&
      is_dense_channels_last(grad) && grad.sizes() == input.sizes()) {
    const FusedProblem problem = fused_problem(input, features, groups, kernel_size, stride);
    result = compute(problem, {grad, input, features, readable(weight), readable(bias)}, asked);
  }
  return {result.input, result.features, result.weight, result.bias};
}

}  // namespace

TORCH_LIBRARY_IMPL(involution, CUDA, library) { library.impl("_fused_backward_cuda", &fused_backward_cuda); }

}  // namespace involution
