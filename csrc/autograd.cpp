// Derivatives of the three operators, made of the three operators.
//
// All are partial contractions of one trilinear form T(x, w, y) (involution.h), so the gradient of each is
// made of the other two, and the set is closed under differentiation to any order:
//
//   operator                     gradient with respect to its first tensor   with respect to its second
//   involution(x, w)             involution_transpose(grad, w)               local_correlation(grad, x)
//   involution_transpose(y, w)   involution(grad, w)                         local_correlation(y, grad)
//   local_correlation(y, x)      involution(x, grad)                         involution_transpose(y, grad)
//
// Being linear in both tensors, each is its own tangent, by the product rule.
//
// A kernel here runs wherever autograd may have to do with a tensor: in eager mode once, under torch.func
// once for each level of its transforms, each of which sees this level's requires_grad and tangents alone.
// The same rules in Python, for installations without this library, are in involution/autograd.py.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>

#include <memory>
#include <type_traits>
#include <vector>

#include "dispatch.h"

namespace involution {

namespace {

using at::Tensor;
using dispatch::Correlation;
using dispatch::Involution;
using dispatch::Sizes;
using dispatch::Transpose;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Stride, padding and dilation: with the shapes of the tensors, all that a derivative has to know.
struct Steps {
  Sizes stride;
  Sizes padding;
  Sizes dilation;
};

Sizes kernel_size_of(const Tensor& weight, const Steps& steps) {
  return weight.sym_sizes().slice(2, steps.stride.size());
}

// The rules of the table above, one struct for each row; `grad` is that of the operator's result.
struct InvolutionRule {
  using Operator = Involution;
  static Tensor first_gradient(const Tensor& grad, const Tensor& input, const Tensor& weight,
                               const Steps& steps) {
    return dispatch::call<Transpose>(grad, weight, input.sym_sizes().slice(2), steps.stride, steps.padding,
                                     steps.dilation);
  }
  static Tensor second_gradient(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                const Steps& steps) {
    return dispatch::call<Correlation>(grad, input, kernel_size_of(weight, steps), weight.sym_size(1),
                                       steps.stride, steps.padding, steps.dilation);
  }
};

struct TransposeRule {
  using Operator = Transpose;
  static Tensor first_gradient(const Tensor& grad, const Tensor&, const Tensor& weight, const Steps& steps) {
    return dispatch::call<Involution>(grad, weight, steps.stride, steps.padding, steps.dilation);
  }
  static Tensor second_gradient(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                const Steps& steps) {
    return dispatch::call<Correlation>(input, grad, kernel_size_of(weight, steps), weight.sym_size(1),
                                       steps.stride, steps.padding, steps.dilation);
  }
};

struct CorrelationRule {
  using Operator = Correlation;
  static Tensor first_gradient(const Tensor& grad, const Tensor&, const Tensor& key, const Steps& steps) {
    return dispatch::call<Involution>(key, grad, steps.stride, steps.padding, steps.dilation);
  }
  static Tensor second_gradient(const Tensor& grad, const Tensor& query, const Tensor& key,
                                const Steps& steps) {
    return dispatch::call<Transpose>(query, grad, key.sym_sizes().slice(2), steps.stride, steps.padding,
                                     steps.dilation);
  }
};

// What a node of the graph does in the backward pass.
template <typename Rule>
struct Derivative {
  static constexpr bool is_traceable =
      true;  // it uses nothing but its context: compiled autograd may trace it
  static constexpr const char* kSteps = "stride, padding, dilation";

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    variable_list result(2);  // undefined: no gradient
    if (!grads[0].defined()) return result;
    const variable_list saved = context->get_saved_variables();
    const std::vector<c10::SymInt> sizes = context->saved_data[kSteps].toSymIntVector();
    const size_t axes = sizes.size() / 3;
    const Sizes all(sizes);
    const Steps steps{all.slice(0, axes), all.slice(axes, axes), all.slice(2 * axes, axes)};
    if (context->needs_input_grad(0)) result[0] = Rule::first_gradient(grads[0], saved[0], saved[1], steps);
    if (context->needs_input_grad(1)) result[1] = Rule::second_gradient(grads[0], saved[0], saved[1], steps);
    return result;
  }
};

// Nodes are held by shared_ptr in older versions of torch, by intrusive_ptr in newer ones.
template <typename Node>
auto make_node() {
  using Pointer = decltype(torch::autograd::Edge::function);
  if constexpr (std::is_same_v<Pointer, std::shared_ptr<torch::autograd::Node>>) {
    return std::shared_ptr<Node>(new Node(), [](Node* node) { deleteNode(node); });  // torch::autograd's
  } else {
    return c10::make_intrusive<Node>();
  }
}

// Makes `result` the outcome of a new node of the graph.
//
// This is torch::autograd::Function<T>::apply without what that refuses, torch.func and tangents:
// differentiable() computes one level of torch.func at a time, and its tangents itself, as torch's own
// operators do.
template <typename Rule>
void record(const Tensor& result, const Tensor& first, const Tensor& second, const Steps& steps) {
  const auto node = make_node<torch::autograd::CppNode<Derivative<Rule>>>();
  node->set_ctx_grad_fn(node);
  node->set_next_edges(torch::autograd::collect_next_edges(first, second));
  node->is_variable_input_ = {true, true};
  node->input_info_.emplace_back(first);
  node->input_info_.emplace_back(second);
  node->ctx_.save_for_backward({first, second});
  std::vector<c10::SymInt> sizes;
  sizes.reserve(3 * steps.stride.size());
  for (const Sizes part : {steps.stride, steps.padding, steps.dilation})
    sizes.insert(sizes.end(), part.begin(), part.end());
  node->ctx_.saved_data[Derivative<Rule>::kSteps] = Sizes(sizes);
  node->ctx_.set_materialize_grads(false);
  torch::autograd::set_history(result, node);
  node->output_info_.emplace_back(result);
  node->save_variables_to_ctx();
}

// An operator's result with its history and its tangent. `compute` calls the operator on two tensors.
template <typename Rule, typename Compute>
Tensor differentiable(const Tensor& first, const Tensor& second, const Steps& steps, const Compute& compute) {
  const Tensor result = [&] {
    const at::AutoDispatchBelowAutograd below;
    return compute(first, second);
  }();
  const Tensor first_tangent = first._fw_grad(/*level=*/0);
  const Tensor second_tangent = second._fw_grad(/*level=*/0);
  const bool has_tangent = first_tangent.defined() || second_tangent.defined();
  const bool recorded = at::GradMode::is_enabled() && (first.requires_grad() || second.requires_grad());
  if (recorded) record<Rule>(result, first, second, steps);
  if (has_tangent) {
    Tensor tangent;
    if (first_tangent.defined()) tangent = compute(first_tangent, second._fw_primal(/*level=*/0));
    if (second_tangent.defined()) {
      const Tensor term = compute(first._fw_primal(/*level=*/0), second_tangent);
      tangent = tangent.defined() ? tangent + term : term;
    }
    result._set_fw_grad(tangent, /*level=*/0, /*is_inplace_op=*/false);
  }
  return result;
}

Tensor involution_autograd(const Tensor& input, const Tensor& weight, Sizes stride, Sizes padding,
                           Sizes dilation) {
  return differentiable<InvolutionRule>(
      input, weight, {stride, padding, dilation}, [&](const Tensor& first, const Tensor& second) {
        return dispatch::call<Involution>(first, second, stride, padding, dilation);
      });
}

Tensor involution_transpose_autograd(const Tensor& input, const Tensor& weight, Sizes output_size,
                                     Sizes stride, Sizes padding, Sizes dilation) {
  return differentiable<TransposeRule>(
      input, weight, {stride, padding, dilation}, [&](const Tensor& first, const Tensor& second) {
        return dispatch::call<Transpose>(first, second, output_size, stride, padding, dilation);
      });
}

Tensor local_correlation_autograd(const Tensor& query, const Tensor& key, Sizes kernel_size,
                                  c10::SymInt groups, Sizes stride, Sizes padding, Sizes dilation) {
  return differentiable<CorrelationRule>(
      query, key, {stride, padding, dilation}, [&](const Tensor& first, const Tensor& second) {
        return dispatch::call<Correlation>(first, second, kernel_size, groups, stride, padding, dilation);
      });
}

}  // namespace

TORCH_LIBRARY_IMPL(involution, Autograd, library) {
  library.impl("involution", &involution_autograd);
  library.impl("involution_transpose", &involution_transpose_autograd);
  library.impl("local_correlation", &local_correlation_autograd);
}

}  // namespace involution
