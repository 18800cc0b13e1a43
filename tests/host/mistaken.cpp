// Runs one small involution of float32 and one of bfloat16 through the marching kernels and compares them
// with plain loops: the program that tests/test_kernel_mistakes.py builds from sources with a planted
// mistake.

#include <cmath>
#include <cstdio>
#include <vector>

#include "cuda/launch_march.cuh"
#include "cuda_on_host.h"
#include "random.h"

namespace involution {
namespace {

constexpr int kBatch = 2, kGroups = 3, kWidthOfGroup = 16, kChannels = kGroups * kWidthOfGroup;
constexpr int kRows = 11, kColumns = 20, kPoints = 9;

Problem problem() {
  Problem p{};
  p.batch = kBatch, p.groups = kGroups, p.channels_per_group = kWidthOfGroup;
  const int64_t sizes[3] = {1, kRows, kColumns}, kernel[3] = {1, 3, 3}, padding[3] = {0, 1, 1};
  for (int axis = 0; axis < 3; ++axis) {
    p.input[axis] = p.output[axis] = sizes[axis];
    p.kernel[axis] = kernel[axis];
    p.stride[axis] = p.dilation[axis] = 1;
    p.padding[axis] = padding[axis];
  }
  p.x = p.y = {kRows * kColumns * kChannels, 1, {0, kColumns * kChannels, kChannels}};
  p.w = {kRows * kColumns * kGroups * kPoints,
         kPoints,
         {0, 3, 1},
         {0, kColumns * kGroups * kPoints, kGroups * kPoints}};
  return p;
}

template <typename T, typename Kernel>
bool right(Kernel kernel, double tolerance) {
  const Problem p = problem();
  const int pixels = kBatch * kRows * kColumns;
  std::vector<T> x(pixels * kChannels), w(pixels * kGroups * kPoints), y(pixels * kChannels);
  host::Random random(1);
  const auto fill = [&](std::vector<T>& values) {
    for (T& value : values) narrow(static_cast<float>(random.below(2001)) / 1000.f - 1.f, &value);
  };
  fill(x), fill(w);
  for (T& value : y) narrow(std::nanf(""), &value);

  // One multiprocessor: a block marches down all rows.
  const DeviceLimits limits{227 * 1024, 228 * 1024, 1};
  const Plan plan = make_plan(Operation::kInvolution, p, sizeof(T), {16, 16, 16}, limits);
  if (plan.kind == PlanKind::kGeneric || plan.march.chunks != 1) return false;
  const cudaError_t error =
      launch_kernel(kernel, dim3(plan.march.packs * plan.march.strips, 1, kBatch),
                    static_cast<unsigned>(plan.threads), static_cast<size_t>(plan.shared_bytes), nullptr,
                    plan.march, static_cast<const T*>(x.data()), static_cast<const T*>(w.data()), y.data());
  if (error != cudaSuccess) return false;

  for (int pixel = 0; pixel < pixels; ++pixel) {
    const int column = pixel % kColumns, row = pixel / kColumns % kRows;
    for (int c = 0; c < kChannels; ++c) {
      double sum = 0;
      for (int k = 0; k < kPoints; ++k) {
        const int dy = k / 3 - 1, dx = k % 3 - 1;
        if (row + dy < 0 || row + dy >= kRows || column + dx < 0 || column + dx >= kColumns) continue;
        sum += static_cast<double>(widen(w[(pixel * kGroups + c / kWidthOfGroup) * kPoints + k])) *
               widen(x[(pixel + dy * kColumns + dx) * kChannels + c]);
      }
      if (!(std::abs(widen(y[pixel * kChannels + c]) - sum) <= tolerance)) return false;
    }
  }
  return true;
}

}  // namespace
}  // namespace involution

int main() {
  using namespace involution;
  const bool fma = right<float>(&fma_kernel<Operation::kInvolution, 3, 1>, 1e-5);
  const bool band = right<BFloat16>(&band_kernel<BFloat16, Operation::kInvolution, 3, 3, 1, true>, 5e-2);
  std::printf("fma %s, band %s\n", fma ? "right" : "WRONG", band ? "right" : "WRONG");
  return fma && band ? 0 : 1;
}
