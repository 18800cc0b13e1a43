// The three operators on one backend: checks, allocation and the problem description, the same for all of
// them.
//
// A Backend is constructed from the device of the tensors, stays while the operator runs, and has
//
//   void run(Operation, const Problem&, const at::Tensor& a, const at::Tensor& b, at::Tensor& out)
//
// which fills `out`, one of x, w and y, from the other two in the operator's own order; nothing is empty.
#pragma once

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
    at::Tensor out =
        empty_activation(input.size(0), input.size(1), space, is_channels_last(input), input.options());
    run(backend, Operation::kInvolution, input, weight, out, window, input, weight, out);
    return out;
  }

  static at::Tensor involution_transpose(const at::Tensor& input, const at::Tensor& weight,
                                         at::IntArrayRef output_size, at::IntArrayRef stride,
                                         at::IntArrayRef padding, at::IntArrayRef dilation) {
    const Window window{kernel_size_of(weight), stride, padding, dilation};
    check_operands("involution_transpose", input, weight, window);
    Backend backend(input.device());
    at::Tensor out =
        empty_activation(input.size(0), input.size(1), output_size, is_channels_last(input), input.options());
    run(backend, Operation::kTranspose, out, weight, input, window, input, weight, out);
    return out;
  }

  static at::Tensor local_correlation(const at::Tensor& query, const at::Tensor& key,
                                      at::IntArrayRef kernel_size, int64_t groups, at::IntArrayRef stride,
                                      at::IntArrayRef padding, at::IntArrayRef dilation) {
    const Window window{kernel_size, stride, padding, dilation};
    check_operands("local_correlation", query, key, window);
    Backend backend(query.device());
    at::Tensor out = empty_weight(query.size(0), groups, kernel_size, query.sizes().slice(2),
                                  is_channels_last(query), query.options());
    run(backend, Operation::kCorrelation, key, out, query, window, query, key, out);
    return out;
  }

 private:
  static void run(Backend& backend, Operation operation, const at::Tensor& x, const at::Tensor& w,
                  const at::Tensor& y, const Window& window, const at::Tensor& a, const at::Tensor& b,
                  at::Tensor& out) {
    const Problem problem = make_problem(x, w, y, window);
    if (out.numel() == 0) return;
    if (a.numel() == 0 || b.numel() == 0) {
      out.zero_();
      return;
    }
    backend.run(operation, problem, a, b, out);
  }
};

[[noreturn]] inline void refuse_dtype(at::ScalarType dtype) {
  C10_THROW_ERROR(
      TypeError, c10::str("Involution works on float64, float32, float16 and bfloat16, not on ", dtype, "."));
}

}  // namespace involution
