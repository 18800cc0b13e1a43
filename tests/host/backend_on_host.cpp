// Sends CPU tensors to the CUDA backend, whose kernels run on the host here.
#include <torch/library.h>

namespace {

void run_as_cuda(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CUDA), stack);
}

}  // namespace

TORCH_LIBRARY_IMPL(involution, CPU, library) {
  for (const char* name : {"involution", "involution_transpose", "local_correlation", "fused_involution",
                           "_fused_backward_cuda"})
    library.impl(name, torch::CppFunction::makeFromBoxedFunction<&run_as_cuda>());
}
