// The three operators on CPU tensors: plan, and items of work shared among torch's threads.
#pragma once

#include <ATen/ATen.h>

#include <string>

namespace involution {

at::Tensor involution_cpu(const at::Tensor& input, const at::Tensor& weight, at::IntArrayRef stride,
                          at::IntArrayRef padding, at::IntArrayRef dilation);

at::Tensor involution_transpose_cpu(const at::Tensor& input, const at::Tensor& weight,
                                    at::IntArrayRef output_size, at::IntArrayRef stride,
                                    at::IntArrayRef padding, at::IntArrayRef dilation);

at::Tensor local_correlation_cpu(const at::Tensor& query, const at::Tensor& key, at::IntArrayRef kernel_size,
                                 int64_t groups, at::IntArrayRef stride, at::IntArrayRef padding,
                                 at::IntArrayRef dilation);

// The instruction set that the kernels use here: "avx512", "avx2" or "default".
std::string cpu_capability();

// Whether items of work are shared among torch's threads; not where the compiler had no OpenMP.
bool cpu_parallel();

}  // namespace involution
