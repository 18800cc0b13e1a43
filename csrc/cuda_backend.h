// The operators on CUDA tensors: allocation, plan, launch on the current stream.
#pragma once

#include <ATen/ATen.h>

#include <optional>

#include "involution.h"

namespace involution {

// Read once for each device.
const DeviceLimits& limits_of(c10::DeviceIndex device);

at::Tensor involution_cuda(const at::Tensor& input, const at::Tensor& weight, at::IntArrayRef stride,
                           at::IntArrayRef padding, at::IntArrayRef dilation);

at::Tensor involution_transpose_cuda(const at::Tensor& input, const at::Tensor& weight,
                                     at::IntArrayRef output_size, at::IntArrayRef stride,
                                     at::IntArrayRef padding, at::IntArrayRef dilation);

at::Tensor local_correlation_cuda(const at::Tensor& query, const at::Tensor& key, at::IntArrayRef kernel_size,
                                  int64_t groups, at::IntArrayRef stride, at::IntArrayRef padding,
                                  at::IntArrayRef dilation);

// As compose_fused_involution (fused.h), in one kernel where there is a plan for it.
at::Tensor fused_involution_cuda(const at::Tensor& input, const at::Tensor& features,
                                 const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                                 at::IntArrayRef kernel_size, at::IntArrayRef stride, at::IntArrayRef padding,
                                 at::IntArrayRef dilation, const std::optional<at::Tensor>& scale,
                                 const std::optional<at::Tensor>& shift, bool relu);

}  // namespace involution
