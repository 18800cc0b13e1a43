// Several neighbouring elements moved by as few and as wide instructions as the machine has.
#pragma once

#include "scalar.cuh"

namespace involution {

constexpr int kWidestAccess = 16;  // bytes

template <typename T, int N>
struct alignas(sizeof(T) * N < kWidestAccess ? sizeof(T) * N : kWidestAccess) Vector {
  T value[N];
};

#ifdef __CUDACC__
// A kernel tensor is read once: the streaming hint keeps it from evicting the input, which is not.
template <int Bytes>
struct Word;
template <>
struct Word<8> {
  using type = uint2;
};
template <>
struct Word<16> {
  using type = uint4;
};

template <typename T, int N>
__device__ __forceinline__ Vector<T, N> load_streaming(const T* from) {
  using Wide = Vector<T, N>;
  using Access = typename Word<alignof(Wide)>::type;
  Wide vector;
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(Wide) / sizeof(Access)); ++i) {
    const Access word = __ldcs(reinterpret_cast<const Access*>(from) + i);
    memcpy(reinterpret_cast<Access*>(&vector) + i, &word, sizeof word);
  }
  return vector;
}
#else
template <typename T, int N>
Vector<T, N> load_streaming(const T* from) {
  return *reinterpret_cast<const Vector<T, N>*>(from);
}
#endif

// Keeps the compiler from making a loop's constant again in every iteration.
__device__ __forceinline__ void keep_in_register(int& value) {
#ifdef __CUDACC__
  asm volatile("" : "+r"(value));
#else
  static_cast<void>(value);
#endif
}

// first + offset in one instruction: left to itself, the compiler keeps 64-bit offsets of a loop in
// registers, and adds each in two.
template <typename T>
__device__ __forceinline__ T* element(T* first, int offset) {
#ifdef __CUDACC__
  uint64_t address;
  asm("{ .reg .s64 bytes; mul.wide.s32 bytes, %1, %2; add.s64 %0, %3, bytes; }"
      : "=l"(address)
      : "r"(offset), "n"(sizeof(T)), "l"(__cvta_generic_to_global(first)));
  return static_cast<T*>(__cvta_global_to_generic(address));
#else
  return first + offset;
#endif
}

// N accumulators to N neighbouring elements at `to`, aligned for the widest access of N elements.
template <typename T, int N>
__device__ __forceinline__ void store_vector(T* to, const Accumulate<T>* values) {
  Vector<T, N> vector;
#pragma unroll
  for (int i = 0; i < N; ++i) vector.value[i] = narrowed<T>(values[i]);
  *reinterpret_cast<Vector<T, N>*>(to) = vector;
}

// N neighbouring elements of shared memory to registers.
template <typename T, int N>
__device__ __forceinline__ void load_shared(T (&to)[N], const T* from) {
  constexpr int kPiece = kWidestAccess / sizeof(T);
  static_assert(N % kPiece == 0, "a run is a whole number of the widest accesses");
#pragma unroll
  for (int i = 0; i < N; i += kPiece) {
    const auto piece = *reinterpret_cast<const Vector<T, kPiece>*>(from + i);
#pragma unroll
    for (int j = 0; j < kPiece; ++j) to[i + j] = piece.value[j];
  }
}

}  // namespace involution
