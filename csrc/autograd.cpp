// Derivatives of the three operators, made of the three operators.
//
// All are partial contractions of one trilinear form T(x, w, y) (problem.h), so the gradient of each is
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

// Everything but the tensors: the window, the spatial size of x, and the kernel tensor's sizes and groups.
struct Geometry {
  Sizes stride;
  Sizes padding;
  Sizes dilation;
  Sizes space;
  Sizes kernel_size;
  c10::SymInt groups;
};

// One list, because a node keeps its lists by name and finds one faster than six.
std::vector<c10::SymInt> packed(const Geometry& geometry) {
  std::vector<c10::SymInt> result;
  result.reserve(5 * geometry.stride.size() + 1);
  for (const Sizes part :
       {geometry.stride, geometry.padding, geometry.dilation, geometry.space, geometry.kernel_size})
    result.insert(result.end(), part.begin(), part.end());
  result.push_back(geometry.groups);
  return result;
}

// A view of what `packed` made.
Geometry unpacked(Sizes all) {
  const size_t axes = all.size() / 5;
  const auto part = [&](size_t index) { return all.slice(index * axes, axes); };
  return {part(0), part(1), part(2), part(3), part(4), all.back()};
}

Tensor involve(const Tensor& x, const Tensor& w, const Geometry& geometry) {
  return dispatch::call<Involution>(x, w, geometry.stride, geometry.padding, geometry.dilation);
}

Tensor transpose(const Tensor& y, const Tensor& w, const Geometry& geometry) {
  return dispatch::call<Transpose>(y, w, geometry.space, geometry.stride, geometry.padding,
                                   geometry.dilation);
}

Tensor correlate(const Tensor& y, const Tensor& x, const Geometry& geometry) {
  return dispatch::call<Correlation>(y, x, geometry.kernel_size, geometry.groups, geometry.stride,
                                     geometry.padding, geometry.dilation);
}

// The rows of the table above. Neither gradient needs the tensor that it belongs to.
struct InvolutionRule {
  static Tensor first_gradient(const Tensor& grad, const Tensor& weight, const Geometry& geometry) {
    return transpose(grad, weight, geometry);
  }
  static Tensor second_gradient(const Tensor& grad, const Tensor& input, const Geometry& geometry) {
    return correlate(grad, input, geometry);
  }
};

struct TransposeRule {
  static Tensor first_gradient(const Tensor& grad, const Tensor& weight, const Geometry& geometry) {
    return involve(grad, weight, geometry);
  }
  static Tensor second_gradient(const Tensor& grad, const Tensor& input, const Geometry& geometry) {
    return correlate(input, grad, geometry);
  }
};

struct CorrelationRule {
  static Tensor first_gradient(const Tensor& grad, const Tensor& key, const Geometry& geometry) {
    return involve(key, grad, geometry);
  }
  static Tensor second_gradient(const Tensor& grad, const Tensor& query, const Geometry& geometry) {
    return transpose(query, grad, geometry);
  }
};

// What a node of the graph does in the backward pass.
template <typename Rule>
struct Derivative {
  static constexpr bool is_traceable =
      true;  // it uses nothing but its context: compiled autograd may trace it
  static constexpr const char* kGeometry = "geometry";

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    variable_list result(2);  // undefined: no gradient
    if (!grads[0].defined()) return result;
    const variable_list saved = context->get_saved_variables();
    const std::vector<c10::SymInt> sizes = context->saved_data[kGeometry].toSymIntVector();
    const Geometry geometry = unpacked(sizes);
    if (context->needs_input_grad(0)) result[0] = Rule::first_gradient(grads[0], saved[1], geometry);
    if (context->needs_input_grad(1)) result[1] = Rule::second_gradient(grads[0], saved[0], geometry);
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
void record(const Tensor& result, const Tensor& first, const Tensor& second, const Geometry& geometry) {
  const auto node = make_node<torch::autograd::CppNode<Derivative<Rule>>>();
  node->set_ctx_grad_fn(node);
  node->set_next_edges(torch::autograd::collect_next_edges(first, second));
  node->is_variable_input_ = {true, true};
  node->input_info_.emplace_back(first);
  node->input_info_.emplace_back(second);
  // Each for the other's gradient. A kernel tensor is large: it is not kept where only it has a gradient.
  node->ctx_.save_for_backward(
      {second.requires_grad() ? first : Tensor(), first.requires_grad() ? second : Tensor()});
  node->ctx_.saved_data[Derivative<Rule>::kGeometry] = Sizes(packed(geometry));
  node->ctx_.set_materialize_grads(false);
  torch::autograd::set_history(result, node);
  node->output_info_.emplace_back(result);
  node->save_variables_to_ctx();
}

// An operator's result with its history and its tangent. `compute` calls the operator on two tensors;
// `geometry` is asked only after it, which checks the shapes.
template <typename Rule, typename Compute, typename MakeGeometry>
Tensor differentiable(const Tensor& first, const Tensor& second, const Compute& compute,
                      const MakeGeometry& geometry) {
  const Tensor result = [&] {
    const at::AutoDispatchBelowAutograd below;
    return compute(first, second);
  }();
  if (at::GradMode::is_enabled() && (first.requires_grad() || second.requires_grad()))
    record<Rule>(result, first, second, geometry());

  const Tensor first_tangent = first._fw_grad(/*level=*/0);
  const Tensor second_tangent = second._fw_grad(/*level=*/0);
  if (first_tangent.defined() || second_tangent.defined()) {
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
      input, weight,
      [&](const Tensor& first, const Tensor& second) {
        return dispatch::call<Involution>(first, second, stride, padding, dilation);
      },
      [&] {
        return Geometry{stride,
                        padding,
                        dilation,
                        input.sym_sizes().slice(2),
                        weight.sym_sizes().slice(2, stride.size()),
                        weight.sym_size(1)};
      });
}

Tensor involution_transpose_autograd(const Tensor& input, const Tensor& weight, Sizes output_size,
                                     Sizes stride, Sizes padding, Sizes dilation) {
  return differentiable<TransposeRule>(
      input, weight,
      [&](const Tensor& first, const Tensor& second) {
        return dispatch::call<Transpose>(first, second, output_size, stride, padding, dilation);
      },
      [&] {
        return Geometry{stride,
                        padding,
                        dilation,
                        output_size,
                        weight.sym_sizes().slice(2, stride.size()),
                        weight.sym_size(1)};
      });
}

Tensor local_correlation_autograd(const Tensor& query, const Tensor& key, Sizes kernel_size,
                                  c10::SymInt groups, Sizes stride, Sizes padding, Sizes dilation) {
  return differentiable<CorrelationRule>(
      query, key,
      [&](const Tensor& first, const Tensor& second) {
        return dispatch::call<Correlation>(first, second, kernel_size, groups, stride, padding, dilation);
      },
      [&] { return Geometry{stride, padding, dilation, key.sym_sizes().slice(2), kernel_size, groups}; });
}

}  // namespace

TORCH_LIBRARY_IMPL(involution, Autograd, library) {
  library.impl("involution", &involution_autograd);
  library.impl("involution_transpose", &involution_transpose_autograd);
  library.impl("local_correlation", &local_correlation_autograd);
}

}  // namespace involution
