// The dispatcher operators: schemas, argument checks, output allocation, choice of backend.
//
// The public functions in Python explain a wrong argument with the field's names; the checks here are what
// keeps a kernel inside its tensors whoever calls, from Python or C++. The frames of input and output are
// independent: a window may reach beyond the input on either side, where it reads zeros.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "cpu_backend.h"
#include "fused.h"
#ifdef INVOLUTION_WITH_CUDA
#include "cuda_backend.h"
#endif

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
  library.def("cpu_capability() -> str", &involution::cpu_capability);
  library.def("cpu_parallel() -> bool", &involution::cpu_parallel);
}

TORCH_LIBRARY_IMPL(involution, CPU, library) {
  library.impl("involution", &involution::involution_cpu);
  library.impl("involution_transpose", &involution::involution_transpose_cpu);
  library.impl("local_correlation", &involution::local_correlation_cpu);
}

TORCH_LIBRARY_IMPL(involution, CompositeExplicitAutograd, library) {
  library.impl("fused_involution", &involution::compose_fused_involution);
}

#ifdef INVOLUTION_WITH_CUDA
TORCH_LIBRARY_IMPL(involution, CUDA, library) {
  library.impl("involution", &involution::involution_cuda);
  library.impl("involution_transpose", &involution::involution_transpose_cuda);
  library.impl("local_correlation", &involution::local_correlation_cuda);
  library.impl("fused_involution", &involution::fused_involution_cuda);
}
#endif
