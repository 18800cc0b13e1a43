// The three operators on one backend: checks, allocation and the problem description, the same for all of
// them.
//
// A Backend is constructed from the device of the tensors, stays while the operator runs, and has
//
//   void run(Operation, const Problem&, const at::Tensor& first, const at::Tensor& second, const at::Tensor& result)
//
// which fills `result`, one of x, w and y (problem.h), from the other two in the operator's own order;
// nothing is empty. The backend registers the operators at the end of its file.
#pragma once

#include <torch/library.h>

#include "tensors.h"

namespace involution {

template <typename Backend>
struct Operators {
  static at::Tensor involution(const at::Tensor& input, const at::Tensor& weight, at::IntArrayRef stride,
                               at::IntArrayRef padding, at::IntArrayRef dilation) {
    const Window window{kernel_size_of(weight), stride, padding, dilation};
    check_operands("involution", input, weight, window);
    Backend backend(input.device());
    const at::IntArrayRef space = weight.sizes().slice(2 + window.kernel_size.size());
    at::Tensor output =
        empty_activation(input.size(0), input.size(1), space, is_channels_last(input), input.options());
    run(backend, Operation::kInvolution, input, weight, output, window);
    return output;
  }

  static at::Tensor involution_transpose(const at::Tensor& input, const at::Tensor& weight,
                                         at::IntArrayRef output_size, at::IntArrayRef stride,
                                         at::IntArrayRef padding, at::IntArrayRef dilation) {
    const Window window{kernel_size_of(weight), stride, padding, dilation};
    check_operands("involution_transpose", input, weight, window);
    Backend backend(input.device());
    at::Tensor output =
        empty_activation(input.size(0), input.size(1), output_size, is_channels_last(input), input.options());
    run(backend, Operation::kTranspose, output, weight, input, window);
    return output;
  }

  static at::Tensor local_correlation(const at::Tensor& query, const at::Tensor& key,
                                      at::IntArrayRef kernel_size, int64_t groups, at::IntArrayRef stride,
                                      at::IntArrayRef padding, at::IntArrayRef dilation) {
    const Window window{kernel_size, stride, padding, dilation};
    check_operands("local_correlation", query, key, window);
    Backend backend(query.device());
    at::Tensor weight = empty_weight(query.size(0), groups, kernel_size, query.sizes().slice(2),
                                     is_channels_last(query), query.options());
    run(backend, Operation::kCorrelation, key, weight, query, window);
    return weight;
  }

 private:
  // Fills one of x, w and y, the operation's result, from the other two.
  static void run(Backend& backend, Operation operation, const at::Tensor& x, const at::Tensor& w,
                  const at::Tensor& y, const Window& window) {
    const Problem problem = make_problem(x, w, y, window);
    const bool correlation = operation == Operation::kCorrelation,
               involution = operation == Operation::kInvolution;
    const at::Tensor& first = involution ? x : y;
    const at::Tensor& second = correlation ? x : w;
    const at::Tensor& result = correlation ? w : involution ? y : x;
    if (result.numel() == 0) return;
    if (first.numel() == 0 || second.numel() == 0) {
      result.zero_();
      return;
    }
    backend.run(operation, problem, first, second, result);
  }
};

// Registers the operators of a backend under its dispatch key.
template <typename Backend>
void register_operators(torch::Library& library) {
  library.impl("involution", &Operators<Backend>::involution);
  library.impl("involution_transpose", &Operators<Backend>::involution_transpose);
  library.impl("local_correlation", &Operators<Backend>::local_correlation);
}

[[noreturn]] inline void refuse_dtype(at::ScalarType dtype) {
  C10_THROW_ERROR(
      TypeError, c10::str("Involution works on float64, float32, float16 and bfloat16, not on ", dtype, "."));
}

}  // namespace involution
