// From tensors to a problem description: checks, frames, strides, and output tensors in the right format.
#pragma once

#include <ATen/ATen.h>

#include <vector>

#include "problem.h"

namespace involution {

// Sizes of the window along each of the 1 to 3 spatial axes.
struct Window {
  at::IntArrayRef kernel_size;
  at::IntArrayRef stride;
  at::IntArrayRef padding;
  at::IntArrayRef dilation;
};

// Channels are the innermost axis in memory, as in torch.channels_last, also for sequences and slices.
bool is_channels_last(const at::Tensor& activation);

// An uninitialised (B, C, *space) activation or (B, G, *K, *space) kernel tensor in either format.
at::Tensor empty_activation(int64_t batch, int64_t channels, at::IntArrayRef space, bool channels_last,
                            const at::TensorOptions& options);
at::Tensor empty_weight(int64_t batch, int64_t groups, at::IntArrayRef kernel_size, at::IntArrayRef space,
                        bool channels_last, const at::TensorOptions& options);

// The sizes of the kernel points of a (B, G, *K, *space) tensor.
at::IntArrayRef kernel_size_of(const at::Tensor& weight);

// The problem that x (input frame), w and y (output frame) span; raises where they do not fit each other.
Problem make_problem(const at::Tensor& x, const at::Tensor& w, const at::Tensor& y, const Window& window);

// Raises unless a and b are floating-point tensors of one dtype on one device, of 3 to 5 dimensions for `a`.
void check_operands(const char* operation, const at::Tensor& a, const at::Tensor& b, const Window& window);

}  // namespace involution
