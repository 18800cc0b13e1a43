// One result of one thread; half types are summed in float32. Indices are 64-bit, as large tensors need.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <type_traits>

#include "plain.h"

namespace plain {
namespace {

constexpr int kThreads = 256;

__device__ __forceinline__ float load(const float* p) { return *p; }
__device__ __forceinline__ float load(const __half* p) { return __half2float(*p); }
__device__ __forceinline__ float load(const __nv_bfloat16* p) { return __bfloat162float(*p); }
__device__ __forceinline__ void store(float* p, float value) { *p = value; }
__device__ __forceinline__ void store(__half* p, float value) { *p = __float2half_rn(value); }
__device__ __forceinline__ void store(__nv_bfloat16* p, float value) { *p = __float2bfloat16_rn(value); }

template <typename T>
__global__ void forward_kernel(Problem p, int64_t total, const T* __restrict__ x, const T* __restrict__ w,
                               T* __restrict__ y) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; index < total;
       index += step) {
    const int ox = index % p.out_width;
    const int oy = index / p.out_width % p.out_height;
    const int c = index / p.out_width / p.out_height % p.channels;
    const int b = index / p.out_width / p.out_height / p.channels;
    const int g = c / (p.channels / p.groups);
    float sum = 0;
    for (int ky = 0; ky < p.kernel_height; ++ky) {
      for (int kx = 0; kx < p.kernel_width; ++kx) {
        const int iy = oy * p.stride - p.pad_height + ky;
        const int ix = ox * p.stride - p.pad_width + kx;
        if (iy < 0 || iy >= p.height || ix < 0 || ix >= p.width) continue;
        const int64_t at_x = ((static_cast<int64_t>(b) * p.channels + c) * p.height + iy) * p.width + ix;
        const int64_t at_w =
            ((((static_cast<int64_t>(b) * p.groups + g) * p.kernel_height + ky) * p.kernel_width + kx) *
                 p.out_height +
             oy) *
                p.out_width +
            ox;
        sum += load(w + at_w) * load(x + at_x);
      }
    }
    store(y + index, sum);
  }
}

template <typename T>
__global__ void input_gradient_kernel(Problem p, int64_t total, const T* __restrict__ y,
                                      const T* __restrict__ w, T* __restrict__ x) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; index < total;
       index += step) {
    const int ix = index % p.width;
    const int iy = index / p.width % p.height;
    const int c = index / p.width / p.height % p.channels;
    const int b = index / p.width / p.height / p.channels;
    const int g = c / (p.channels / p.groups);
    float sum = 0;
    for (int ky = 0; ky < p.kernel_height; ++ky) {
      for (int kx = 0; kx < p.kernel_width; ++kx) {
        const int sy = iy + p.pad_height - ky;
        const int sx = ix + p.pad_width - kx;
        if (sy < 0 || sx < 0 || sy % p.stride != 0 || sx % p.stride != 0) continue;
        const int oy = sy / p.stride;
        const int ox = sx / p.stride;
        if (oy >= p.out_height || ox >= p.out_width) continue;
        const int64_t at_y =
            ((static_cast<int64_t>(b) * p.channels + c) * p.out_height + oy) * p.out_width + ox;
        const int64_t at_w =
            ((((static_cast<int64_t>(b) * p.groups + g) * p.kernel_height + ky) * p.kernel_width + kx) *
                 p.out_height +
             oy) *
                p.out_width +
            ox;
        sum += load(w + at_w) * load(y + at_y);
      }
    }
    store(x + index, sum);
  }
}

template <typename T>
__global__ void weight_gradient_kernel(Problem p, int64_t total, const T* __restrict__ y,
                                       const T* __restrict__ x, T* __restrict__ w) {
  const int group_width = p.channels / p.groups;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; index < total;
       index += step) {
    int64_t rest = index;
    const int ox = rest % p.out_width;
    rest /= p.out_width;
    const int oy = rest % p.out_height;
    rest /= p.out_height;
    const int kx = rest % p.kernel_width;
    rest /= p.kernel_width;
    const int ky = rest % p.kernel_height;
    rest /= p.kernel_height;
    const int g = rest % p.groups;
    const int b = rest / p.groups;
    const int iy = oy * p.stride - p.pad_height + ky;
    const int ix = ox * p.stride - p.pad_width + kx;
    float sum = 0;
    if (iy >= 0 && iy < p.height && ix >= 0 && ix < p.width) {
      for (int c = g * group_width; c < (g + 1) * group_width; ++c) {
        const int64_t plane = static_cast<int64_t>(b) * p.channels + c;
        sum += load(y + (plane * p.out_height + oy) * p.out_width + ox) *
               load(x + (plane * p.height + iy) * p.width + ix);
      }
    }
    store(w + index, sum);
  }
}

template <typename Kernel, typename T>
cudaError_t launch(Kernel kernel, const Problem& p, int64_t total, const void* a, const void* b, T* out,
                   cudaStream_t stream) {
  // A grid has at most 2^31 - 1 blocks; beyond that a thread takes several results.
  const int64_t blocks = std::min<int64_t>((total + kThreads - 1) / kThreads, 0x7fffffff);
  kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(p, total, static_cast<const T*>(a),
                                                                 static_cast<const T*>(b), out);
  return cudaGetLastError();
}

// Calls `run` with a pointer of the element type that `type` names.
template <typename Run>
cudaError_t with_type(Type type, void* out, Run run) {
  switch (type) {
    case Type::kFloat32:
      return run(static_cast<float*>(out));
    case Type::kFloat16:
      return run(static_cast<__half*>(out));
    case Type::kBFloat16:
      return run(static_cast<__nv_bfloat16*>(out));
  }
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t forward(Type type, const Problem& p, const void* x, const void* w, void* y, cudaStream_t stream) {
  const int64_t total = static_cast<int64_t>(p.batch) * p.channels * p.out_height * p.out_width;
  return with_type(type, y, [&](auto* out) {
    return launch(forward_kernel<std::remove_pointer_t<decltype(out)>>, p, total, x, w, out, stream);
  });
}

cudaError_t input_gradient(Type type, const Problem& p, const void* y, const void* w, void* x,
                           cudaStream_t stream) {
  const int64_t total = static_cast<int64_t>(p.batch) * p.channels * p.height * p.width;
  return with_type(type, x, [&](auto* out) {
    return launch(input_gradient_kernel<std::remove_pointer_t<decltype(out)>>, p, total, y, w, out, stream);
  });
}

cudaError_t weight_gradient(Type type, const Problem& p, const void* y, const void* x, void* w,
                            cudaStream_t stream) {
  const int64_t total = static_cast<int64_t>(p.batch) * p.groups * p.kernel_height * p.kernel_width *
                        p.out_height * p.out_width;
  return with_type(type, w, [&](auto* out) {
    return launch(weight_gradient_kernel<std::remove_pointer_t<decltype(out)>>, p, total, y, x, out, stream);
  });
}

}  // namespace plain
