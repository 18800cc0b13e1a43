// Copies from global to shared memory that take no registers on their way, so that a thread has as many in
// flight as it likes.
#pragma once

#include "platform.cuh"

namespace involution {

#ifdef __CUDACC__

// 16 bytes, on both sides at a multiple of 16; zeros where `inside` is false, and nothing is read.
__device__ __forceinline__ void copy_async(void* to, const void* from, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(to))),
                 "l"(__cvta_generic_to_global(from)), "r"(inside ? 16 : 0)
               : "memory");
}

// Until what this thread has begun to copy is there, for itself; for others after a barrier.
__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_all;" : : : "memory"); }

#else

// What a thread copies is NaN until it has waited.
namespace copy_on_host {

struct alignas(16) Piece {
  unsigned char bytes[16];
};

struct Copy {
  Piece* to;
  const Piece* from;  // null for zeros
};

inline std::vector<Copy>& begun() {
  static std::vector<Copy> by_thread[1024];
  return by_thread[(threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x];
}

}  // namespace copy_on_host

inline void copy_async(void* to, const void* from, bool inside) {
  using copy_on_host::Piece;
  auto* place = static_cast<Piece*>(to);
  Piece poison;
  std::fill(std::begin(poison.bytes), std::end(poison.bytes), static_cast<unsigned char>(0xff));
  *place = poison;
  copy_on_host::begun().push_back({place, inside ? static_cast<const Piece*>(from) : nullptr});
}

inline void wait_for_copies() {
  for (const auto& copy : copy_on_host::begun()) {
    *copy.to = copy.from == nullptr ? copy_on_host::Piece{} : *copy.from;
  }
  copy_on_host::begun().clear();
}

#endif

}  // namespace involution
