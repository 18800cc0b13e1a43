// What the kernels offer to the rest of the extension: one launcher for each element type.
#pragma once

#include "element.h"
#include "plan.h"

// The tests' stand-in for the CUDA runtime, where its folder is on the include path.
#if __has_include("cuda_on_host.h")
#include "cuda_on_host.h"
#else
#include <cuda_runtime_api.h>
#endif

namespace involution {

// Runs `operation` on `stream` as `plan` says and returns the launch's error; never synchronises.
//
//   operation    a (B, C, ...)      b                      out
//   involution   x, input frame     w                      y, output frame
//   transpose    y, output frame    w                      x, input frame
//   correlation  y, output frame    x, input frame         w
//
// Nothing may be empty: the caller returns empty tensors, and zeros for empty sums, by itself.
template <typename T>
cudaError_t launch(Operation operation, const Problem& problem, const Plan& plan, const T* a, const T* b,
                   T* out, cudaStream_t stream);

}  // namespace involution
