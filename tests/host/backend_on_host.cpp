// Registers the operators' CUDA backend, whose kernels run on the host here, for CPU tensors.
#include <torch/library.h>

#include "cuda_backend.h"

TORCH_LIBRARY_IMPL(involution, CPU, library) {
  library.impl("involution", &involution::involution_cuda);
  library.impl("involution_transpose", &involution::involution_transpose_cuda);
  library.impl("local_correlation", &involution::local_correlation_cuda);
  library.impl("fused_involution", &involution::fused_involution_cuda);
}
