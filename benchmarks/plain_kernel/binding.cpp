// The plain kernel as functions of PyTorch tensors.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/extension.h>

#include <limits>

#include "plain.h"

namespace {

using at::Tensor;

plain::Type type_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return plain::Type::kFloat32;
    case at::kHalf:
      return plain::Type::kFloat16;
    case at::kBFloat16:
      return plain::Type::kBFloat16;
    default:
      TORCH_CHECK(false, "The plain kernel takes float32, float16 and bfloat16, but was given ",
                  tensor.scalar_type(), ".");
  }
}

void check(const Tensor& a, const Tensor& b) {
  TORCH_CHECK(a.is_cuda() && b.is_cuda() && a.is_contiguous() && b.is_contiguous(),
              "The plain kernel takes contiguous CUDA tensors.");
  TORCH_CHECK(a.scalar_type() == b.scalar_type(),
              "The plain kernel takes two tensors of one dtype, but was given ", a.scalar_type(), " and ",
              b.scalar_type(), ".");
}

int narrow(int64_t value) {
  TORCH_CHECK(value <= std::numeric_limits<int>::max(), "A size of ", value,
              " is too large for the plain kernel.");
  return static_cast<int>(value);
}

plain::Problem problem(at::IntArrayRef x, at::IntArrayRef w, int64_t stride, int64_t pad_height,
                       int64_t pad_width) {
  return {narrow(x[0]), narrow(x[1]), narrow(w[1]), narrow(x[2]),   narrow(x[3]),       narrow(w[4]),
          narrow(w[5]), narrow(w[2]), narrow(w[3]), narrow(stride), narrow(pad_height), narrow(pad_width)};
}

Tensor forward(const Tensor& x, const Tensor& w, int64_t stride, int64_t pad_height, int64_t pad_width) {
  check(x, w);
  const c10::cuda::CUDAGuard guard(x.device());
  Tensor y = at::empty({x.size(0), x.size(1), w.size(4), w.size(5)}, x.options());
  C10_CUDA_CHECK(plain::forward(type_of(x), problem(x.sizes(), w.sizes(), stride, pad_height, pad_width),
                                x.const_data_ptr(), w.const_data_ptr(), y.mutable_data_ptr(),
                                c10::cuda::getCurrentCUDAStream()));
  return y;
}

Tensor input_gradient(const Tensor& y, const Tensor& w, int64_t height, int64_t width, int64_t stride,
                      int64_t pad_height, int64_t pad_width) {
  check(y, w);
  const c10::cuda::CUDAGuard guard(y.device());
  Tensor x = at::empty({y.size(0), y.size(1), height, width}, y.options());
  C10_CUDA_CHECK(plain::input_gradient(
      type_of(y), problem(x.sizes(), w.sizes(), stride, pad_height, pad_width), y.const_data_ptr(),
      w.const_data_ptr(), x.mutable_data_ptr(), c10::cuda::getCurrentCUDAStream()));
  return x;
}

Tensor weight_gradient(const Tensor& y, const Tensor& x, int64_t groups, int64_t kernel_height,
                       int64_t kernel_width, int64_t stride, int64_t pad_height, int64_t pad_width) {
  check(y, x);
  const c10::cuda::CUDAGuard guard(y.device());
  Tensor w = at::empty({y.size(0), groups, kernel_height, kernel_width, y.size(2), y.size(3)}, y.options());
  C10_CUDA_CHECK(plain::weight_gradient(
      type_of(y), problem(x.sizes(), w.sizes(), stride, pad_height, pad_width), y.const_data_ptr(),
      x.const_data_ptr(), w.mutable_data_ptr(), c10::cuda::getCurrentCUDAStream()));
  return w;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.def("forward", &forward);
  module.def("input_gradient", &input_gradient);
  module.def("weight_gradient", &weight_gradient);
}
