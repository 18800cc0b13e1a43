// The operators as C++ calls them: through the whole dispatcher, from whatever key is next.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <optional>

namespace involution::dispatch {

using Sizes = c10::SymIntArrayRef;

// dT/dy of the trilinear form in problem.h.
struct Involution {
  static constexpr const char* kName = "involution::involution";
  using Signature = at::Tensor(const at::Tensor& input, const at::Tensor& weight, Sizes stride, Sizes padding,
                               Sizes dilation);
};

// dT/dx.
struct Transpose {
  static constexpr const char* kName = "involution::involution_transpose";
  using Signature = at::Tensor(const at::Tensor& input, const at::Tensor& weight, Sizes output_size,
                               Sizes stride, Sizes padding, Sizes dilation);
};

// dT/dw.
struct Correlation {
  static constexpr const char* kName = "involution::local_correlation";
  using Signature = at::Tensor(const at::Tensor& query, const at::Tensor& key, Sizes kernel_size,
                               c10::SymInt groups, Sizes stride, Sizes padding, Sizes dilation);
};

// An involution by kernels that it makes itself (fused.h).
struct FusedInvolution {
  static constexpr const char* kName = "involution::fused_involution";
  using Optional = std::optional<at::Tensor>;
  using Signature = at::Tensor(const at::Tensor& input, const at::Tensor& features, const at::Tensor& weight,
                               const Optional& bias, Sizes kernel_size, Sizes stride, Sizes padding,
                               Sizes dilation, const Optional& scale, const Optional& shift, bool relu);
};

// The operator, found once.
template <typename Operator>
const c10::TypedOperatorHandle<typename Operator::Signature>& handle() {
  static const auto found = c10::Dispatcher::singleton()
                                .findSchemaOrThrow(Operator::kName, "")
                                .template typed<typename Operator::Signature>();
  return found;
}

template <typename Operator, typename... Arguments>
at::Tensor call(Arguments&&... arguments) {
  return handle<Operator>().call(std::forward<Arguments>(arguments)...);
}

}  // namespace involution::dispatch
