// The three operators on CUDA tensors: allocation, plan, launch on the current stream.
#pragma once

#include <ATen/ATen.h>

namespace involution {

at::Tensor involution_cuda(const at::Tensor& input, const at::Tensor& weight, at::IntArrayRef stride,
                           at::IntArrayRef padding, at::IntArrayRef dilation);

at::Tensor involution_transpose_cuda(const at::Tensor& input, const at::Tensor& weight, at::IntArrayRef output_size,
                                     at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation);

at::Tensor local_correlation_cuda(const at::Tensor& query, const at::Tensor& key, at::IntArrayRef kernel_size,
                                  int64_t groups, at::IntArrayRef stride, at::IntArrayRef padding,
                                  at::IntArrayRef dilation);

}  // namespace involution
