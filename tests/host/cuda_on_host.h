// The part of CUDA that the kernels use, for a C++ compiler and no GPU.
//
// A kernel file includes this where nvcc would have supplied the words. Each CUDA thread then runs as a
// fiber, in an order shuffled by Options::seed, and every barrier and warp operation waits until all
// participants have arrived. Compiled with AddressSanitizer and UndefinedBehaviorSanitizer, a run finds
//
//   - reads and writes outside any buffer, dynamic shared memory included;
//   - misaligned vector accesses and signed overflow in index arithmetic;
//   - barriers that some threads of a block (or lanes of a warp) do not reach, or reach elsewhere;
//   - by comparing seeds, or with the right answer: missing barriers;
//   - by the NaN that shared memory starts with: values read before they were written.
//
// Blocks run one after another. Static __shared__ arrays have no counterpart; use dynamic shared memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <tuple>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__

// ---- types -------------------------------------------------------------------------------------------

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// clang-format off
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) double2 { double x, y; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
// clang-format on

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDevice = 101,
  cudaErrorNotSupported = 801,
};

using cudaStream_t = struct CUstream_st*;

// Returns the error of the last launch that failed, once.
cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t error);

namespace involution::host {

// ---- launches ----------------------------------------------------------------------------------------

struct Options {
  std::uint64_t seed = 0;  // of the order of threads and blocks; a launch repeats with it
  std::size_t shared_memory_per_block =
      232448;  // what a launch may ask for; 227 KiB on compute capability 9.0
};

// In force for all launches that follow.
Options& options();

// The process ends with this code, after a message on stderr, when a kernel breaks a rule of barriers.
constexpr int kCheckFailedExitCode = 70;

namespace detail {

// Runs body(argument) once for every thread of the grid.
cudaError_t run_grid(dim3 grid, dim3 block, std::size_t shared_bytes, void (*body)(void*), void* argument);

struct CallSite {
  const char* file;
  int line;
};

void block_barrier(CallSite site);
void warp_barrier(unsigned mask, CallSite site);

// Gives `bits` to the other lanes in mask, and returns what `source_lane` gave.
std::uint64_t exchange(unsigned mask, std::uint64_t bits, int source_lane, CallSite site);

int lane_index();

// What threadIdx and the like refer to: set by the scheduler before a thread runs.
inline uint3 thread_index{};
inline uint3 block_index{};
inline dim3 block_dimensions;
inline dim3 grid_dimensions;

}  // namespace detail

// kernel<<<grid, block, shared_bytes>>>(arguments...), finished on return. A configuration that no device
// would accept gives the error that CUDA gives.
template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes,
                   Arguments&&... arguments) {
  static_assert((std::is_trivially_copyable_v<Parameters> && ...), "kernel parameters are copied bytewise");
  static_assert((std::size_t{0} + ... + sizeof(Parameters)) <= 4096, "kernel parameters have 4096 bytes");
  struct Call {
    void (*kernel)(Parameters...);
    std::tuple<std::remove_cv_t<Parameters>...> arguments;
  };
  Call call{kernel, {std::forward<Arguments>(arguments)...}};
  const auto body = [](void* argument) {
    const auto* call = static_cast<const Call*>(argument);
    std::apply(call->kernel, call->arguments);
  };
  return detail::run_grid(grid, block, shared_bytes, body, &call);
}

// The dynamic shared memory of the running block: exactly as many bytes as the launch asked for, aligned to
// 128 bytes, all 0xFF (a NaN in every floating-point type) when the block starts.
unsigned char* shared_memory();

}  // namespace involution::host

// ---- built-ins of a thread ---------------------------------------------------------------------------

inline const uint3& threadIdx = involution::host::detail::thread_index;
inline const uint3& blockIdx = involution::host::detail::block_index;
inline const dim3& blockDim = involution::host::detail::block_dimensions;
inline const dim3& gridDim = involution::host::detail::grid_dimensions;
inline constexpr int warpSize = 32;

// The default arguments name the line of the call: threads have to meet at one and the same barrier. A
// function that wraps a barrier has to pass its caller's line on, or all its calls look alike.

inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  involution::host::detail::block_barrier({file, line});
}

inline void __syncwarp(unsigned mask = 0xffffffffu, const char* file = __builtin_FILE(),
                       int line = __builtin_LINE()) {
  involution::host::detail::warp_barrier(mask, {file, line});
}

namespace involution::host::detail {

template <typename T>
T shuffle(unsigned mask, T value, int source_lane, CallSite site) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), "CUDA has no such shuffle");
  std::uint64_t bits = 0;
  __builtin_memcpy(&bits, &value, sizeof(T));
  bits = exchange(mask, bits, source_lane, site);
  __builtin_memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace involution::host::detail

// A lane whose source would lie outside its segment of `width` lanes keeps its own value.

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize, const char* file = __builtin_FILE(),
              int line = __builtin_LINE()) {
  const int segment = involution::host::detail::lane_index() & ~(width - 1);
  return involution::host::detail::shuffle(mask, value, segment | (source & (width - 1)), {file, line});
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = warpSize,
                  const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  const int lane = involution::host::detail::lane_index();
  const int source = lane ^ lane_mask;
  const bool inside = source < (lane & ~(width - 1)) + width;
  return involution::host::detail::shuffle(mask, value, inside ? source : lane, {file, line});
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize,
                   const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  const int lane = involution::host::detail::lane_index();
  const bool inside = static_cast<unsigned>(lane & (width - 1)) + delta < static_cast<unsigned>(width);
  return involution::host::detail::shuffle(mask, value, inside ? lane + static_cast<int>(delta) : lane,
                                           {file, line});
}

template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize,
                 const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  const int lane = involution::host::detail::lane_index();
  const bool inside = static_cast<unsigned>(lane & (width - 1)) >= delta;
  return involution::host::detail::shuffle(mask, value, inside ? lane - static_cast<int>(delta) : lane,
                                           {file, line});
}
