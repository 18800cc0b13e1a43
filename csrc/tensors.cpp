#include "tensors.h"

#include <c10/util/SmallVector.h>

#include <algorithm>

namespace involution {

namespace {

// The stride of an axis of size 1 is arbitrary in PyTorch; as 0 it takes part in no decision.
int64_t stride_of(const at::Tensor& tensor, int64_t axis) {
  return tensor.size(axis) == 1 ? 0 : tensor.stride(axis);
}

// Strides over a frame of 1 to 3 axes that starts at `first`, as three with leading axes of size 1.
void spatial_strides(const at::Tensor& tensor, int64_t first, int64_t axes, int64_t (&strides)[3]) {
  for (int64_t axis = 0; axis < axes; ++axis) strides[3 - axes + axis] = stride_of(tensor, first + axis);
}

ActivationStrides activation_strides(const at::Tensor& tensor, int64_t axes) {
  ActivationStrides strides{};
  strides.batch = stride_of(tensor, 0);
  strides.channel = stride_of(tensor, 1);
  spatial_strides(tensor, 2, axes, strides.space);
  return strides;
}

WeightStrides weight_strides(const at::Tensor& tensor, int64_t axes) {
  WeightStrides strides{};
  strides.batch = stride_of(tensor, 0);
  strides.group = stride_of(tensor, 1);
  spatial_strides(tensor, 2, axes, strides.kernel);
  spatial_strides(tensor, 2 + axes, axes, strides.space);
  return strides;
}

// Not a permuted view: autograd refuses to change a custom operator's view in place.
at::Tensor empty_in_order(at::IntArrayRef sizes, size_t leading, bool channels_last,
                          const at::TensorOptions& options) {
  if (!channels_last) return at::empty(sizes, options);
  // From the innermost axis outwards: 1 .. leading - 1 (channels, or groups and kernel points), then space.
  c10::DimVector strides(sizes.size(), 0);
  int64_t stride = 1;
  const auto place = [&](size_t begin, size_t end) {
    for (size_t axis = end; axis-- > begin;) {
      strides[axis] = stride;
      stride *= std::max<int64_t>(1, sizes[axis]);
    }
  };
  place(1, leading);
  place(leading, sizes.size());
  place(0, 1);
  return at::empty_strided(sizes, strides, options);
}

}  // namespace

bool is_channels_last(const at::Tensor& activation) {
  return activation.size(1) > 1 && activation.stride(1) == 1 && !activation.is_contiguous();
}

at::Tensor empty_activation(int64_t batch, int64_t channels, at::IntArrayRef space, bool channels_last,
                            const at::TensorOptions& options) {
  c10::DimVector sizes{batch, channels};
  sizes.append(space.begin(), space.end());
  return empty_in_order(sizes, 2, channels_last, options);
}

at::Tensor empty_weight(int64_t batch, int64_t groups, at::IntArrayRef kernel_size, at::IntArrayRef space,
                        bool channels_last, const at::TensorOptions& options) {
  c10::DimVector sizes{batch, groups};
  sizes.append(kernel_size.begin(), kernel_size.end());
  sizes.append(space.begin(), space.end());
  return empty_in_order(sizes, 2 + kernel_size.size(), channels_last, options);
}

at::IntArrayRef kernel_size_of(const at::Tensor& weight) {
  TORCH_CHECK_VALUE(
      weight.dim() == 4 || weight.dim() == 6 || weight.dim() == 8,
      "A kernel tensor is (batch, groups, *kernel_size, *space) with 4, 6 or 8 dimensions, but it has shape ",
      weight.sizes(), ".");
  return weight.sizes().slice(2, (weight.dim() - 2) / 2);
}

void check_operands(const char* operation, const at::Tensor& a, const at::Tensor& b, const Window& window) {
  const auto axes = static_cast<int64_t>(window.stride.size());
  TORCH_CHECK_VALUE(axes >= 1 && axes <= 3, operation, " works on 1 to 3 spatial axes, but stride has ", axes,
                    " elements.");
  TORCH_CHECK_VALUE(
      window.padding.size() == window.stride.size() && window.dilation.size() == window.stride.size(),
      operation, " needs stride, padding and dilation of one length, but they have ", axes, ", ",
      window.padding.size(), " and ", window.dilation.size(), " elements.");
  TORCH_CHECK_VALUE(a.dim() == axes + 2, operation, " with ", axes, " spatial axes needs a ", axes + 2,
                    "-dimensional first tensor, but it has shape ", a.sizes(), ".");
  TORCH_CHECK_TYPE(a.scalar_type() == b.scalar_type(), operation,
                   " needs tensors of one dtype, but they are ", a.scalar_type(), " and ", b.scalar_type(),
                   ".");
  TORCH_CHECK_VALUE(a.device() == b.device(), operation, " needs tensors on one device, but they are on ",
                    a.device(), " and ", b.device(), ".");
  for (int64_t axis = 0; axis < axes; ++axis) {
    TORCH_CHECK_VALUE(window.stride[axis] >= 1 && window.dilation[axis] >= 1, operation,
                      " needs strides and dilations of at least 1, but they are ", window.stride, " and ",
                      window.dilation, ".");
  }
}

Problem make_problem(const at::Tensor& x, const at::Tensor& w, const at::Tensor& y, const Window& window) {
  const auto axes = static_cast<int64_t>(window.stride.size());
  TORCH_CHECK_VALUE(x.dim() == axes + 2 && y.dim() == axes + 2 && w.dim() == 2 * axes + 2, "With ", axes,
                    " spatial axes the input and output have ", axes + 2,
                    " dimensions and the kernel tensor ", 2 * axes + 2, ", but their shapes are ", x.sizes(),
                    ", ", y.sizes(), " and ", w.sizes(), ".");
  const int64_t groups = w.size(1);
  TORCH_CHECK_VALUE(groups >= 1 && x.size(1) % groups == 0, "The ", x.size(1),
                    " channels of the input cannot be divided into ", groups, " groups.");
  TORCH_CHECK_VALUE(
      x.size(0) == y.size(0) && x.size(0) == w.size(0) && x.size(1) == y.size(1) &&
          w.sizes().slice(2 + axes) == y.sizes().slice(2),
      "The tensors of one involution must agree in batch, channels and output size, but the input is ",
      x.sizes(), ", the kernel tensor ", w.sizes(), " and the output ", y.sizes(), ".");
  Problem problem{};
  problem.batch = x.size(0);
  problem.groups = groups;
  problem.channels_per_group = x.size(1) / groups;
  for (int axis = 0; axis < 3; ++axis) {
    problem.input[axis] = problem.output[axis] = problem.kernel[axis] = 1;
    problem.stride[axis] = problem.dilation[axis] = 1;
  }
  for (int64_t axis = 0; axis < axes; ++axis) {
    const int64_t to = 3 - axes + axis;
    problem.input[to] = x.size(2 + axis);
    problem.output[to] = y.size(2 + axis);
    problem.kernel[to] = w.size(2 + axis);
    problem.stride[to] = window.stride[axis];
    problem.padding[to] = window.padding[axis];
    problem.dilation[to] = window.dilation[axis];
  }
  problem.x = activation_strides(x, axes);
  problem.y = activation_strides(y, axes);
  problem.w = weight_strides(w, axes);
  return problem;
}

}  // namespace involution
