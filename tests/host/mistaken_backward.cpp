// Runs the gradients of one small layer through the fused kernels and compares them with plain loops: the
// program that tests/test_kernel_mistakes.py builds from sources with a planted mistake.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cuda/launch_fused_backward.cuh"
#include "random.h"

namespace involution {
namespace {

constexpr int kK = kFusedBackwardSize, kTaps = kK * kK, kBatch = 2, kGroups = 3, kRows = 17, kColumns = 11;
constexpr int kChannels = kGroups * kFusedGroupChannels, kReduced = 16, kPixels = kBatch * kRows * kColumns;
using Halves = std::vector<BFloat16>;

struct Layer {
  Halves dy = random(kPixels * kChannels), x = random(kPixels * kChannels), h = random(kPixels * kReduced),
         w = random(kGroups * kTaps * kReduced);

  static Halves random(int count) {
    static host::Random generator(1);
    Halves values(count);
    for (BFloat16& value : values) {
      narrow(static_cast<float>(generator.below(2001)) / 1000.f - 1.f, &value);
    }
    return values;
  }
};

// Calls with(position, tap of all groups, the position that it reaches).
template <typename With>
void for_each_tap(const With& with) {
  for (int p = 0; p < kPixels; ++p) {
    for (int tap = 0; tap < kGroups * kTaps; ++tap) {
      const int row = p / kColumns % kRows + tap % kTaps / kK - kK / 2,
                column = p % kColumns + tap % kK - kK / 2;
      if (row < 0 || row >= kRows || column < 0 || column >= kColumns) continue;
      with(p, tap, p / kColumns / kRows * kRows * kColumns + row * kColumns + column);
    }
  }
}

bool close(const Halves& found, const std::vector<double>& wanted) {
  for (size_t i = 0; i < wanted.size(); ++i) {
    if (!(std::abs(widen(found[i]) - wanted[i]) <= 0.01 * std::abs(wanted[i]) + 0.5)) return false;
  }
  return true;
}

template <typename Kernel, typename... Pointers>
bool ran(FusedGradient gradient, Kernel kernel, const Pointers&... pointers) {
  const FusedProblem problem{kBatch,   kChannels, kFusedGroupChannels, kReduced, kRows, kColumns,
                             {kK, kK}, {1, 1}};
  const FusedBackwardPlan plan =
      make_fused_backward_plan(gradient, problem, DeviceLimits{227 * 1024, 228 * 1024, 132});
  if (plan.reason != nullptr) return false;
  if (gradient == FusedGradient::kWeight && plan.parts != 1) return false;
  return launch_kernel(kernel, dim3(static_cast<unsigned>(plan.blocks)), static_cast<unsigned>(plan.threads),
                       static_cast<size_t>(plan.shared_bytes), nullptr, plan.march,
                       pointers...) == cudaSuccess;
}

bool input_is_right(const Layer& layer) {
  Halves dx(layer.x.size(), BFloat16{0xffff});
  const BFloat16* const no_bias = nullptr;
  if (!ran(FusedGradient::kInput, &fused_input_gradient_kernel<BFloat16, 1>, layer.dy.data(), layer.h.data(),
           layer.w.data(), no_bias, dx.data())) {
    return false;
  }
  std::vector<double> wanted(dx.size());
  for_each_tap([&](int p, int tap, int q) {
    double k = 0;
    for (int r = 0; r < kReduced; ++r)
      k += widen(layer.w[tap * kReduced + r]) * widen(layer.h[p * kReduced + r]);
    for (int c = tap / kTaps * 16; c < tap / kTaps * 16 + 16; ++c) {
      wanted[q * kChannels + c] += k * widen(layer.dy[p * kChannels + c]);
    }
  });
  return close(dx, wanted);
}

double kernel_gradient(const Layer& layer, int p, int tap, int q) {
  double k = 0;
  for (int c = tap / kTaps * 16; c < tap / kTaps * 16 + 16; ++c) {
    k += widen(layer.dy[p * kChannels + c]) * widen(layer.x[q * kChannels + c]);
  }
  return k;
}

bool features_are_right(const Layer& layer) {
  Halves dh(layer.h.size(), BFloat16{0xffff});
  if (!ran(FusedGradient::kFeatures, &fused_features_gradient_kernel<BFloat16, 1>, layer.dy.data(),
           layer.x.data(), layer.w.data(), dh.data())) {
    return false;
  }
  std::vector<double> wanted(dh.size());
  for_each_tap([&](int p, int tap, int q) {
    const double k = kernel_gradient(layer, p, tap, q);
    for (int r = 0; r < kReduced; ++r) wanted[p * kReduced + r] += k * widen(layer.w[tap * kReduced + r]);
  });
  return close(dh, wanted);
}

bool weight_is_right(const Layer& layer) {
  std::vector<float> parts(kGroups * kTaps * (kReduced + 1), std::nanf(""));
  if (!ran(FusedGradient::kWeight, &fused_weight_gradient_kernel<BFloat16, 1>, layer.dy.data(),
           layer.x.data(), layer.h.data(), parts.data())) {
    return false;
  }
  std::vector<double> wanted(parts.size());
  for_each_tap([&](int p, int tap, int q) {
    const double k = kernel_gradient(layer, p, tap, q);
    for (int r = 0; r < kReduced; ++r)
      wanted[tap * (kReduced + 1) + r] += k * widen(layer.h[p * kReduced + r]);
    wanted[tap * (kReduced + 1) + kReduced] += k;
  });
  for (size_t i = 0; i < wanted.size(); ++i) {
    if (!(std::abs(parts[i] - wanted[i]) <= 0.01 * std::abs(wanted[i]) + 0.5)) return false;
  }
  return true;
}

}  // namespace
}  // namespace involution

int main() {
  using namespace involution;
  // A block marches down all rows, of the weight's gradient in one strip and in both images.
  setenv("INVOLUTION_CUDA_PLAN", "chunks=1", 1);
  const Layer layer;
  const bool input = input_is_right(layer), features = features_are_right(layer);
  setenv("INVOLUTION_CUDA_PLAN", "chunks=1 runs=2 images=2", 1);
  const bool weight = weight_is_right(layer);
  const auto word = [](bool right) { return right ? "right" : "WRONG"; };
  std::printf("input %s, features %s, weight %s\n", word(input), word(features), word(weight));
  return input && features && weight ? 0 : 1;
}
