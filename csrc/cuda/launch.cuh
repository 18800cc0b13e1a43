// From a plan to the kernel it names. Included by one small .cu file for each element type.
#pragma once

#include "banded.cuh"
#include "generic.cuh"
#include "launchers.h"
#include "tiled.cuh"

namespace involution {

namespace launch_detail {

template <typename T, int KW, int S>
cudaError_t launch_tiled(Operation operation, const Problem& problem, const Plan& plan, const T* a,
                         const T* b, T* out, cudaStream_t stream) {
  const Gather gather = make_gather(operation, problem);
  const int groups = static_cast<int>(problem.groups);
  const unsigned grid = static_cast<unsigned>(plan.blocks);
  const dim3 block(plan.runs, plan.lanes);
  const size_t shared = static_cast<size_t>(plan.shared_bytes);
  switch (operation) {
    case Operation::kInvolution:
      return launch_kernel(gather_tile_kernel<T, KW, S, false>, grid, block, shared, stream, gather, plan,
                           groups, a, b, out);
    case Operation::kTranspose:
      if constexpr (S == 1) {
        return launch_kernel(gather_tile_kernel<T, KW, 1, true>, grid, block, shared, stream, gather, plan,
                             groups, a, b, out);
      }
      return cudaErrorInvalidValue;
    case Operation::kCorrelation:
      return launch_kernel(correlation_tile_kernel<T, KW, S>, grid, block, shared, stream, gather, plan,
                           groups, a, b, out);
  }
  return cudaErrorInvalidValue;
}

template <typename T, int KW>
cudaError_t launch_tiled(Operation operation, const Problem& problem, const Plan& plan, const T* a,
                         const T* b, T* out, cudaStream_t stream) {
  switch (problem.stride[kWidth]) {
    case 1:
      return launch_tiled<T, KW, 1>(operation, problem, plan, a, b, out, stream);
    case 2:
      return launch_tiled<T, KW, 2>(operation, problem, plan, a, b, out, stream);
  }
  return cudaErrorInvalidValue;  // no plan names another stride
}

template <typename T, int KW, bool kChannelsLast>
cudaError_t launch_banded(Operation operation, const Problem& problem, const Plan& plan, const T* a,
                          const T* b, T* out, cudaStream_t stream) {
  const Gather gather = make_gather(operation, problem);
  const int groups = static_cast<int>(problem.groups);
  const unsigned grid = static_cast<unsigned>(plan.blocks);
  const dim3 block(32, plan.threads / 32);
  const size_t shared = static_cast<size_t>(plan.shared_bytes);
  switch (operation) {
    case Operation::kInvolution:
      return launch_kernel(banded_gather_kernel<T, KW, kChannelsLast, false>, grid, block, shared, stream,
                           gather, plan, groups, a, b, out);
    case Operation::kTranspose:
      return launch_kernel(banded_gather_kernel<T, KW, kChannelsLast, true>, grid, block, shared, stream,
                           gather, plan, groups, a, b, out);
    case Operation::kCorrelation:
      if (plan.channels_staged == kBandChannels) {
        return launch_kernel(banded_correlation_kernel<T, KW, kChannelsLast, true>, grid, block, shared,
                             stream, gather, plan, groups, a, b, out);
      }
      return launch_kernel(banded_correlation_kernel<T, KW, kChannelsLast, false>, grid, block, shared,
                           stream, gather, plan, groups, a, b, out);
  }
  return cudaErrorInvalidValue;
}

template <typename T, int KW>
cudaError_t launch_fast(Operation operation, const Problem& problem, const Plan& plan, const T* a, const T* b,
                        T* out, cudaStream_t stream) {
  if (plan.kind == PlanKind::kTiled) {
    return launch_tiled<T, KW>(operation, problem, plan, a, b, out, stream);
  }
  if constexpr (sizeof(T) == 2 && !kInPieces<KW>) {
    return plan.source_channels_last
               ? launch_banded<T, KW, true>(operation, problem, plan, a, b, out, stream)
               : launch_banded<T, KW, false>(operation, problem, plan, a, b, out, stream);
  }
  return cudaErrorInvalidValue;  // no plan for another type or width is banded
}

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
  const dim3 block(kGenericThreads);
  switch (operation) {
    case Operation::kInvolution:
      return launch_kernel(generic_gather_kernel<T, false>, grid, block, 0, stream, problem, a, b, out);
    case Operation::kTranspose:
      return launch_kernel(generic_gather_kernel<T, true>, grid, block, 0, stream, problem, a, b, out);
    case Operation::kCorrelation:
      return launch_kernel(generic_correlation_kernel<T>, grid, block, 0, stream, problem, a, b, out);
  }
  return cudaErrorInvalidValue;
}

}  // namespace launch_detail

template <typename T>
cudaError_t launch(Operation operation, const Problem& problem, const Plan& plan, const T* a, const T* b,
                   T* out, cudaStream_t stream) {
  using namespace launch_detail;
  if (plan.kind == PlanKind::kGeneric) return launch_generic<T>(operation, problem, a, b, out, stream);
  switch (problem.kernel[kWidth]) {
    case 3:
      return launch_fast<T, 3>(operation, problem, plan, a, b, out, stream);
    case 5:
      return launch_fast<T, 5>(operation, problem, plan, a, b, out, stream);
    case 7:
      return launch_fast<T, 7>(operation, problem, plan, a, b, out, stream);
  }
  return launch_fast<T, kPiece>(operation, problem, plan, a, b, out, stream);
}

}  // namespace involution
