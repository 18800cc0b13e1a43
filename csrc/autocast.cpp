// The operators under torch.autocast: their tensors are cast to its dtype, in which the result comes back.
//
// As for torch's convolutions: float64 is left alone, and so is a tensor on another device than autocast's.
// The kernels sum in float32 whatever they are given, and the backward pass works on the tensors as cast.
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include <optional>

#include "dispatch.h"

namespace involution {

namespace {

using at::Tensor;
using dispatch::Correlation;
using dispatch::FusedInvolution;
using dispatch::Involution;
using dispatch::Sizes;
using dispatch::Transpose;

template <at::DeviceType device, typename Operator, typename... Arguments>
Tensor call_in_autocast_dtype(const Tensor& first, const Tensor& second, Arguments&&... arguments) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(
      c10::DispatchKeySet(at::autocast::get_autocast_dispatch_key_from_device_type(device)));
  const at::ScalarType dtype = at::autocast::get_autocast_dtype(device);
  return dispatch::call<Operator>(at::autocast::cached_cast(dtype, first, device),
                                  at::autocast::cached_cast(dtype, second, device),
                                  std::forward<Arguments>(arguments)...);
}

template <at::DeviceType device>
Tensor involution_autocast(const Tensor& input, const Tensor& weight, Sizes stride, Sizes padding,
                           Sizes dilation) {
  return call_in_autocast_dtype<device, Involution>(input, weight, stride, padding, dilation);
}

template <at::DeviceType device>
Tensor involution_transpose_autocast(const Tensor& input, const Tensor& weight, Sizes output_size,
                                     Sizes stride, Sizes padding, Sizes dilation) {
  return call_in_autocast_dtype<device, Transpose>(input, weight, output_size, stride, padding, dilation);
}

template <at::DeviceType device>
Tensor local_correlation_autocast(const Tensor& query, const Tensor& key, Sizes kernel_size,
                                  c10::SymInt groups, Sizes stride, Sizes padding, Sizes dilation) {
  return call_in_autocast_dtype<device, Correlation>(query, key, kernel_size, groups, stride, padding,
                                                     dilation);
}

// scale and shift stay as they are: the epilogue is applied to float32 sums.
template <at::DeviceType device>
Tensor fused_involution_autocast(const Tensor& input, const Tensor& features, const Tensor& weight,
                                 const std::optional<Tensor>& bias, Sizes kernel_size, Sizes stride,
                                 Sizes padding, Sizes dilation, const std::optional<Tensor>& scale,
                                 const std::optional<Tensor>& shift, bool relu) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(
      c10::DispatchKeySet(at::autocast::get_autocast_dispatch_key_from_device_type(device)));
  const at::ScalarType dtype = at::autocast::get_autocast_dtype(device);
  const auto cast = [&](const Tensor& tensor) { return at::autocast::cached_cast(dtype, tensor, device); };
  return dispatch::call<FusedInvolution>(cast(input), cast(features), cast(weight),
                                         bias ? std::optional<Tensor>(cast(*bias)) : std::nullopt,
                                         kernel_size, stride, padding, dilation, scale, shift, relu);
}

template <at::DeviceType device>
void register_kernels(torch::Library& library) {
  library.impl("involution", &involution_autocast<device>);
  library.impl("involution_transpose", &involution_transpose_autocast<device>);
  library.impl("local_correlation", &local_correlation_autocast<device>);
  library.impl("fused_involution", &fused_involution_autocast<device>);
}

}  // namespace

TORCH_LIBRARY_IMPL(involution, AutocastCPU, library) { register_kernels<at::kCPU>(library); }

TORCH_LIBRARY_IMPL(involution, AutocastCUDA, library) { register_kernels<at::kCUDA>(library); }

}  // namespace involution
