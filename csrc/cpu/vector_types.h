// Vectors of the instruction set that the including file is compiled for.
//
// The arithmetic is that of the compilers' vector extensions, which every machine has; intrinsics serve where
// these have no word: masked access and the conversions of float16. Everything is inlined into the kernels,
// in a namespace of the instruction set, so that no code for one machine is linked into what another runs.
#pragma once

#include "../half_types.h"

#ifndef INVOLUTION_CPU_NAMESPACE
#error "kernels_*.cpp define the instruction set before they include the kernels."
#endif

#define INVOLUTION_INLINE inline __attribute__((always_inline))

namespace involution::cpu::INVOLUTION_CPU_NAMESPACE {

#if defined(INVOLUTION_CPU_VECTOR_BYTES)  // of no instruction set: the compiler takes vectors apart
constexpr int kVectorBytes = INVOLUTION_CPU_VECTOR_BYTES;
#elif defined(INVOLUTION_CPU_AVX512)
constexpr int kVectorBytes = 64;
#elif defined(INVOLUTION_CPU_AVX2)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

// AVX-512 has 32, the others (Arm apart) 16.
constexpr int kRegisters = kVectorBytes == 64 ? 32 : 16;
constexpr int kFloats = kVectorBytes / 4;
typedef float Floats __attribute__((vector_size(kVectorBytes)));
typedef double Doubles __attribute__((vector_size(kVectorBytes)));
typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));
typedef uint16_t HalfWords __attribute__((vector_size(kVectorBytes / 2)));

template <typename T>
struct Arithmetic {
  using Sum = float;
  using Vector = Floats;
};
template <>
struct Arithmetic<double> {
  using Sum = double;
  using Vector = Doubles;
};
template <typename T>
using Sum = typename Arithmetic<T>::Sum;
template <typename T>
using Vector = typename Arithmetic<T>::Vector;
// Half a vector, for what has eight elements whatever the instruction set (matrix_transpose.h).
typedef float HalfFloats __attribute__((vector_size(kVectorBytes / 2)));

template <typename T>
constexpr bool kIsBFloat16 = false;
template <>
constexpr bool kIsBFloat16<BFloat16> = true;
template <typename T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(Sum<T>));

// A number that a generic lambda can take as a constant.
template <int kCount>
struct Count {
  static constexpr int value = kCount;
};

// The same bits as another type.
template <typename To, typename From>
INVOLUTION_INLINE To bits_as(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "bits are neither lost nor made");
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

INVOLUTION_INLINE Words broadcast(uint32_t value) { return value - Words{}; }

}  // namespace involution::cpu::INVOLUTION_CPU_NAMESPACE
