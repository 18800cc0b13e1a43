#ifdef INVOLUTION_WITH_CUDA

#include "cuda_backend.h"

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include <memory>
#include <mutex>
#include <vector>

#include "cuda/launchers.h"
#include "operators.h"

namespace involution {

// An attribute query costs about as much as a launch.
const DeviceLimits& limits_of(c10::DeviceIndex device) {
  static std::mutex mutex;
  static std::vector<std::unique_ptr<DeviceLimits>> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto index = static_cast<size_t>(device);
  if (known.size() <= index) known.resize(index + 1);
  if (known[index] == nullptr) {
    const auto read = [device](cudaDeviceAttr attribute) {
      int value = 0;
      C10_CUDA_CHECK(cudaDeviceGetAttribute(&value, attribute, device));
      return static_cast<int64_t>(value);
    };
    known[index] = std::make_unique<DeviceLimits>(DeviceLimits{
        read(cudaDevAttrMaxSharedMemoryPerBlockOptin), read(cudaDevAttrMaxSharedMemoryPerMultiprocessor),
        read(cudaDevAttrMultiProcessorCount)});
  }
  return *known[index];
}

namespace {

template <typename T>
void launch_as(Operation operation, const Problem& problem, const at::Tensor& a, const at::Tensor& b,
               const at::Tensor& out) {
  const DeviceLimits& limits = limits_of(c10::cuda::current_device());
  C10_CUDA_CHECK(launch_parts<T>(
      operation, problem, static_cast<const T*>(a.const_data_ptr()),
      static_cast<const T*>(b.const_data_ptr()), static_cast<T*>(out.mutable_data_ptr()),
      c10::cuda::getCurrentCUDAStream(), [&](const Problem& part, OperandAlignment alignment) {
        return make_plan(operation, part, static_cast<int>(sizeof(T)), alignment, limits);
      }));
}

class CudaBackend {
 public:
  explicit CudaBackend(c10::Device device) : guard_(device) {}

  void run(Operation operation, const Problem& problem, const at::Tensor& a, const at::Tensor& b,
           at::Tensor& out) {
    switch (out.scalar_type()) {
      case at::kDouble:
        return launch_as<double>(operation, problem, a, b, out);
      case at::kFloat:
        return launch_as<float>(operation, problem, a, b, out);
      case at::kHalf:
        return launch_as<Float16>(operation, problem, a, b, out);
      case at::kBFloat16:
        return launch_as<BFloat16>(operation, problem, a, b, out);
      default:
        refuse_dtype(out.scalar_type());
    }
  }

 private:
  c10::cuda::CUDAGuard guard_;
};

}  // namespace

at::Tensor involution_cuda(const at::Tensor& input, const at::Tensor& weight, at::IntArrayRef stride,
                           at::IntArrayRef padding, at::IntArrayRef dilation) {
  return Operators<CudaBackend>::involution(input, weight, stride, padding, dilation);
}

at::Tensor involution_transpose_cuda(const at::Tensor& input, const at::Tensor& weight,
                                     at::IntArrayRef output_size, at::IntArrayRef stride,
                                     at::IntArrayRef padding, at::IntArrayRef dilation) {
  return Operators<CudaBackend>::involution_transpose(input, weight, output_size, stride, padding, dilation);
}

at::Tensor local_correlation_cuda(const at::Tensor& query, const at::Tensor& key, at::IntArrayRef kernel_size,
                                  int64_t groups, at::IntArrayRef stride, at::IntArrayRef padding,
                                  at::IntArrayRef dilation) {
  return Operators<CudaBackend>::local_correlation(query, key, kernel_size, groups, stride, padding,
                                                   dilation);
}

}  // namespace involution

#endif
