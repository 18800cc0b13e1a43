#include "fused.h"

#include <c10/util/SmallVector.h>
#include <c10/util/accumulate.h>
#include <torch/library.h>

#include "dispatch.h"
#include "tensors.h"

namespace involution {

namespace {

using at::Tensor;

constexpr const char* kName = "fused_involution";

void check_epilogue(const Tensor& input, const std::optional<Tensor>& scale,
                    const std::optional<Tensor>& shift) {
  TORCH_CHECK_VALUE(scale.has_value() == shift.has_value(), kName,
                    " takes scale and shift together or neither, but only ", scale ? "scale" : "shift",
                    " is given.");
  if (!scale) return;
  for (const auto& [name, factor] : {std::pair("scale", &*scale), std::pair("shift", &*shift)}) {
    TORCH_CHECK_TYPE(factor->scalar_type() == at::kFloat, kName, " needs a ", name, " of float32, but it is ",
                     factor->scalar_type(), ".");
    TORCH_CHECK_VALUE(factor->dim() == 1 && factor->size(0) == input.size(1), kName, " needs a ", name,
                      " of one number for each of the ", input.size(1), " channels, but it has shape ",
                      factor->sizes(), ".");
    TORCH_CHECK_VALUE(factor->device() == input.device(), kName,
                      " needs tensors on one device, but input is on ", input.device(), " and ", name, " on ",
                      factor->device(), ".");
  }
}

// (B, G, *K, *Out), in the storage format of the features: channels_last makes groups and points innermost.
Tensor make_kernels(const Tensor& features, const Tensor& weight, const std::optional<Tensor>& bias,
                    int64_t groups, at::IntArrayRef kernel_size) {
  c10::DimVector points{groups};
  points.append(kernel_size.begin(), kernel_size.end());
  if (is_channels_last(features))
    return at::linear(features.movedim(1, -1), weight, bias).movedim(-1, 1).unflatten(1, points);
  const Tensor flat = features.flatten(2);
  const Tensor weights = weight.expand({features.size(0), weight.size(0), weight.size(1)});
  const Tensor kernels = bias ? at::baddbmm(bias->unsqueeze(1), weights, flat) : at::bmm(weights, flat);
  c10::DimVector sizes{features.size(0)};
  sizes.append(points.begin(), points.end());
  sizes.append(features.sizes().begin() + 2, features.sizes().end());
  return kernels.reshape(sizes);
}

Tensor apply_epilogue(const Tensor& output, const std::optional<Tensor>& scale,
                      const std::optional<Tensor>& shift, bool relu) {
  if (!scale) return relu ? output.relu() : output;
  c10::DimVector channels(output.dim() - 1, 1);
  channels[0] = output.size(1);
  const Tensor wide = output.to(at::promote_types(output.scalar_type(), at::kFloat));
  Tensor result = at::addcmul(shift->view(channels).to(wide.scalar_type()), wide,
                              scale->view(channels).to(wide.scalar_type()));
  if (relu) result.relu_();
  return result.to(output.scalar_type());
}

}  // namespace

int64_t check_fused_operands(const Tensor& input, const Tensor& features, const Tensor& weight,
                             const std::optional<Tensor>& bias, at::IntArrayRef kernel_size,
                             at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                             const std::optional<Tensor>& scale, const std::optional<Tensor>& shift) {
  const Window window{kernel_size, stride, padding, dilation};
  check_operands(kName, input, features, window);
  check_operands(kName, input, weight, window);
  if (bias) check_operands(kName, input, *bias, window);
  const auto axes = static_cast<int64_t>(stride.size());
  TORCH_CHECK_VALUE(kernel_size.size() == stride.size(), kName,
                    " needs kernel_size and stride of one length, but they have ", kernel_size.size(),
                    " and ", axes, " elements.");
  for (const int64_t size : kernel_size) {
    TORCH_CHECK_VALUE(size >= 1, kName, " needs kernel sizes of at least 1, but they are ", kernel_size, ".");
  }
  TORCH_CHECK_VALUE(features.dim() == axes + 2 && features.size(0) == input.size(0), kName,
                    " needs features of ", axes + 2, " dimensions and the batch size of input, ",
                    input.size(0), ", but their shape is ", features.sizes(), ".");
  TORCH_CHECK_VALUE(weight.dim() == 2 && weight.size(1) == features.size(1), kName,
                    " needs a weight of (groups * kernel points, ", features.size(1),
                    "), one column for each channel of features, but its shape is ", weight.sizes(), ".");
  const int64_t points = c10::multiply_integers(kernel_size);
  TORCH_CHECK_VALUE(weight.size(0) >= 1 && weight.size(0) % points == 0, kName,
                    " needs a weight with a multiple of the ", points, " points of kernel_size ", kernel_size,
                    " rows, but its shape is ", weight.sizes(), ".");
  const int64_t groups = weight.size(0) / points;
  TORCH_CHECK_VALUE(input.size(1) % groups == 0, kName, ": the ", input.size(1),
                    " channels of input cannot be divided into the ", groups, " groups of a weight of shape ",
                    weight.sizes(), ".");
  TORCH_CHECK_VALUE(!bias || (bias->dim() == 1 && bias->size(0) == weight.size(0)), kName,
                    " needs a bias of ", weight.size(0),
                    " numbers, one for each row of weight, but its shape is ", bias->sizes(), ".");
  check_epilogue(input, scale, shift);
  return groups;
}

Tensor compose_fused_involution(const Tensor& input, const Tensor& features, const Tensor& weight,
                                const std::optional<Tensor>& bias, at::IntArrayRef kernel_size,
                                at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                                const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
                                bool relu) {
  const int64_t groups = check_fused_operands(input, features, weight, bias, kernel_size, stride, padding,
                                              dilation, scale, shift);
  const Tensor kernels = make_kernels(features, weight, bias, groups, kernel_size);
  const Tensor output = dispatch::call<dispatch::Involution>(input, kernels, c10::fromIntArrayRefSlow(stride),
                                                             c10::fromIntArrayRefSlow(padding),
                                                             c10::fromIntArrayRefSlow(dilation));
  return apply_epilogue(output, scale, shift, relu);
}

TORCH_LIBRARY_IMPL(involution, CompositeExplicitAutograd, library) {
  library.impl("fused_involution", &compose_fused_involution);
}

}  // namespace involution
