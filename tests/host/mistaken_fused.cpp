// Runs one small layer through the fused kernels, with a stride of 1 and of 2, and compares it with plain
// loops: the program that tests/test_kernel_mistakes.py builds from sources with a planted mistake.

#include <cmath>
#include <cstdio>
#include <vector>

#include "cuda/fused_strided.cuh"
#include "cuda/launch_fused.cuh"
#include "random.h"

namespace involution {
namespace {

constexpr int kK = 3, kPoints = kK * kK, kBatch = 2, kGroups = 3, kChannels = kGroups * kFusedGroupChannels;
constexpr int kReduced = 16, kRows = 19, kColumns = 21;

template <int kStride, typename Kernel>
bool right(Kernel kernel) {
  constexpr int kOutRows = (kRows + kStride - 1) / kStride, kOutColumns = (kColumns + kStride - 1) / kStride;
  constexpr int kPixels = kBatch * kRows * kColumns, kOut = kBatch * kOutRows * kOutColumns;
  std::vector<BFloat16> x(kPixels * kChannels), h(kOut * kReduced), w(kGroups * kPoints * kReduced),
      y(kOut * kChannels);
  host::Random random(1);
  for (auto* values : {&x, &h, &w}) {
    for (BFloat16& value : *values) narrow(static_cast<float>(random.below(2001)) / 1000.f - 1.f, &value);
  }
  for (BFloat16& value : y) narrow(std::nanf(""), &value);

  // One multiprocessor, and so much to do that a block marches down all rows.
  const FusedProblem problem{kBatch,   kChannels, kFusedGroupChannels, kReduced, kRows,
                             kColumns, {kK, kK},  {kStride, kStride}};
  const FusedPlan plan = make_fused_plan(problem, DeviceLimits{48 * 1024, 48 * 1024, 1});
  if (plan.reason != nullptr || plan.march.chunks != 1) return false;
  const BFloat16* const no_bias = nullptr;
  const float* const no_factors = nullptr;
  const cudaError_t error = launch_kernel(
      kernel, grid_of(plan), static_cast<unsigned>(plan.threads), static_cast<size_t>(plan.shared_bytes),
      nullptr, plan.march, static_cast<const BFloat16*>(x.data()), static_cast<const BFloat16*>(h.data()),
      static_cast<const BFloat16*>(w.data()), no_bias, no_factors, no_factors, y.data());
  if (error != cudaSuccess) return false;

  for (int p = 0; p < kOut; ++p) {
    const int column = p % kOutColumns * kStride, row = p / kOutColumns % kOutRows * kStride;
    const int image = p / kOutColumns / kOutRows;
    for (int c = 0; c < kChannels; ++c) {
      double sum = 0;
      for (int k = 0; k < kPoints; ++k) {
        const int at_row = row + k / kK - 1, at_column = column + k % kK - 1;
        if (at_row < 0 || at_row >= kRows || at_column < 0 || at_column >= kColumns) continue;
        double tap = 0;
        for (int r = 0; r < kReduced; ++r) {
          tap += static_cast<double>(widen(w[(c / kFusedGroupChannels * kPoints + k) * kReduced + r])) *
                 widen(h[p * kReduced + r]);
        }
        sum += tap * widen(x[((image * kRows + at_row) * kColumns + at_column) * kChannels + c]);
      }
      if (!(std::abs(widen(y[p * kChannels + c]) - sum) <= 0.1)) return false;
    }
  }
  return true;
}

}  // namespace
}  // namespace involution

int main() {
  using namespace involution;
  const bool plain = right<1>(&fused_kernel<BFloat16, kK, 1>);
  const bool strided = right<2>(&fused_strided_kernel<BFloat16, kK, 2>);
  std::printf("fused %s, strided %s\n", plain ? "right" : "WRONG", strided ? "right" : "WRONG");
  return plain && strided ? 0 : 1;
}
