// csrc/cuda/machine.cuh for a C++ compiler and no GPU: the same functions, of which those of a warp are
// exchanged between its fibers.
//
// What a thread copies asynchronously is a NaN until it has waited; every access is checked for the alignment
// that the instruction needs; and no byte of shared memory may be written by one thread and touched by
// another without a barrier of the block, or of the warp that both belong to, between them, in whatever order
// the threads take turns.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <iterator>
#include <vector>

#include "cuda_on_host.h"
#include "half_conversion_on_host.h"

#define INVOLUTION_OUT_OF_LINE inline

namespace involution {

// ---- shared memory and copies -----------------------------------------------------------------------------

using Spot = unsigned char*;

inline Spot shared_memory() { return host::shared_memory(); }

namespace machine_on_host {

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "machine on the host: misaligned address: %s\n", what);
  std::fflush(stderr);
  std::_Exit(host::kCheckFailedExitCode);
}

inline void check_aligned(const void* address, std::size_t bytes, const char* what) {
  if (reinterpret_cast<std::uintptr_t>(address) % bytes != 0) fail(what);
}

// Who touched a byte of shared memory, and when: block barriers are counted in phases, those of a warp in
// turns.
struct Access {
  std::uint64_t phase = 0;
  std::uint32_t turn = 0;
  std::uint16_t thread = 0;
  bool many_threads = false;
  bool many_warps = false;

  // Whether the running thread may touch what this access touched.
  bool is_over() const {
    if (phase != host::detail::phase || (!many_threads && thread == threadIdx.x)) return true;
    return !many_warps && thread / 32 == threadIdx.x / 32 && turn < host::detail::warp_turn();
  }

  void note() {
    const bool same_phase = phase == host::detail::phase;
    const bool same_turn = same_phase && thread / 32 == threadIdx.x / 32 && turn == host::detail::warp_turn();
    many_warps = same_phase && (many_warps || thread / 32 != threadIdx.x / 32);
    many_threads = many_warps || (same_turn && (many_threads || thread != threadIdx.x));
    phase = host::detail::phase;
    turn = host::detail::warp_turn();
    thread = static_cast<std::uint16_t>(threadIdx.x);
  }
};

struct Touch {
  Access written;
  Access read;
};

#if defined(__SANITIZE_ADDRESS__)
extern "C" void __sanitizer_print_stack_trace();
#endif

[[noreturn]] inline void fail_race(const char* what, const unsigned char* at, int other) {
  std::fprintf(stderr,
               "machine on the host: a race: thread %u %s byte %td of shared memory, and so did thread %d\n",
               threadIdx.x, what, at - host::shared_memory(), other);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_print_stack_trace();
#endif
  std::fflush(stderr);
  std::_Exit(host::kCheckFailedExitCode);
}

inline Touch* touches(const unsigned char* at, std::size_t bytes) {
  static std::vector<Touch> shared;
  if (at < host::shared_memory()) {
    std::fprintf(stderr, "machine on the host: thread %u is in front of shared memory\n", threadIdx.x);
    std::fflush(stderr);
    std::_Exit(host::kCheckFailedExitCode);
  }
  const auto first = static_cast<std::size_t>(at - host::shared_memory());
  if (shared.size() < first + bytes) shared.resize(first + bytes);
  return &shared[first];
}

inline void check_write(const unsigned char* at, std::size_t bytes) {
  Touch* const touch = touches(at, bytes);
  for (std::size_t i = 0; i < bytes; ++i) {
    if (!touch[i].written.is_over()) fail_race("writes", at + i, touch[i].written.thread);
    if (!touch[i].read.is_over()) fail_race("writes what is read:", at + i, touch[i].read.thread);
    touch[i].written.note();
  }
}

inline void check_read(const unsigned char* at, std::size_t bytes) {
  Touch* const touch = touches(at, bytes);
  for (std::size_t i = 0; i < bytes; ++i) {
    if (!touch[i].written.is_over()) fail_race("reads what is written:", at + i, touch[i].written.thread);
    touch[i].read.note();
  }
}

struct Copy {
  unsigned char* to;
  const unsigned char* from;
  int bytes;
};

struct Copies {
  std::vector<Copy> open;
  std::deque<std::vector<Copy>> groups;
};

// Of the running thread. Blocks run one after another, and each waits for all of its copies or forgets them.
inline Copies& copies() {
  static std::vector<Copies> by_thread(1024);
  return by_thread[threadIdx.x];
}

}  // namespace machine_on_host

template <int kBytes>
void copy_async(Spot to, const void* from) {
  using namespace machine_on_host;
  check_aligned(to, kBytes, "an asynchronous copy to shared memory");
  check_aligned(from, kBytes, "an asynchronous copy from global memory");
  check_write(to, kBytes);
  std::memset(to, 0xff, kBytes);
  copies().open.push_back({to, static_cast<const unsigned char*>(from), kBytes});
}

inline void copy_or_clear(Spot to, const void* from, bool inside) {
  alignas(16) static const unsigned char zeros[16] = {};
  copy_async<16>(to, inside ? from : zeros);
}

inline void commit_copies() {
  auto& mine = machine_on_host::copies();
  mine.groups.push_back(std::move(mine.open));
  mine.open.clear();
}

template <int kPending>
void wait_for_copies() {
  auto& groups = machine_on_host::copies().groups;
  while (static_cast<int>(groups.size()) > kPending) {
    for (const auto& copy : groups.front()) {
      machine_on_host::check_write(copy.to, static_cast<std::size_t>(copy.bytes));
      std::memcpy(copy.to, copy.from, static_cast<std::size_t>(copy.bytes));
    }
    groups.pop_front();
  }
}

inline void meet() { __syncthreads(__builtin_FILE(), __builtin_LINE()); }

inline uint32_t multiply_high(uint32_t a, uint32_t b) {
  return static_cast<uint32_t>(std::uint64_t{a} * b >> 32);
}

inline int uniform(int of_warp) { return of_warp; }

template <typename T>
T load_shared(Spot at) {
  machine_on_host::check_aligned(at, sizeof(T), "a load from shared memory");
  machine_on_host::check_read(at, sizeof(T));
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

template <typename T>
void store_shared(Spot at, T value) {
  machine_on_host::check_aligned(at, sizeof(T), "a store to shared memory");
  machine_on_host::check_write(at, sizeof(T));
  std::memcpy(at, &value, sizeof value);
}

inline void store_global(void* to, uint4 value) {
  machine_on_host::check_aligned(to, sizeof value, "a store to global memory");
  std::memcpy(to, &value, sizeof value);
}

// ---- tensor cores -----------------------------------------------------------------------------------------

namespace machine_on_host {

constexpr unsigned kAllLanes = 0xffffffffu;

template <typename T>
float element_of(uint32_t pair, int which) {
  return widen(T{static_cast<uint16_t>(pair >> (16 * which))});
}

// A has 8*kOctets columns: registers 2*o and 2*o + 1 hold those of octet o, and register o of B its rows.
template <typename T, int kOctets>
void multiply_add(float (&c)[4], const uint32_t (&a)[2 * kOctets], const uint32_t (&b)[kOctets],
                  const char* file, int line) {
  struct Given {
    uint32_t a[2 * kOctets];
    uint32_t b[kOctets];
  };
  Given mine;
  std::copy(a, a + 2 * kOctets, mine.a);
  std::copy(b, b + kOctets, mine.b);
  Given all[32];
  host::detail::gather(kAllLanes, &mine, sizeof mine, all, {file, line});
  const int lane = host::detail::lane_index();
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8;
    const int column = lane % 4 * 2 + i % 2;
    for (int k = 0; k < 8 * kOctets; ++k) {
      const int pair = k % 8 / 2;  // the lane of a group of four that holds it
      c[i] += element_of<T>(all[row % 8 * 4 + pair].a[k / 8 * 2 + row / 8], k % 2) *
              element_of<T>(all[column * 4 + pair].b[k / 8], k % 2);
    }
  }
}

}  // namespace machine_on_host

// A row is read when its lane arrives and again when another lane takes its part. Where the two differ, a
// barrier is missing before or after the instruction, and the part is a NaN.
template <int N, bool kTransposed>
void load_matrices(uint32_t* to, Spot row, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  struct alignas(16) Row {
    uint16_t element[8];
  };
  struct Given {
    Row arrived;
    const Row* row;
  };
  const int lane = host::detail::lane_index();
  if (lane < 8 * N) {
    machine_on_host::check_aligned(row, 16, "a row of a matrix");
    machine_on_host::check_read(row, 16);
  }
  Given mine{{}, reinterpret_cast<const Row*>(row)};
  if (lane < 8 * N) mine.arrived = *mine.row;
  Given all[32];
  host::detail::gather(machine_on_host::kAllLanes, &mine, sizeof mine, all, {file, line});
  for (int i = 0; i < N; ++i) {
    uint16_t pair[2];
    for (int j = 0; j < 2; ++j) {
      const Given& from = all[8 * i + (kTransposed ? lane % 4 * 2 + j : lane / 4)];
      const int column = kTransposed ? lane / 4 : lane % 4 * 2 + j;
      const uint16_t now = from.row->element[column];
      pair[j] = now == from.arrived.element[column] ? now : 0xffff;
    }
    to[i] = pair[0] | static_cast<uint32_t>(pair[1]) << 16;
  }
}

inline void store_matrices(Spot row, uint32_t m0, uint32_t m1, uint32_t m2, uint32_t m3,
                           const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  struct Given {
    Spot row;
  };
  machine_on_host::check_aligned(row, 16, "a row of a matrix");
  const Given mine{row};
  Given all[32];
  host::detail::gather(machine_on_host::kAllLanes, &mine, sizeof mine, all, {file, line});
  const int lane = host::detail::lane_index();
  const uint32_t matrices[4] = {m0, m1, m2, m3};
  for (int i = 0; i < 4; ++i) store_shared(all[8 * i + lane / 4].row + lane % 4 * 4, matrices[i]);
}

inline uint32_t transpose_matrix(uint32_t mine, const char* file = __builtin_FILE(),
                                 int line = __builtin_LINE()) {
  uint32_t all[32];
  host::detail::gather(machine_on_host::kAllLanes, &mine, sizeof mine, all, {file, line});
  const int lane = host::detail::lane_index();
  uint32_t out = 0;
  for (int j = 0; j < 2; ++j) {
    const int row = lane % 4 * 2 + j;  // of the matrix that was given, at column lane / 4
    const uint32_t pair = all[row * 4 + lane / 4 / 2];
    out |= (pair >> (16 * (lane / 4 % 2)) & 0xffffu) << (16 * j);
  }
  return out;
}

// As for 9.0; that `own` is the place that earlier machines store to is checked.
template <int N>
inline void store_transposed(Spot row, Spot own, const uint32_t (&m)[N], const char* file = __builtin_FILE(),
                             int line = __builtin_LINE()) {
  struct Given {
    Spot row;
  };
  const int lane = host::detail::lane_index();
  if (lane < 8 * N) machine_on_host::check_aligned(row, 16, "a row of a matrix");
  const Given mine{row};
  Given all[32];
  host::detail::gather(machine_on_host::kAllLanes, &mine, sizeof mine, all, {file, line});
  for (int i = 0; i < N; ++i) {
    const Spot to = all[8 * i + lane / 4].row + lane % 4 * 4;
    if (to != own + 16 * i) machine_on_host::fail("a place of a transposed matrix");
    store_shared(to, transpose_matrix(m[i], file, line));
  }
}

template <typename T>
void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, T,
                  const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  machine_on_host::multiply_add<T, 2>(c, a, {b0, b1}, file, line);
}

template <typename T>
void multiply_add(float (&c)[4], const uint32_t (&a)[2], uint32_t b, T, const char* file = __builtin_FILE(),
                  int line = __builtin_LINE()) {
  machine_on_host::multiply_add<T, 1>(c, a, {b}, file, line);
}

template <typename T>
void multiply_add_sparse(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[4], uint32_t places, T,
                         const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  using machine_on_host::element_of;
  struct Given {
    uint32_t a[4];
    uint32_t b[4];
    uint32_t places;
  };
  Given mine;
  std::copy(a, a + 4, mine.a);
  std::copy(b, b + 4, mine.b);
  mine.places = places;
  Given all[32];
  host::detail::gather(machine_on_host::kAllLanes, &mine, sizeof mine, all, {file, line});
  const int lane = host::detail::lane_index();
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8;
    const int column = lane % 4 * 2 + i % 2;
    for (int four = 0; four < 8; ++four) {
      // Lane 0 of a quad tells the places of columns 0 to 15, lane 1 those of columns 16 to 31.
      const uint32_t where = all[row % 8 * 4 + four / 4].places >> (row / 8 * 16 + four % 4 * 4) & 15;
      if ((where & 3) >= where >> 2) machine_on_host::fail("places of a sparse product that do not ascend");
      for (int j = 0; j < 2; ++j) {
        const int k = 4 * four + static_cast<int>(where >> (2 * j) & 3);
        c[i] += element_of<T>(all[row % 8 * 4 + four % 4].a[four / 4 * 2 + row / 8], j) *
                element_of<T>(all[column * 4 + k % 8 / 2].b[k / 8], k % 2);
      }
    }
  }
}

template <typename T>
uint32_t pack(float low, float high, T) {
  T halves[2];
  narrow(low, &halves[0]);
  narrow(high, &halves[1]);
  return halves[0].bits | static_cast<uint32_t>(halves[1].bits) << 16;
}

template <typename T>
uint32_t larger(uint32_t a, uint32_t b, T) {
  const auto of_half = [&](int shift) {
    const auto bits = [&](uint32_t pair) { return static_cast<uint16_t>(pair >> shift); };
    const float x = widen(T{bits(a)}), y = widen(T{bits(b)});
    return x > y || x != x ? x : y;  // a NaN in y is not less than x
  };
  return pack(of_half(0), of_half(16), T{});
}

inline uint32_t permute(uint32_t low, uint32_t high, uint32_t selector) {
  const uint64_t both = low | static_cast<uint64_t>(high) << 32;
  uint32_t out = 0;
  for (int i = 0; i < 4; ++i) {
    out |= static_cast<uint32_t>(both >> (8 * (selector >> (4 * i) & 7)) & 0xff) << (8 * i);
  }
  return out;
}

template <typename Kernel, typename... Arguments>
cudaError_t launch_kernel(Kernel kernel, dim3 grid, unsigned block, size_t shared_bytes, cudaStream_t,
                          const Arguments&... arguments) {
  machine_on_host::copies();  // made before a fiber asks for it
  return host::launch(kernel, grid, dim3(block), shared_bytes, arguments...);
}

}  // namespace involution
