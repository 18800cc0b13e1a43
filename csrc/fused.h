// The involution layer from its reduced features on, as one operator: kernels are made from the features of
// every position and applied there.
//
//   kernels[b, g, k, o] = sum_r weight[(g, k), r] * features[b, r, o] + bias[(g, k)]
//   output = involution(input, kernels), then * scale[c] + shift[c] and ReLU where these are asked for
//
// with input (B, C, *In), features (B, R, *Out), weight (G * prod(K), R) and bias (G * prod(K)).
#pragma once

#include <ATen/ATen.h>

#include <optional>

namespace involution {

// Raises unless the arguments fit each other, as compose_fused_involution's; returns the groups G.
int64_t check_fused_operands(const at::Tensor& input, const at::Tensor& features, const at::Tensor& weight,
                             const std::optional<at::Tensor>& bias, at::IntArrayRef kernel_size,
                             at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                             const std::optional<at::Tensor>& scale, const std::optional<at::Tensor>& shift);

// By the operators that exist: a matrix product that writes the kernel tensor, the involution, and the
// epilogue in float32 or better. For every device, dtype, format and size.
at::Tensor compose_fused_involution(const at::Tensor& input, const at::Tensor& features,
                                    const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                                    at::IntArrayRef kernel_size, at::IntArrayRef stride,
                                    at::IntArrayRef padding, at::IntArrayRef dilation,
                                    const std::optional<at::Tensor>& scale,
                                    const std::optional<at::Tensor>& shift, bool relu);

}  // namespace involution
