// Negative controls: kernels with one mistake each, and the same kernels without it, which the host execution
// has to tell apart.
//
//   negative_controls NAME right|wrong SEED
//
// prints the output, one number a line. In `wrong` a sanitizer or a barrier check ends the process, or the
// output holds a NaN or differs between seeds. tests/test_negative_controls_on_host.py says which.

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "cuda/machine.cuh"
#include "cuda_on_host.h"

namespace {

using namespace involution;

constexpr int kThreads = 128;
constexpr int kCount = 2 * kThreads;  // elements of the input, and of the output

struct Params {
  const float* in;
  float* out;
};

float* tile() { return reinterpret_cast<float*>(shared_memory()); }
Spot spot(int element) { return shared_memory() + element * static_cast<int>(sizeof(float)); }

// ---- missing barriers --------------------------------------------------------------------------------

// Reads what another thread stored, possibly before it did.
template <bool kWrong>
__global__ void read_after_write(Params p) {
  const int t = threadIdx.x;
  tile()[t] = p.in[t];
  if (!kWrong) __syncthreads();
  p.out[t] = tile()[kThreads - 1 - t];
}

// Stores the next tile while another thread may still read this one.
template <bool kWrong>
__global__ void write_after_read(Params p) {
  const int t = threadIdx.x;
  for (int round = 0; round < 2; ++round) {
    tile()[t] = p.in[round * kThreads + t];
    __syncthreads();
    p.out[round * kThreads + t] = tile()[kThreads - 1 - t];
    if (!kWrong) __syncthreads();
  }
}

// A warp does not wait for another warp at its own barrier.
template <bool kWrong>
__global__ void warp_barrier_for_block(Params p) {
  const int t = threadIdx.x;
  tile()[t] = p.in[t];
  if (kWrong) {
    __syncwarp();
  } else {
    __syncthreads();
  }
  p.out[t] = tile()[t ^ 32];
}

// The lanes of a warp do not run in step either.
template <bool kWrong>
__global__ void missing_warp_barrier(Params p) {
  const int t = threadIdx.x;
  tile()[t] = p.in[t];
  if (!kWrong) __syncwarp();
  p.out[t] = tile()[t ^ 1];
}

// A barrier does not wait for asynchronous copies.
template <bool kWrong>
__global__ void copies_too_early(Params p) {
  const int t = threadIdx.x;
  if (t < kThreads / 4) copy_async<16>(spot(4 * t), p.in + 4 * t);
  commit_copies();
  if (!kWrong) wait_for_copies<0>();
  __syncthreads();
  p.out[t] = tile()[kThreads - 1 - t];
}

// Waiting is for a thread's own copies: others' are there after a barrier.
template <bool kWrong>
__global__ void copies_without_barrier(Params p) {
  const int t = threadIdx.x;
  if (t < kThreads / 4) copy_async<16>(spot(4 * t), p.in + 4 * t);
  commit_copies();
  wait_for_copies<0>();
  if (!kWrong) __syncthreads();
  p.out[t] = tile()[kThreads - 1 - t];
}

// A lane may give the address of a row that another lane stores.
template <bool kWrong>
__global__ void matrices_too_early(Params p) {
  const int t = threadIdx.x;
  if (t >= 32) return;
  std::memcpy(tile() + 4 * t, p.in + 4 * t, 16);
  if (!kWrong) __syncwarp();
  uint32_t registers[4];
  load_matrices<4, false>(registers, spot(4 * (t ^ 1)));
  std::memcpy(p.out + t, registers, sizeof(float));
}

// Nor do other lanes wait with the next rows.
template <bool kWrong>
__global__ void matrices_overwritten(Params p) {
  const int t = threadIdx.x;
  if (t >= 32) return;
  std::memcpy(tile() + 4 * t, p.in + 4 * t, 16);
  __syncwarp();
  uint32_t registers[4];
  load_matrices<4, false>(registers, spot(4 * t));
  if (!kWrong) __syncwarp();
  std::memset(tile() + 4 * t, 0, 16);
  std::memcpy(p.out + t, registers, sizeof(float));
}

// ---- divergent barriers ------------------------------------------------------------------------------

template <bool kWrong>
__global__ void early_return(Params p) {
  const int t = threadIdx.x;
  const bool outside = t >= 100;
  if (kWrong && outside) return;
  tile()[t] = p.in[t];
  __syncthreads();
  if (outside) return;
  p.out[t] = tile()[99 - t];
}

template <bool kWrong>
__global__ void two_barriers(Params p) {
  const int t = threadIdx.x;
  tile()[t] = p.in[t];
  if (kWrong && t < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  p.out[t] = tile()[kThreads - 1 - t];
}

template <bool kWrong>
__global__ void barrier_for_some(Params p) {
  const int t = threadIdx.x;
  if (!kWrong || t % 2 == 0) __syncthreads();
  __syncwarp();
  p.out[t] = p.in[t];
}

template <bool kWrong>
__global__ void shuffle_without_all_lanes(Params p) {
  const int t = threadIdx.x;
  float sum = p.in[t];
  const bool takes_part = !kWrong || t % 32 < 16;
  if (takes_part) {
    for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
  }
  p.out[t] = sum;
}

template <bool kWrong>
__global__ void shuffle_from_outside_mask(Params p) {
  const int t = threadIdx.x;
  float value = p.in[t];
  if (t % 32 < 16) value = __shfl_sync(0x0000ffffu, value, kWrong ? 16 : 15);
  p.out[t] = value;
}

template <bool kWrong>
__global__ void matrices_without_all_lanes(Params p) {
  const int t = threadIdx.x;
  if (t >= 32) return;
  std::memset(tile() + 4 * t, 0, 16);
  __syncwarp();
  uint32_t registers[2] = {};
  if (!kWrong || t < 16) load_matrices<2, true>(registers, spot(4 * t));
  p.out[t] = p.in[t] + static_cast<float>(registers[0]);
}

// ---- accesses ----------------------------------------------------------------------------------------

template <bool kWrong>
__global__ void shared_out_of_bounds(Params p) {
  const int t = threadIdx.x;
  tile()[t] = p.in[t];
  __syncthreads();
  p.out[t] = tile()[kWrong ? t + 1 : (t + 1) % kThreads];
}

template <bool kWrong>
__global__ void read_out_of_bounds(Params p) {
  const int t = threadIdx.x;
  p.out[t] = p.in[kWrong ? kCount - kThreads + 1 + t : t];
}

template <bool kWrong>
__global__ void write_out_of_bounds(Params p) {
  const int t = threadIdx.x;
  p.out[kWrong ? t - 1 : t] = p.in[t];
}

template <bool kWrong>
__global__ void misaligned_vector(Params p) {
  const int t = threadIdx.x;
  if (t >= 8) return;
  const float4 four = *reinterpret_cast<const float4*>(p.in + 4 * t + (kWrong ? 1 : 0));
  *reinterpret_cast<float4*>(p.out + 4 * t) = four;
}

// Copied as a whole: no member is named that could give the alignment away.
template <typename T, int N>
struct alignas(sizeof(T) * N) Vector {
  T value[N];
};

template <bool kWrong>
__global__ void misaligned_copy(Params p) {
  const int t = threadIdx.x;
  if (t >= 8) return;
  using Four = Vector<float, 4>;
  *reinterpret_cast<Four*>(p.out + 4 * t + (kWrong ? 2 : 0)) = *reinterpret_cast<const Four*>(p.in + 4 * t);
}

template <bool kWrong>
__global__ void misaligned_matrix(Params p) {
  const int t = threadIdx.x;
  if (t >= 32) return;
  std::memset(tile() + 4 * t, 0, 16);
  __syncwarp();
  uint32_t registers[2];
  load_matrices<2, false>(registers, spot(4 * (t / 2) + (kWrong ? 2 : 0)));
  p.out[t] = p.in[t] + static_cast<float>(registers[0]);
}

template <bool kWrong>
__global__ void index_overflow(Params p) {
  const int t = threadIdx.x;
  const int plane = 1 << 25;
  const int offset = plane * (kWrong ? t : t % 32);
  p.out[t] = p.in[offset / plane];
}

// ---- values ------------------------------------------------------------------------------------------

template <bool kWrong>
__global__ void unwritten_output(Params p) {
  const int t = threadIdx.x;
  if (kWrong && t == kThreads - 1) return;
  p.out[t] = p.in[t];
}

template <bool kWrong>
__global__ void uninitialised_shared(Params p) {
  const int t = threadIdx.x;
  if (!kWrong || t > 0) tile()[t] = p.in[t];
  __syncthreads();
  p.out[t] = tile()[kThreads - 1 - t] + 1;
}

[[gnu::noinline]] float element(const float* values, int index) { return values[index]; }

template <bool kWrong>
__global__ void stack_out_of_bounds(Params p) {
  const int t = threadIdx.x;
  const float window[4] = {1, 2, 3, 4};
  __syncthreads();
  p.out[t] = p.in[t] * element(window, kWrong ? 4 : 3);
}

template <bool kWrong>
__global__ void exception(Params p) {
  const int t = threadIdx.x;
  if (kWrong && t == 77) throw std::runtime_error("thrown on purpose");
  __syncthreads();
  p.out[t] = p.in[t];
}

struct Case {
  const char* name;
  void (*right)(Params);
  void (*wrong)(Params);
};

#define CASE(kernel) \
  Case { #kernel, kernel<false>, kernel<true> }

const Case kCases[] = {
    CASE(read_after_write),
    CASE(write_after_read),
    CASE(warp_barrier_for_block),
    CASE(missing_warp_barrier),
    CASE(copies_too_early),
    CASE(copies_without_barrier),
    CASE(matrices_too_early),
    CASE(matrices_overwritten),
    CASE(early_return),
    CASE(two_barriers),
    CASE(barrier_for_some),
    CASE(shuffle_without_all_lanes),
    CASE(shuffle_from_outside_mask),
    CASE(matrices_without_all_lanes),
    CASE(shared_out_of_bounds),
    CASE(read_out_of_bounds),
    CASE(write_out_of_bounds),
    CASE(misaligned_vector),
    CASE(misaligned_copy),
    CASE(misaligned_matrix),
    CASE(index_overflow),
    CASE(unwritten_output),
    CASE(uninitialised_shared),
    CASE(stack_out_of_bounds),
    CASE(exception),
};

// ---- launch configurations ---------------------------------------------------------------------------

__global__ void nothing() {}

int print_launch_errors() {
  struct Launch {
    const char* what;
    dim3 grid;
    dim3 block;
    std::size_t shared_bytes;
  };
  const Launch launches[] = {
      {"the largest block", 1, 1024, 0},
      {"all shared memory", 1, 1, 232448},
      {"a block too large", 1, 1025, 0},
      {"a block too large as a product", 1, dim3(32, 33), 0},
      {"a block too deep", 1, dim3(1, 1, 65), 0},
      {"an empty block", 1, 0, 0},
      {"an empty grid", 0, 32, 0},
      {"a grid too high", dim3(1, 65536), 1, 0},
      {"too much shared memory", 1, 1, 232449},
  };
  for (const Launch& l : launches) {
    const cudaError_t returned = host::launch(nothing, l.grid, l.block, l.shared_bytes);
    const bool kept = cudaGetLastError() == returned && cudaGetLastError() == cudaSuccess;
    std::printf("%s: %s%s\n", l.what, cudaGetErrorString(returned), kept ? "" : " (not kept)");
  }
  return 0;
}

int run(const Case& test, bool wrong) {
  std::vector<float> in(kCount);
  std::vector<float> out(kCount);
  for (int i = 0; i < kCount; ++i) in[i] = static_cast<float>(i + 1);
  std::memset(out.data(), 0xff, out.size() * sizeof(float));
  const cudaError_t error = host::launch(wrong ? test.wrong : test.right, 1, kThreads,
                                         kThreads * sizeof(float), Params{in.data(), out.data()});
  if (error != cudaSuccess) {
    std::fprintf(stderr, "launch failed: %s\n", cudaGetErrorString(error));
    return 1;
  }
  for (const float value : out) std::printf("%g\n", value);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 2 && std::strcmp(argv[1], "launch_errors") == 0) return print_launch_errors();
  if (argc == 4) {
    host::options().seed = std::strtoull(argv[3], nullptr, 10);
    for (const Case& test : kCases) {
      if (std::strcmp(argv[1], test.name) == 0) return run(test, std::strcmp(argv[2], "wrong") == 0);
    }
  }
  std::fprintf(
      stderr, "usage: negative_controls NAME right|wrong SEED, or negative_controls launch_errors; names:\n");
  for (const Case& test : kCases) std::fprintf(stderr, "  %s\n", test.name);
  return 2;
}
