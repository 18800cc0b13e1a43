// The baseline: involution as the published CUDA kernels have it, one output of one thread, every size a
// run-time parameter, global memory for everything. Contiguous tensors, two dimensions.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace plain {

enum class Type { kFloat32, kFloat16, kBFloat16 };

// y[b, c, oy, ox] = sum over ky, kx of w[b, g, ky, kx, oy, ox] * x[b, c, oy*stride - pad + ky, ox*stride -
// pad + kx], where g = c / (channels / groups).
struct Problem {
  int batch, channels, groups;
  int height, width;
  int out_height, out_width;
  int kernel_height, kernel_width;
  int stride;
  int pad_height, pad_width;
};

cudaError_t forward(Type type, const Problem& p, const void* x, const void* w, void* y, cudaStream_t stream);
cudaError_t input_gradient(Type type, const Problem& p, const void* y, const void* w, void* x,
                           cudaStream_t stream);
cudaError_t weight_gradient(Type type, const Problem& p, const void* y, const void* x, void* w,
                            cudaStream_t stream);

}  // namespace plain
