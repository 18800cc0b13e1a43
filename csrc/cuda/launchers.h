// What the kernels offer to the rest of the extension.
#pragma once

#include <cstdint>

#include "../half_types.h"
#include "geometry.h"
#include "plan.h"

// The tests' stand-in for the CUDA runtime, where its folder is on the include path.
#if __has_include("cuda_on_host.h")
#include "cuda_on_host.h"
#else
#include <cuda_runtime_api.h>
#endif

namespace involution {

// Runs `operation` on `stream` as `plan` says and returns the launch's error; never synchronises. The problem
// is whole, or one of its parts.
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

namespace launch_detail {

// Bytes, as far as the widest access of the kernels cares.
inline int alignment_of(const void* address) {
  const auto bits = reinterpret_cast<std::uintptr_t>(address) | 16;
  return static_cast<int>(bits & (~bits + 1));
}

// The operands of a part, in the operation's own order.
template <typename T>
struct Operands {
  const T* a;
  const T* b;
  T* out;
  OperandAlignment alignment;
};

template <typename T>
Operands<T> operands_of(Operation operation, const Part& part, const T* a, const T* b, T* out) {
  switch (operation) {
    case Operation::kInvolution:
      a += part.x, b += part.w, out += part.y;
      return {a, b, out, {alignment_of(a), alignment_of(b), alignment_of(out)}};
    case Operation::kTranspose:
      a += part.y, b += part.w, out += part.x;
      return {a, b, out, {alignment_of(out), alignment_of(b), alignment_of(a)}};
    case Operation::kCorrelation:
      break;
  }
  a += part.y, b += part.x, out += part.w;
  return {a, b, out, {alignment_of(b), alignment_of(out), alignment_of(a)}};
}

}  // namespace launch_detail

// Runs `operation` part by part. `plan_of(problem, alignment)` makes each part's plan.
template <typename T, typename Planner>
cudaError_t launch_parts(Operation operation, const Problem& problem, const T* a, const T* b, T* out,
                         cudaStream_t stream, const Planner& plan_of) {
  const Parts parts = parts_of(problem);
  for (int i = 0; i < parts.count; ++i) {
    const auto operands = launch_detail::operands_of(operation, parts.part[i], a, b, out);
    const Problem& part = parts.part[i].problem;
    const cudaError_t error = launch<T>(operation, part, plan_of(part, operands.alignment), operands.a,
                                        operands.b, operands.out, stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace involution
