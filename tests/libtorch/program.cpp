// A C++ program without Python that calls the operators and differentiates them; test_libtorch.py builds it.
//
//   program LIBRARY    loads the library of operators, and prints results and gradients, one tensor to a
//   line:
//                      its name, then its values
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <dlfcn.h>
#include <torch/csrc/autograd/autograd.h>

#include <cstdint>
#include <iomanip>
#include <iostream>
#include <string>
#include <vector>

using at::Tensor;
using Sizes = c10::SymIntArrayRef;

namespace {

template <typename Signature>
c10::TypedOperatorHandle<Signature> find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

// sin(1), sin(2), ... in this shape: the same numbers as in Python.
Tensor waves(at::IntArrayRef shape) {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  return at::arange(1, count + 1, at::kDouble).sin().view(shape).set_requires_grad(true);
}

void print(const std::string& name, const Tensor& tensor) {
  const Tensor flat = tensor.detach().contiguous().flatten();
  std::cout << name << std::setprecision(17);
  for (int64_t i = 0; i < flat.numel(); ++i) std::cout << ' ' << flat[i].item<double>();
  std::cout << '\n';
}

// Result, gradients, and the derivative of a gradient.
void show(const std::string& name, const Tensor& result, const Tensor& first, const Tensor& second) {
  print(name, result);
  const auto gradients = torch::autograd::grad({result.square().sum()}, {first, second}, /*grad_outputs=*/{},
                                               /*retain_graph=*/true, /*create_graph=*/true);
  print(name + ".first", gradients[0]);
  print(name + ".second", gradients[1]);
  print(name + ".mixed", torch::autograd::grad({gradients[0].square().sum()}, {second})[0]);
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 2) {
    std::cerr << "usage: program LIBRARY\n";
    return 2;
  }
  if (dlopen(arguments[1], RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    std::cerr << dlerror() << '\n';
    return 1;
  }
  const auto involution =
      find<Tensor(const Tensor&, const Tensor&, Sizes, Sizes, Sizes)>("involution::involution");
  const auto transpose = find<Tensor(const Tensor&, const Tensor&, Sizes, Sizes, Sizes, Sizes)>(
      "involution::involution_transpose");
  const auto correlation =
      find<Tensor(const Tensor&, const Tensor&, Sizes, c10::SymInt, Sizes, Sizes, Sizes)>(
          "involution::local_correlation");

  const std::vector<c10::SymInt> kernel{3, 2}, stride{2, 1}, padding{1, 1}, dilation{1, 2}, space{5, 4};
  const Tensor x = waves({2, 4, 5, 4}), w = waves({2, 2, 3, 2, 3, 4}), y = waves({2, 4, 3, 4});
  show("involution", involution.call(x, w, stride, padding, dilation), x, w);
  show("involution_transpose", transpose.call(y, w, space, stride, padding, dilation), y, w);
  show("local_correlation", correlation.call(y, x, kernel, 2, stride, padding, dilation), y, x);
  return 0;
}
