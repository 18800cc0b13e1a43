// Loads and stores of vectors, at any alignment: half types become float32 on the way, and back.
#pragma once

#include "half_conversion.h"

namespace involution::cpu::INVOLUTION_CPU_NAMESPACE {

INVOLUTION_INLINE Floats load(const float* from) {
  Floats value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}
INVOLUTION_INLINE Doubles load(const double* from) {
  Doubles value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}
template <typename T>
INVOLUTION_INLINE Floats load(const T* from) {
  HalfWords stored;
  __builtin_memcpy(&stored, from, sizeof stored);
  return widen(T{}, stored);
}

INVOLUTION_INLINE void store(float* to, Floats value) { __builtin_memcpy(to, &value, sizeof value); }
INVOLUTION_INLINE void store(double* to, Doubles value) { __builtin_memcpy(to, &value, sizeof value); }
template <typename T>
INVOLUTION_INLINE void store(T* to, Floats value) {
  const HalfWords stored = narrow(T{}, value);
  __builtin_memcpy(to, &stored, sizeof stored);
}

// The first `count` lanes, the others zero; only those lanes are touched in memory.
#if defined(INVOLUTION_CPU_AVX512)

INVOLUTION_INLINE uint32_t lane_mask(int64_t count) { return (1u << count) - 1; }
INVOLUTION_INLINE Floats load_lanes(const float* from, int64_t count) {
  return bits_as<Floats>(_mm512_maskz_loadu_ps(static_cast<__mmask16>(lane_mask(count)), from));
}
INVOLUTION_INLINE Doubles load_lanes(const double* from, int64_t count) {
  return bits_as<Doubles>(_mm512_maskz_loadu_pd(static_cast<__mmask8>(lane_mask(count)), from));
}
template <typename T>
INVOLUTION_INLINE Floats load_lanes(const T* from, int64_t count) {
  const __m256i stored = _mm256_maskz_loadu_epi16(static_cast<__mmask16>(lane_mask(count)), from);
  return widen(T{}, bits_as<HalfWords>(stored));
}
INVOLUTION_INLINE void store_lanes(float* to, Floats value, int64_t count) {
  _mm512_mask_storeu_ps(to, static_cast<__mmask16>(lane_mask(count)), bits_as<__m512>(value));
}
INVOLUTION_INLINE void store_lanes(double* to, Doubles value, int64_t count) {
  _mm512_mask_storeu_pd(to, static_cast<__mmask8>(lane_mask(count)), bits_as<__m512d>(value));
}
template <typename T>
INVOLUTION_INLINE void store_lanes(T* to, Floats value, int64_t count) {
  _mm256_mask_storeu_epi16(to, static_cast<__mmask16>(lane_mask(count)),
                           bits_as<__m256i>(narrow(T{}, value)));
}

#elif defined(INVOLUTION_CPU_AVX2)

// All ones, then zeros: a mask of `count` lanes begins `count` before the zeros.
constexpr int32_t kMask32[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
constexpr int64_t kMask64[8] = {-1, -1, -1, -1};

INVOLUTION_INLINE __m256i lane_mask(const float*, int64_t count) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kMask32 + 8 - count));
}
INVOLUTION_INLINE __m256i lane_mask(const double*, int64_t count) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kMask64 + 4 - count));
}
INVOLUTION_INLINE Floats load_lanes(const float* from, int64_t count) {
  return bits_as<Floats>(_mm256_maskload_ps(from, lane_mask(from, count)));
}
INVOLUTION_INLINE Doubles load_lanes(const double* from, int64_t count) {
  return bits_as<Doubles>(_mm256_maskload_pd(from, lane_mask(from, count)));
}
// Half types have no masked loads: two loads that overlap, or a single value.
template <typename T>
INVOLUTION_INLINE Floats load_lanes(const T* from, int64_t count) {
  uint64_t low = 0, high = 0;
  if (count >= 4) {
    __builtin_memcpy(&low, from, 8);
    __builtin_memcpy(&high, from + count - 4, 8);
    high = count == 4 ? 0 : high >> (8 - count) * 16;
  } else if (count >= 2) {
    uint32_t pair, end;
    __builtin_memcpy(&pair, from, 4);
    __builtin_memcpy(&end, from + count - 2, 4);
    low = pair | static_cast<uint64_t>(end) << (count - 2) * 16;
  } else if (count == 1) {
    low = from->bits;
  }
  typedef uint64_t Two __attribute__((vector_size(16)));
  return widen(T{}, bits_as<HalfWords>(Two{low, high}));
}

// A masked store takes dozens of instructions within the processor, on some; these take three.
template <typename V, typename S>
INVOLUTION_INLINE void store_pieces(S* to, const V& value, int64_t bytes) {
  static_assert(sizeof(V) == 16 || sizeof(V) == 32, "a vector, or one of half types");
  auto* at = reinterpret_cast<unsigned char*>(to);
  typedef uint64_t Two __attribute__((vector_size(16)));
  Two piece;
  if constexpr (sizeof(V) == 32) {
    piece = bits_as<Two>(_mm256_castsi256_si128(bits_as<__m256i>(value)));
    if (bytes & 16) {
      __builtin_memcpy(at, &piece, 16);
      at += 16;
      piece = bits_as<Two>(_mm256_extracti128_si256(bits_as<__m256i>(value), 1));
    }
  } else {
    piece = bits_as<Two>(value);
  }
  uint64_t rest = piece[0];
  if (bytes & 8) {
    __builtin_memcpy(at, &rest, 8);
    at += 8;
    rest = piece[1];
  }
  if (bytes & 4) {
    __builtin_memcpy(at, &rest, 4);
    at += 4;
    rest >>= 32;
  }
  if constexpr (sizeof(S) == 2) {
    if (bytes & 2) __builtin_memcpy(at, &rest, 2);
  }
}
INVOLUTION_INLINE void store_lanes(float* to, Floats value, int64_t count) {
  store_pieces(to, value, count * 4);
}
INVOLUTION_INLINE void store_lanes(double* to, Doubles value, int64_t count) {
  store_pieces(to, value, count * 8);
}
template <typename T>
INVOLUTION_INLINE void store_lanes(T* to, Floats value, int64_t count) {
  store_pieces(to, narrow(T{}, value), count * 2);
}

#else

template <typename T>
INVOLUTION_INLINE Vector<T> load_lanes(const T* from, int64_t count) {
  T lanes[kLanes<T>] = {};
  for (int64_t lane = 0; lane < count; ++lane) lanes[lane] = from[lane];
  return load(lanes);
}
template <typename T>
INVOLUTION_INLINE void store_lanes(T* to, Vector<T> value, int64_t count) {
  T lanes[kLanes<T>];
  store(lanes, value);
  for (int64_t lane = 0; lane < count; ++lane) to[lane] = lanes[lane];
}

#endif

// As many values as a vector or a half has.
template <typename V, typename S>
INVOLUTION_INLINE V load_as(const S* from) {
  V value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}
INVOLUTION_INLINE HalfFloats lower_half(const Floats& value) {
#if defined(INVOLUTION_CPU_AVX512)
  return bits_as<HalfFloats>(_mm512_castps512_ps256(bits_as<__m512>(value)));
#else
  HalfFloats half;
  __builtin_memcpy(&half, &value, sizeof half);
  return half;
#endif
}
// Half a vector as the front of a whole one.
INVOLUTION_INLINE Floats whole_of(const HalfFloats& value) {
#if defined(INVOLUTION_CPU_AVX512)
  return bits_as<Floats>(_mm512_castps256_ps512(bits_as<__m256>(value)));
#else
  Floats whole = {};
  __builtin_memcpy(&whole, &value, sizeof value);
  return whole;
#endif
}
template <typename V, typename S>
INVOLUTION_INLINE void store_as(S* to, const V& value, int64_t count) {
  if (count * static_cast<int64_t>(sizeof(S)) >= static_cast<int64_t>(sizeof(V))) {
    __builtin_memcpy(to, &value, sizeof value);
  } else if constexpr (sizeof(V) == kVectorBytes) {
    store_lanes(to, value, count);
  } else {
    store_lanes(to, whole_of(value), count);
  }
}

// --- One value ---------------------------------------------------------------------------------------------

INVOLUTION_INLINE float load_one(const float* from) { return *from; }
INVOLUTION_INLINE double load_one(const double* from) { return *from; }
INVOLUTION_INLINE float load_one(const BFloat16* from) {
  return bits_as<float>(static_cast<uint32_t>(from->bits) << 16);
}
INVOLUTION_INLINE float load_one(const Float16* from) {
#if defined(INVOLUTION_CPU_AVX512) || defined(INVOLUTION_CPU_AVX2)
  return _cvtsh_ss(from->bits);
#else
  return load_lanes(from, 1)[0];
#endif
}

// One value in every lane.
template <typename T>
INVOLUTION_INLINE Vector<T> broadcast(const T* from) {
  if constexpr (sizeof(T) == sizeof(Sum<T>)) {
    return *from - Vector<T>{};
  } else {
#if defined(INVOLUTION_CPU_AVX512)
    const __m512i all = _mm512_set1_epi16(static_cast<short>(from->bits));
    if constexpr (kIsBFloat16<T>) return bits_as<Floats>(_mm512_slli_epi32(all, 16));
    return widen(T{}, bits_as<HalfWords>(_mm512_castsi512_si256(all)));
#elif defined(INVOLUTION_CPU_AVX2)
    const __m256i all = _mm256_set1_epi16(static_cast<short>(from->bits));
    if constexpr (kIsBFloat16<T>) return bits_as<Floats>(_mm256_slli_epi32(all, 16));
    return widen(T{}, bits_as<HalfWords>(_mm256_castsi256_si128(all)));
#else
    return load_one(from) - Vector<T>{};
#endif
  }
}

}  // namespace involution::cpu::INVOLUTION_CPU_NAMESPACE
