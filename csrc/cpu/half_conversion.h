// Conversions between float32 and the half types, rounded to nearest, ties to even, as csrc/cuda/scalar.cuh
// does.
#pragma once

#include "vector_types.h"

namespace involution::cpu::INVOLUTION_CPU_NAMESPACE {

// Whole words from half words, and the upper halves of words: the compiler's own conversions take vectors
// apart.
INVOLUTION_INLINE Words words_of(HalfWords halves) {
#if defined(INVOLUTION_CPU_AVX512)
  return bits_as<Words>(_mm512_maskz_cvtepu16_epi32(0xffff, bits_as<__m256i>(halves)));
#elif defined(INVOLUTION_CPU_AVX2)
  return bits_as<Words>(_mm256_cvtepu16_epi32(bits_as<__m128i>(halves)));
#else
  return __builtin_convertvector(halves, Words);
#endif
}

INVOLUTION_INLINE HalfWords upper_halves(Words words) {
#if defined(INVOLUTION_CPU_AVX512)
  const __m512i odd = _mm512_set_epi16(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 31, 29, 27, 25, 23, 21,
                                       19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
  const __m512i packed = _mm512_maskz_permutexvar_epi16(0xffff, odd, bits_as<__m512i>(words));
  return bits_as<HalfWords>(_mm512_castsi512_si256(packed));
#elif defined(INVOLUTION_CPU_AVX2)
  // The pack works within halves of a vector.
  const __m256i low = _mm256_srli_epi32(bits_as<__m256i>(words), 16);
  const __m256i packed = _mm256_packus_epi32(low, low);
  return bits_as<HalfWords>(_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
#else
  return __builtin_convertvector(words >> 16, HalfWords);
#endif
}

INVOLUTION_INLINE Floats widen(BFloat16, HalfWords stored) { return bits_as<Floats>(words_of(stored) << 16); }

INVOLUTION_INLINE HalfWords narrow(BFloat16, Floats value) {
  const Words bits = bits_as<Words>(value);
  const Words rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  return upper_halves(value != value ? broadcast(0x7fff0000) : rounded);
}

#if defined(INVOLUTION_CPU_AVX512)

INVOLUTION_INLINE Floats widen(Float16, HalfWords stored) {
  return bits_as<Floats>(_mm512_maskz_cvtph_ps(0xffff, bits_as<__m256i>(stored)));
}
INVOLUTION_INLINE HalfWords narrow(Float16, Floats value) {
  return bits_as<HalfWords>(
      _mm512_maskz_cvtps_ph(0xffff, bits_as<__m512>(value), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

#elif defined(INVOLUTION_CPU_AVX2)

INVOLUTION_INLINE Floats widen(Float16, HalfWords stored) {
  return bits_as<Floats>(_mm256_cvtph_ps(bits_as<__m128i>(stored)));
}
INVOLUTION_INLINE HalfWords narrow(Float16, Floats value) {
  return bits_as<HalfWords>(
      _mm256_cvtps_ph(bits_as<__m256>(value), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

#else

INVOLUTION_INLINE Floats widen(Float16, HalfWords stored) {
  const Words half = __builtin_convertvector(stored, Words);
  const Words sign = (half & 0x8000u) << 16;
  const Words magnitude = (half & 0x7fffu) << 13;
  const Words normal = magnitude + (112u << 23);
  const Words special = magnitude | 0x7f800000u;
  // Zero and subnormal numbers are so many times 2^-24.
  typedef int32_t Integers __attribute__((vector_size(kVectorBytes)));
  const Floats small = __builtin_convertvector(bits_as<Integers>(half & 0x3ffu), Floats) * 0x1p-24f;
  const Words finite = magnitude < (1u << 23) ? bits_as<Words>(small) : normal;
  return bits_as<Floats>(sign | (magnitude >= (31u << 23) ? special : finite));
}

INVOLUTION_INLINE HalfWords narrow(Float16, Floats value) {
  const Words bits = bits_as<Words>(value);
  const Words sign = (bits >> 16) & 0x8000u;
  const Words magnitude = bits & 0x7fffffffu;
  // Below 2^-14, adding 0.5 leaves the subnormal number's bits at the end.
  const Words small = bits_as<Words>(bits_as<Floats>(magnitude) + 0.5f) - 0x3f000000u;
  const Words normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const Words infinity = broadcast(0x7c00), nan = broadcast(0x7fff);
  const Words finite = magnitude < 0x38800000u ? small : normal;
  const Words any = magnitude >= 0x47800000u ? infinity : finite;
  return __builtin_convertvector(magnitude > 0x7f800000u ? nan : (sign | any), HalfWords);
}

#endif

}  // namespace involution::cpu::INVOLUTION_CPU_NAMESPACE
