// What the kernels ask of the machine beyond plain C++, one small function for each instruction: asynchronous
// copies, barriers, the loads, stores and products of tensor cores. Where nvcc does not compile, the tests
// supply the same functions (tests/host/machine_on_host.h) and execute the kernels on the host.
//
// Fragments are those of PTX (ldmatrix, mma.m16n8k16 of 16-bit types). Lane l holds, two neighbours to a
// register, the first in the low half,
//
//   8x8 matrix   row l/4, columns 2*(l%4) and +1; transposed, these are column l/4, rows 2*(l%4) and +1
//   A (16 x 16)  four such: rows 0-7 | 8-15 of columns 0-7, then the same of columns 8-15
//   A (16 x 8)   the first two of these
//   B (16 x 8)   for column l/4: rows 2*(l%4) and +1, then those 8 further on
//   B (8 x 8)    the first of these alone
//   C (16 x 8)   float32: row l/4, columns 2*(l%4) and +1, then row l/4 + 8
#pragma once

#ifdef __CUDACC__

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "../half_types.h"

#define INVOLUTION_OUT_OF_LINE inline __noinline__

namespace involution {

__device__ __forceinline__ float widen(Float16 value) { return __half2float(__ushort_as_half(value.bits)); }
__device__ __forceinline__ float widen(BFloat16 value) {
  return __uint_as_float(static_cast<unsigned>(value.bits) << 16);
}
__device__ __forceinline__ void narrow(float value, Float16* out) {
  out->bits = __half_as_ushort(__float2half_rn(value));
}
__device__ __forceinline__ void narrow(float value, BFloat16* out) {
  out->bits = __bfloat16_as_ushort(__float2bfloat16_rn(value));
}

// A place in shared memory. As a number of 32 bits its arithmetic is half that of a pointer's.
using Spot = unsigned;

__device__ __forceinline__ Spot shared_memory() {
  extern __shared__ __align__(128) unsigned char involution_shared_memory[];
  return static_cast<unsigned>(__cvta_generic_to_shared(involution_shared_memory));
}

// kBytes (16, 8 or 4, aligned on both sides) from global to shared memory, without a register on the way.
template <int kBytes>
__device__ __forceinline__ void copy_async(Spot to, const void* from) {
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" : : "r"(to), "l"(from) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" : : "r"(to), "l"(from), "n"(kBytes) : "memory");
  }
}

// 16 bytes likewise where `inside`, else zeros, and then `from` may be anything. The compiler makes one
// instruction of it, where a copy behind a condition is a branch with nine; in front of the first copy behind
// any branch it puts three that do nothing.
__device__ __forceinline__ void copy_or_clear(Spot to, const void* from, bool inside) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;"
               :
               : "r"(to), "l"(from), "r"(inside ? 16 : 0)
               : "memory");
}

// Ends a group of this thread's copies.
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" : : : "memory"); }

// Until all but the last kPending groups of this thread are there: for itself, for others after a barrier.
template <int kPending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" : : "n"(kPending) : "memory");
}

// A barrier of all threads of a block, which may come from different places of a kernel.
__device__ __forceinline__ void meet() { asm volatile("barrier.sync.aligned 0;" : : : "memory"); }

// The upper half of a product.
__device__ __forceinline__ uint32_t multiply_high(uint32_t a, uint32_t b) { return __umulhi(a, b); }

// What is the same in all lanes of a warp, so that the compiler knows.
__device__ __forceinline__ int uniform(int of_warp) { return __shfl_sync(0xffffffffu, of_warp, 0); }

template <typename T>
__device__ __forceinline__ T load_shared(Spot at);
template <>
__device__ __forceinline__ uint16_t load_shared(Spot at) {
  uint16_t value;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(value) : "r"(at) : "memory");
  return value;
}
template <>
__device__ __forceinline__ float load_shared(Spot at) {
  float value;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(at) : "memory");
  return value;
}
template <>
__device__ __forceinline__ uint32_t load_shared(Spot at) {
  uint32_t value;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(value) : "r"(at) : "memory");
  return value;
}
template <>
__device__ __forceinline__ uint2 load_shared(Spot at) {
  uint2 v;
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(at) : "memory");
  return v;
}
template <>
__device__ __forceinline__ float2 load_shared(Spot at) {
  float2 v;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(at) : "memory");
  return v;
}
template <>
__device__ __forceinline__ uint4 load_shared(Spot at) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(at)
               : "memory");
  return v;
}
template <>
__device__ __forceinline__ float4 load_shared(Spot at) {
  float4 v;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(at)
               : "memory");
  return v;
}

__device__ __forceinline__ void store_shared(Spot at, uint16_t value) {
  asm volatile("st.shared.u16 [%0], %1;" : : "r"(at), "h"(value) : "memory");
}
__device__ __forceinline__ void store_shared(Spot at, uint32_t value) {
  asm volatile("st.shared.u32 [%0], %1;" : : "r"(at), "r"(value) : "memory");
}
__device__ __forceinline__ void store_shared(Spot at, float value) {
  asm volatile("st.shared.f32 [%0], %1;" : : "r"(at), "f"(value) : "memory");
}
__device__ __forceinline__ void store_shared(Spot at, float4 v) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};"
               :
               : "r"(at), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w)
               : "memory");
}

__device__ __forceinline__ void store_shared(Spot at, uint4 v) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};"
               :
               : "r"(at), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}

// 16 bytes to global memory in one piece: where a loop is around such a store, nvcc 13.0 makes four of it.
__device__ __forceinline__ void store_global(void* to, uint4 v) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};"
               :
               : "l"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}

// N = 2 or 4 matrices of 8x8 16-bit elements from shared memory. Lane 8*i + r gives the address of row r of
// matrix i, a multiple of 16 bytes; with N = 2 the addresses of lanes 16 to 31 are not used.
template <int N, bool kTransposed>
__device__ __forceinline__ void load_matrices(uint32_t* to, Spot row) {
  static_assert(N == 2 || N == 4, "these are the sizes that the kernels use");
  if constexpr (N == 4 && kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(row)
                 : "memory");
  } else if constexpr (N == 4) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(row)
                 : "memory");
  } else if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(to[0]), "=r"(to[1])
                 : "r"(row)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(to[0]), "=r"(to[1])
                 : "r"(row)
                 : "memory");
  }
}

// The opposite of load_matrices<4, false>.
__device__ __forceinline__ void store_matrices(Spot row, uint32_t m0, uint32_t m1, uint32_t m2, uint32_t m3) {
#if __CUDA_ARCH__ >= 900
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};"
               :
               : "r"(row), "r"(m0), "r"(m1), "r"(m2), "r"(m3)
               : "memory");
#else
  const uint32_t matrices[4] = {m0, m1, m2, m3};
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    store_shared(__shfl_sync(0xffffffffu, row, 8 * i + lane / 4) + lane % 4 * 4, matrices[i]);
  }
#endif
}

// The matrix whose rows the lanes hold, two elements each, with rows and columns exchanged.
__device__ __forceinline__ uint32_t transpose_matrix(uint32_t pair) {
  uint32_t out;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(pair));
  return out;
}

// N = 2 or 4 matrices, each with rows and columns exchanged, side by side: the rows of 8 elements that they
// have then lie 16 bytes apart. Lane 8*i + r gives in `row` the address of row r of matrix i; `own` is where
// the lane's own pair of the first matrix goes.
template <int N>
__device__ __forceinline__ void store_transposed(Spot row, Spot own, const uint32_t (&m)[N]) {
  static_assert(N == 2 || N == 4, "these are the sizes that the kernels use");
#if __CUDA_ARCH__ >= 900
  if constexpr (N == 4) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};"
                 :
                 : "r"(row), "r"(m[0]), "r"(m[1]), "r"(m[2]), "r"(m[3])
                 : "memory");
  } else {
    asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};"
                 :
                 : "r"(row), "r"(m[0]), "r"(m[1])
                 : "memory");
  }
#else
#pragma unroll
  for (int i = 0; i < N; ++i) store_shared(own + 16 * i, transpose_matrix(m[i]));
#endif
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

// c += A (16 x 32) * B (32 x 8), where of each four neighbours in a row of A two are zeros.
//
//   register i of A   the other two, for row l/4 + 8*(i%2), of columns 16*(i/2) + 4*(l%4) to +3
//   `places`          where these are, two bits for each, in the four bits 4*k for columns 4*k to 4*k + 3:
//                     in the low half for row l/4, in the high half for row l/4 + 8, and the same of columns
//                     0-15 and 16-31
#if CUDART_VERSION >= 12050  // the word is older than the compilers that know it
#define INVOLUTION_MMA_SPARSE "mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col."
#else
#define INVOLUTION_MMA_SPARSE "mma.sp.sync.aligned.m16n8k32.row.col."
#endif
__device__ __forceinline__ void multiply_add_sparse(float (&c)[4], const uint32_t (&a)[4],
                                                    const uint32_t (&b)[4], uint32_t places, Float16) {
  asm(INVOLUTION_MMA_SPARSE
      "f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, {%0, %1, %2, %3}, %12, 0x0;"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]), "r"(places));
}
__device__ __forceinline__ void multiply_add_sparse(float (&c)[4], const uint32_t (&a)[4],
                                                    const uint32_t (&b)[4], uint32_t places, BFloat16) {
  asm(INVOLUTION_MMA_SPARSE
      "f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, {%0, %1, %2, %3}, %12, 0x0;"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]), "r"(places));
}
#undef INVOLUTION_MMA_SPARSE

// Two float32 rounded to the nearest, the first in the low half.
__device__ __forceinline__ uint32_t pack(float low, float high, Float16) {
  uint32_t out;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  return out;
}
__device__ __forceinline__ uint32_t pack(float low, float high, BFloat16) {
  uint32_t out;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  return out;
}

// The larger of two pairs of numbers each; NaN where one of them is.
__device__ __forceinline__ uint32_t larger(uint32_t a, uint32_t b, Float16) {
  uint32_t out;
  asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(b));
  return out;
}
__device__ __forceinline__ uint32_t larger(uint32_t a, uint32_t b, BFloat16) {
  uint32_t out;
  asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(b));
  return out;
}

// Four bytes of the eight of (low, high), each chosen by a digit of the selector.
__device__ __forceinline__ uint32_t permute(uint32_t low, uint32_t high, uint32_t selector) {
  return __byte_perm(low, high, selector);
}

// Launches on `stream` and returns the launch's own error; never synchronises.
template <typename Kernel, typename... Arguments>
cudaError_t launch_kernel(Kernel kernel, dim3 grid, unsigned block, size_t shared_bytes, cudaStream_t stream,
                          const Arguments&... arguments) {
  constexpr size_t kWithoutOptIn = 48 * 1024;
  if (shared_bytes > kWithoutOptIn) {
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  kernel<<<grid, block, shared_bytes, stream>>>(arguments...);
  return cudaGetLastError();
}

}  // namespace involution

#else
#include "machine_on_host.h"
#endif
