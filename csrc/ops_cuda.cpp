// The three operators on CUDA tensors: plan, and launch on the current stream.
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
const DeviceLimits& limits_of(int device) {
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
void launch_as(Operation operation, const Problem& problem, const at::Tensor& first, const at::Tensor& second,
               const at::Tensor& result) {
  const DeviceLimits& limits = limits_of(c10::cuda::current_device());
  C10_CUDA_CHECK(launch_parts<T>(
      operation, problem, static_cast<const T*>(first.const_data_ptr()),
      static_cast<const T*>(second.const_data_ptr()), static_cast<T*>(result.mutable_data_ptr()),
      c10::cuda::getCurrentCUDAStream(), [&](const Problem& part, OperandAlignment alignment) {
        return make_plan(operation, part, static_cast<int>(sizeof(T)), alignment, limits);
      }));
}

class CudaBackend {
 public:
  explicit CudaBackend(c10::Device device) : guard_(device) {}

  void run(Operation operation, const Problem& problem, const at::Tensor& first, const at::Tensor& second,
           const at::Tensor& result) {
    switch (result.scalar_type()) {
      case at::kDouble:
        return launch_as<double>(operation, problem, first, second, result);
      case at::kFloat:
        return launch_as<float>(operation, problem, first, second, result);
      case at::kHalf:
        return launch_as<Float16>(operation, problem, first, second, result);
      case at::kBFloat16:
        return launch_as<BFloat16>(operation, problem, first, second, result);
      default:
        refuse_dtype(result.scalar_type());
    }
  }

 private:
  c10::cuda::CUDAGuard guard_;
};

}  // namespace

TORCH_LIBRARY_IMPL(involution, CUDA, library) { register_operators<CudaBackend>(library); }

}  // namespace involution
