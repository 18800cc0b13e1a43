// Prints the plan of one involution of images, without launching anything:
//
//   plans OPERATION ELEMENT_SIZE CHANNELS_LAST BATCH CHANNELS GROUPS SIDE KERNEL STRIDE MULTIPROCESSORS KIB
//
// KIB of shared memory for a block. A line in words, then one for each number that is asked for. The tensors
// are aligned, and padded by half the kernel. Likewise of the fused layer, for 16-bit elements:
//
//   plans fused BATCH CHANNELS REDUCED SIDE KERNEL STRIDE MULTIPROCESSORS KIB
//   plans fused_gradient OF BATCH CHANNELS REDUCED SIDE MULTIPROCESSORS KIB
//
// OF is 0 for the gradient of the input, 1 of the features, 2 of weight and bias; these are for 7x7 kernels.

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "cuda/fused_backward_plan.h"
#include "cuda/plan.h"

namespace {

// The kernel's parameters, as bytes.
template <typename March>
void print_march(const March& march) {
  std::printf("march: ");
  for (size_t i = 0; i < sizeof march; ++i) {
    std::printf("%02x", static_cast<unsigned>(reinterpret_cast<const unsigned char*>(&march)[i]));
  }
  std::printf("\n");
}

template <typename OfFused>
void print_fused(const OfFused& plan) {
  std::printf("%s\nblocks: %lld\nthreads: %d\nshared_bytes: %lld\nsteps: %d\n", describe(plan).c_str(),
              static_cast<long long>(plan.blocks), plan.threads, static_cast<long long>(plan.shared_bytes),
              plan.steps);
  print_march(plan.march);
}

}  // namespace

int main(int argc, char** argv) {
  using namespace involution;
  const auto number = [&](int index) { return static_cast<int64_t>(std::atoll(argv[index])); };
  if (argc == 10 && std::strcmp(argv[1], "fused") == 0) {
    const DeviceLimits limits{number(9) * 1024, (number(9) + 1) * 1024, number(8)};
    const int64_t side = number(5), kernel = number(6), stride = number(7);
    const FusedProblem p{number(2), number(3), 16, number(4), side, side, {kernel, kernel}, {stride, stride}};
    const FusedPlan plan = make_fused_plan(p, limits);
    print_fused(plan);
    std::printf("grid: %d %d %lld\n", plan.march.packs * plan.march.strips, plan.march.chunks,
                static_cast<long long>(plan.images));
    return 0;
  }
  if (argc == 9 && std::strcmp(argv[1], "fused_gradient") == 0) {
    const DeviceLimits limits{number(8) * 1024, (number(8) + 1) * 1024, number(7)};
    const FusedProblem p{number(3), number(4), 16, number(5), number(6), number(6), {7, 7}, {1, 1}};
    const auto plan = make_fused_backward_plan(static_cast<FusedGradient>(number(2)), p, limits);
    print_fused(plan);
    std::printf("parts: %lld\ngrid: %lld 1 1\n", static_cast<long long>(plan.parts),
                static_cast<long long>(plan.blocks));
    return 0;
  }
  if (argc != 12) return 2;
  const auto operation = static_cast<Operation>(number(1));
  const int64_t channels = number(5), groups = number(6), side = number(7), kernel = number(8);
  const int64_t out = (side + 2 * (kernel / 2) - kernel) / number(9) + 1;
  Problem p{};
  p.batch = number(4);
  p.groups = groups;
  p.channels_per_group = channels / groups;
  for (int axis = 0; axis < 3; ++axis) {
    const bool used = axis != kDepth;
    p.input[axis] = used ? side : 1;
    p.output[axis] = used ? out : 1;
    p.kernel[axis] = used ? kernel : 1;
    p.stride[axis] = used ? number(9) : 1;
    p.padding[axis] = used ? kernel / 2 : 0;
    p.dilation[axis] = 1;
  }
  const bool last = number(3) != 0;
  const auto activation = [&](int64_t s) {
    return last ? ActivationStrides{channels * s * s, 1, {0, s * channels, channels}}
                : ActivationStrides{channels * s * s, s * s, {0, s, 1}};
  };
  p.x = activation(side);
  p.y = activation(out);
  const int64_t points = kernel * kernel, space = out * out;
  p.w = last
            ? WeightStrides{groups * points * space,
                            points,
                            {0, kernel, 1},
                            {0, out * groups * points, groups * points}}
            : WeightStrides{groups * points * space, points * space, {0, kernel * space, space}, {0, out, 1}};

  const DeviceLimits limits{number(11) * 1024, (number(11) + 1) * 1024, number(10)};
  const Plan plan = make_plan(operation, p, static_cast<int>(number(2)), {16, 16, 16}, limits);
  std::printf("%s\n", describe(plan).c_str());
  const March& m = plan.march;
  std::printf("blocks: %lld\nthreads: %d\nshared_bytes: %lld\n", static_cast<long long>(plan.blocks),
              plan.threads, static_cast<long long>(plan.shared_bytes));
  std::printf("channels: %d\nchunks: %d\nstages: %d\nconsumers: %d\nproducers: %d\n", m.pack_channels,
              m.chunks, m.stages, m.consumers, m.producers);
  std::printf("grid: %d %d %lld\n", m.packs * m.strips, m.chunks * m.slices,
              static_cast<long long>(plan.images));
  print_march(m);
  return 0;
}
