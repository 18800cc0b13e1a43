// From a plan to a launch, for all element types; the generic kernels are compiled here.
#include "generic.cuh"
#include "launchers.h"

namespace involution {

template <typename T, Operation kOperation>
cudaError_t launch_march(const Plan& plan, const T* source, const T* second, T* result, cudaStream_t stream);

namespace {

template <typename T>
cudaError_t launch_generic(Operation operation, const Problem& problem, const T* a, const T* b, T* out,
                           cudaStream_t stream) {
  const int64_t (&size)[3] = operation == Operation::kTranspose ? problem.input : problem.output;
  const int64_t per_plane = operation == Operation::kCorrelation
                                ? problem.kernel[0] * problem.kernel[1] * problem.kernel[2]
                                : (problem.channels_per_group + kGenericChannels - 1) / kGenericChannels;
  const int64_t threads = problem.batch * problem.groups * per_plane * size[0] * size[1] * size[2];
  // The kernels stride over what a grid of the largest size that every device takes does not cover.
  const int64_t blocks = (threads + kGenericThreads - 1) / kGenericThreads;
  const unsigned grid = static_cast<unsigned>(blocks < 0x7fffffff ? blocks : 0x7fffffff);
  switch (operation) {
    case Operation::kInvolution:
      return launch_kernel(generic_gather_kernel<T, false>, grid, kGenericThreads, 0, stream, problem, a, b,
                           out);
    case Operation::kTranspose:
      return launch_kernel(generic_gather_kernel<T, true>, grid, kGenericThreads, 0, stream, problem, a, b,
                           out);
    case Operation::kCorrelation:
      return launch_kernel(generic_correlation_kernel<T>, grid, kGenericThreads, 0, stream, problem, a, b,
                           out);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

template <typename T>
cudaError_t launch(Operation operation, const Problem& problem, const Plan& plan, const T* a, const T* b,
                   T* out, cudaStream_t stream) {
  if (plan.kind != PlanKind::kGeneric) {
    if constexpr (sizeof(T) < 8) {
      switch (operation) {
        case Operation::kInvolution:
          return launch_march<T, Operation::kInvolution>(plan, a, b, out, stream);
        case Operation::kTranspose:
          return launch_march<T, Operation::kTranspose>(plan, a, b, out, stream);
        case Operation::kCorrelation:
          return launch_march<T, Operation::kCorrelation>(plan, b, a, out, stream);
      }
    }
    return cudaErrorInvalidValue;  // no other plan is made for float64
  }
  return launch_generic<T>(operation, problem, a, b, out, stream);
}

template cudaError_t launch(Operation, const Problem&, const Plan&, const double*, const double*, double*,
                            cudaStream_t);
template cudaError_t launch(Operation, const Problem&, const Plan&, const float*, const float*, float*,
                            cudaStream_t);
template cudaError_t launch(Operation, const Problem&, const Plan&, const Float16*, const Float16*, Float16*,
                            cudaStream_t);
template cudaError_t launch(Operation, const Problem&, const Plan&, const BFloat16*, const BFloat16*,
                            BFloat16*, cudaStream_t);

}  // namespace involution
