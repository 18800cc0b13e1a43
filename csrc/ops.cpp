// The schemas of the dispatcher operators. Each backend registers its kernels at the end of its own file:
// ops_cpu.cpp, ops_cuda.cpp, fused.cpp, fused_cuda.cpp, fused_backward_cuda.cpp; autograd.cpp and
// autocast.cpp come before them.
//
// The public functions in Python explain a wrong argument with the field's names; the checks of the backends
// (tensors.h) are what keeps a kernel inside its tensors whoever calls, from Python or C++. The frames of
// input and output are independent: a window may reach beyond the input on either side, where it reads zeros.
#include <torch/library.h>

TORCH_LIBRARY(involution, library) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  library.def(
      "involution(Tensor input, Tensor weight, SymInt[] stride, SymInt[] padding, SymInt[] dilation) -> "
      "Tensor",
      tags);
  library.def(
      "involution_transpose(Tensor input, Tensor weight, SymInt[] output_size, SymInt[] stride, SymInt[] "
      "padding, "
      "SymInt[] dilation) -> Tensor",
      tags);
  library.def(
      "local_correlation(Tensor query, Tensor key, SymInt[] kernel_size, SymInt groups, SymInt[] stride, "
      "SymInt[] padding, SymInt[] dilation) -> Tensor",
      tags);
  library.def(
      "fused_involution(Tensor input, Tensor features, Tensor weight, Tensor? bias, SymInt[] kernel_size, "
      "SymInt[] stride, SymInt[] padding, SymInt[] dilation, Tensor? scale=None, Tensor? shift=None, "
      "bool relu=False) -> Tensor",
      tags);
  library.def(
      "fused_involution_backward(Tensor grad, Tensor input, Tensor features, Tensor weight, Tensor? bias, "
      "SymInt[] kernel_size, SymInt[] stride, SymInt[] padding, SymInt[] dilation, bool[4] asked) -> "
      "(Tensor, Tensor, Tensor, Tensor)",
      tags);
  // Its kernels on CUDA, which involution/_fused_derivatives.py alone calls: undefined what has none.
  library.def(
      "_fused_backward_cuda(Tensor grad, Tensor input, Tensor features, Tensor weight, Tensor? bias, "
      "SymInt[] kernel_size, SymInt[] stride, SymInt[] padding, SymInt[] dilation, bool[4] asked) -> "
      "(Tensor, Tensor, Tensor, Tensor)");
}
