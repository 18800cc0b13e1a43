// The fused involution on CUDA tensors: in one kernel where there is a plan for it.
#include "fused_cuda.h"

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "cuda/fused_launcher.h"
#include "fused.h"
#include "tensors.h"

namespace involution {

using at::Tensor;

bool is_dense_channels_last(const Tensor& map) {
  return map.dim() == 4 && map.is_contiguous(at::MemoryFormat::ChannelsLast) &&
         reinterpret_cast<uintptr_t>(map.const_data_ptr()) % 16 == 0;
}

bool has_fused_kernel(const Tensor& input, const Tensor& features, at::IntArrayRef kernel_size,
                      at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation) {
  const bool half = input.scalar_type() == at::kHalf || input.scalar_type() == at::kBFloat16;
  if (!half || !is_dense_channels_last(input) || !is_dense_channels_last(features)) return false;
  for (size_t axis = 0; axis < 2; ++axis) {
    if (dilation[axis] != 1 || kernel_size[axis] % 2 == 0 || padding[axis] != kernel_size[axis] / 2) {
      return false;
    }
    const int64_t positions = (input.sizes()[2 + axis] + stride[axis] - 1) / stride[axis];
    if (features.sizes()[2 + axis] != positions) return false;
  }
  return input.numel() > 0 && features.numel() > 0;
}

FusedProblem fused_problem(const Tensor& input, const Tensor& features, int64_t groups,
                           at::IntArrayRef kernel_size, at::IntArrayRef stride) {
  return {input.size(0), input.size(1), input.size(1) / groups,           features.size(1),
          input.size(2), input.size(3), {kernel_size[0], kernel_size[1]}, {stride[0], stride[1]}};
}

Tensor readable(const std::optional<Tensor>& tensor) {
  if (!tensor) return {};
  const Tensor contiguous = tensor->contiguous();
  const bool aligned = reinterpret_cast<uintptr_t>(contiguous.const_data_ptr()) % 16 == 0;
  return aligned ? contiguous : contiguous.clone();
}

namespace {

template <typename T>
cudaError_t launch(const FusedPlan& plan, const Tensor& input, const Tensor& features, const Tensor& weight,
                   const Tensor& bias, const Tensor& scale, const Tensor& shift, const Tensor& output) {
  const auto data = [](const Tensor& tensor) { return tensor.defined() ? tensor.const_data_ptr() : nullptr; };
  const FusedOperands<T> operands{
      static_cast<const T*>(data(input)),        static_cast<const T*>(data(features)),
      static_cast<const T*>(data(weight)),       static_cast<const T*>(data(bias)),
      static_cast<const float*>(data(scale)),    static_cast<const float*>(data(shift)),
      static_cast<T*>(output.mutable_data_ptr())};
  return launch_fused<T>(plan, operands, c10::cuda::getCurrentCUDAStream());
}

Tensor fused_involution_cuda(const Tensor& input, const Tensor& features, const Tensor& weight,
                             const std::optional<Tensor>& bias, at::IntArrayRef kernel_size,
                             at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                             const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
                             bool relu) {
  const int64_t groups = check_fused_operands(input, features, weight, bias, kernel_size, stride, padding,
                                              dilation, scale, shift);
  const c10::cuda::CUDAGuard guard(input.device());
  if (has_fused_kernel(input, features, kernel_size, stride, padding, dilation)) {
    FusedPlan plan = make_fused_plan(fused_problem(input, features, groups, kernel_size, stride),
                                     limits_of(c10::cuda::current_device()));
    if (plan.reason == nullptr) {
      plan.march.relu = relu ? 1 : 0;
      const Tensor output = empty_activation(input.size(0), input.size(1), features.sizes().slice(2),
                                             is_channels_last(input), input.options());
      const auto launch_as = input.scalar_type() == at::kHalf ? &launch<Float16> : &launch<BFloat16>;
      C10_CUDA_CHECK(launch_as(plan, input, features, readable(weight), readable(bias), readable(scale),
                               readable(shift), output));
      return output;
    }
  }
  return compose_fused_involution(input, features, weight, bias, kernel_size, stride, padding, dilation,
                                  scale, shift, relu);
}

}  // namespace

TORCH_LIBRARY_IMPL(involution, CUDA, library) { library.impl("fused_involution", &fused_involution_cuda); }

}  // namespace involution
