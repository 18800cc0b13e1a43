// What the fused involution and its gradients ask of CUDA tensors.
#pragma once

#include <ATen/ATen.h>

#include <optional>

#include "cuda/fused_plan.h"

namespace involution {

// Whether the kernels can read the tensor: channels innermost, nothing between elements, 16 bytes at a time.
bool is_dense_channels_last(const at::Tensor& map);

// Whether dtype, storage and frames are those of the kernels; the plans know the rest.
bool has_fused_kernel(const at::Tensor& input, const at::Tensor& features, at::IntArrayRef kernel_size,
                      at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation);

FusedProblem fused_problem(const at::Tensor& input, const at::Tensor& features, int64_t groups,
                           at::IntArrayRef kernel_size, at::IntArrayRef stride);

// Contiguous, at an address that the kernels can read; not defined where there is none.
at::Tensor readable(const std::optional<at::Tensor>& tensor);

}  // namespace involution
