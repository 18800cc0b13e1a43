// The two tensor-core instructions of the banded kernels, each behind one function: PTX on a device, and on
// the host the same fragments exchanged between the fibers of a warp.
//
// Fragments are those of PTX (ldmatrix, mma.m16n8k16 and mma.m16n8k8 of 16-bit types). Lane l holds, two
// neighbours to a register, the first in the low half,
//
//   8x8 matrix   row l/4, columns 2*(l%4) and +1; transposed, these are column l/4, rows 2*(l%4) and +1
//   A (16 x 16)  four such: rows 0-7 | 8-15 of columns 0-7, then the same of columns 8-15; (16 x 8) the first
//   two B (16 x 8)   for column l/4: rows 2*(l%4) and +1, then those 8 further on; (8 x 8) the first alone C
//   (16 x 8)   float32: row l/4, columns 2*(l%4) and +1, then row l/4 + 8
#pragma once

#include <cstdint>

#include "scalar.cuh"

namespace involution {

#ifdef __CUDACC__

// N = 2 or 4 matrices of 8x8 16-bit elements from shared memory. Lane 8*i + r gives the address of row r of
// matrix i, a multiple of 16 bytes; with N = 2 the addresses of lanes 16 to 31 are not used.
template <int N, bool kTransposed>
__device__ __forceinline__ void load_matrices(uint32_t (&to)[N], const void* row) {
  static_assert(N == 2 || N == 4, "these are the sizes that the kernels use");
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  if constexpr (N == 4 && kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
  } else if constexpr (N == 4) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
  } else if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(to[0]), "=r"(to[1])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(to[0]), "=r"(to[1])
                 : "r"(address)
                 : "memory");
  }
}

// c += A (16 x 16) * B (16 x 8).
__device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                             Float16) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                             BFloat16) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// c += A (16 x 8) * B (8 x 8).
__device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[2], uint32_t b, Float16) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(b));
}

__device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[2], uint32_t b, BFloat16) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(b));
}

#else

namespace mma_on_host {

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

}  // namespace mma_on_host

// A row is read when its lane arrives and again when another lane takes its part. Where the two differ, a
// barrier is missing before or after the instruction, and the part is a NaN.
template <int N, bool kTransposed>
void load_matrices(uint32_t (&to)[N], const void* row, const char* file = __builtin_FILE(),
                   int line = __builtin_LINE()) {
  struct alignas(16) Row {
    uint16_t element[8];
  };
  struct Given {
    Row arrived;
    const Row* row;
  };
  const int lane = host::detail::lane_index();
  Given mine{{}, static_cast<const Row*>(row)};
  if (lane < 8 * N) mine.arrived = *mine.row;
  Given all[32];
  host::detail::gather(mma_on_host::kAllLanes, &mine, sizeof mine, all, {file, line});
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

template <typename T>
void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, T,
                  const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  mma_on_host::multiply_add<T, 2>(c, a, {b0, b1}, file, line);
}

template <typename T>
void multiply_add(float (&c)[4], const uint32_t (&a)[2], uint32_t b, T, const char* file = __builtin_FILE(),
                  int line = __builtin_LINE()) {
  mma_on_host::multiply_add<T, 1>(c, a, {b}, file, line);
}

#endif

}  // namespace involution
