// Vectors of the instruction set that the including file is compiled for.
//
// The arithmetic is that of the compilers' vector extensions, which every machine has; intrinsics serve where
// these have no word: masked access and the conversions of float16. Everything is inlined into the kernels,
// in a namespace of the instruction set, so that no code for one machine is linked into what another runs.
#pragma once

#include "../cuda/element.h"

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
// Sums of one block in registers.
constexpr int kBlock = kRegisters / 2;

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
// Half a vector, for the ends of rows and for narrow maps, where a whole one would be mostly empty: it is
// loaded twice as fast.
constexpr bool kHasHalves = kVectorBytes == 64;
typedef float HalfFloats __attribute__((vector_size(kVectorBytes / 2)));
typedef double HalfDoubles __attribute__((vector_size(kVectorBytes / 2)));
template <typename V>
struct HalfOf;
template <>
struct HalfOf<Floats> {
  using type = HalfFloats;
};
template <>
struct HalfOf<Doubles> {
  using type = HalfDoubles;
};
template <typename T>
using HalfVector = typename HalfOf<Vector<T>>::type;

// T of a const T*.
template <typename Pointer>
struct Pointee;
template <typename T>
struct Pointee<const T*> {
  using type = T;
};

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

// Keeps a loaded vector that is used twice in a register: GCC loads it again for each use, as operands of
// arithmetic.
template <typename V>
INVOLUTION_INLINE void keep_in_register(V& value) {
#if defined(INVOLUTION_CPU_VECTOR_BYTES)  // fits no register
#elif defined(__x86_64__)
  __asm__("" : "+v"(value));
#elif defined(__aarch64__)
  __asm__("" : "+w"(value));
#endif
}

// --- bfloat16 and float16, rounded to nearest, ties to even, as csrc/cuda/scalar.cuh does -----------------

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

#if defined(INVOLUTION_CPU_AVX512) || defined(INVOLUTION_CPU_AVX2)
INVOLUTION_INLINE __m128i widen_quad(BFloat16, __m128i stored) {
  return _mm_slli_epi32(_mm_cvtepu16_epi32(stored), 16);
}
INVOLUTION_INLINE __m128i widen_quad(Float16, __m128i stored) {
  return bits_as<__m128i>(_mm_cvtph_ps(stored));
}
#endif

// --- Memory, at any alignment ----------------------------------------------------------------------------

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

// Lanes first <= l < last, the others zero; only those lanes are touched in memory.
#if defined(INVOLUTION_CPU_AVX512)

INVOLUTION_INLINE uint32_t lane_mask(int64_t first, int64_t last) {
  return ((1u << last) - 1) & ~((1u << first) - 1);
}
INVOLUTION_INLINE Floats load_lanes(const float* from, int64_t first, int64_t last) {
  return bits_as<Floats>(_mm512_maskz_loadu_ps(static_cast<__mmask16>(lane_mask(first, last)), from));
}
INVOLUTION_INLINE Doubles load_lanes(const double* from, int64_t first, int64_t last) {
  return bits_as<Doubles>(_mm512_maskz_loadu_pd(static_cast<__mmask8>(lane_mask(first, last)), from));
}
template <typename T>
INVOLUTION_INLINE Floats load_lanes(const T* from, int64_t first, int64_t last) {
  const __m256i stored = _mm256_maskz_loadu_epi16(static_cast<__mmask16>(lane_mask(first, last)), from);
  return widen(T{}, bits_as<HalfWords>(stored));
}
INVOLUTION_INLINE void store_lanes(float* to, Floats value, int64_t count) {
  _mm512_mask_storeu_ps(to, static_cast<__mmask16>(lane_mask(0, count)), bits_as<__m512>(value));
}
INVOLUTION_INLINE void store_lanes(double* to, Doubles value, int64_t count) {
  _mm512_mask_storeu_pd(to, static_cast<__mmask8>(lane_mask(0, count)), bits_as<__m512d>(value));
}
template <typename T>
INVOLUTION_INLINE void store_lanes(T* to, Floats value, int64_t count) {
  _mm256_mask_storeu_epi16(to, static_cast<__mmask16>(lane_mask(0, count)),
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
INVOLUTION_INLINE Floats load_lanes(const float* from, int64_t first, int64_t last) {
  const __m256i mask = _mm256_andnot_si256(lane_mask(from, first), lane_mask(from, last));
  return bits_as<Floats>(_mm256_maskload_ps(from, mask));
}
INVOLUTION_INLINE Doubles load_lanes(const double* from, int64_t first, int64_t last) {
  const __m256i mask = _mm256_andnot_si256(lane_mask(from, first), lane_mask(from, last));
  return bits_as<Doubles>(_mm256_maskload_pd(from, mask));
}
// Half types have no masked loads: two loads that overlap, or a single value.
template <typename T>
INVOLUTION_INLINE Floats load_lanes(const T* from, int64_t first, int64_t last) {
  uint64_t low = 0, high = 0;
  const T* begin = from + first;
  const int64_t count = last - first;
  if (count >= 4) {
    __builtin_memcpy(&low, begin, 8);
    __builtin_memcpy(&high, begin + count - 4, 8);
    high = count == 4 ? 0 : high >> (8 - count) * 16;
  } else if (count >= 2) {
    uint32_t pair, end;
    __builtin_memcpy(&pair, begin, 4);
    __builtin_memcpy(&end, begin + count - 2, 4);
    low = pair | static_cast<uint64_t>(end) << (count - 2) * 16;
  } else if (count == 1) {
    low = begin->bits;
  }
  if (first >= 4) {
    high = low << (first - 4) * 16;
    low = 0;
  } else if (first > 0) {
    high = high << first * 16 | low >> (4 - first) * 16;
    low <<= first * 16;
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
INVOLUTION_INLINE Vector<T> load_lanes(const T* from, int64_t first, int64_t last) {
  T lanes[kLanes<T>] = {};
  for (int64_t lane = first; lane < last; ++lane) lanes[lane] = from[lane];
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
#if defined(INVOLUTION_CPU_AVX512)
    if constexpr (sizeof(S) == 4) {
      store_lanes(to, bits_as<Floats>(_mm512_insertf32x8(_mm512_setzero_ps(), bits_as<__m256>(value), 0)),
                  count);
    } else {
      store_lanes(to, bits_as<Doubles>(_mm512_insertf64x4(_mm512_setzero_pd(), bits_as<__m256d>(value), 0)),
                  count);
    }
#else
    __builtin_memcpy(to, &value, count * sizeof(S));
#endif
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
  return load_lanes(from, 0, 1)[0];
#endif
}

// --- Quads: 16 bytes of a vector ---------------------------------------------------------------------------

constexpr int kQuads = kVectorBytes / 16;  // of a vector
template <typename S>
constexpr int kQuad = 16 / static_cast<int>(sizeof(S));  // elements
typedef uint64_t Quad __attribute__((vector_size(16)));

template <int kIndex, typename V>
INVOLUTION_INLINE Quad quad_of(const V& value) {
#if defined(INVOLUTION_CPU_AVX512)
  return bits_as<Quad>(_mm512_extracti64x2_epi64(bits_as<__m512i>(value), kIndex));
#elif defined(INVOLUTION_CPU_AVX2)
  return bits_as<Quad>(_mm256_extracti128_si256(bits_as<__m256i>(value), kIndex));
#else
  Quad quads[kQuads];
  __builtin_memcpy(quads, &value, sizeof quads);
  return quads[kIndex];
#endif
}

// The first `count` of kQuads quads that lie `pitch` apart, as one vector; the last of them stands in for the
// others.
template <typename S>
INVOLUTION_INLINE Vector<S> load_apart(const S* from, int64_t pitch, int64_t count) {
  Quad quads[kQuads];
#pragma GCC unroll 4
  for (int i = 0; i < kQuads; ++i)
    __builtin_memcpy(&quads[i], from + (i < count ? i : count - 1) * pitch, sizeof quads[i]);
#if defined(INVOLUTION_CPU_AVX512)
  __m512i all = _mm512_castsi128_si512(bits_as<__m128i>(quads[0]));
  all = _mm512_inserti64x2(all, bits_as<__m128i>(quads[1]), 1);
  all = _mm512_inserti64x2(all, bits_as<__m128i>(quads[2]), 2);
  return bits_as<Vector<S>>(_mm512_inserti64x2(all, bits_as<__m128i>(quads[3]), 3));
#elif defined(INVOLUTION_CPU_AVX2)
  return bits_as<Vector<S>>(_mm256_inserti128_si256(_mm256_castsi128_si256(bits_as<__m128i>(quads[0])),
                                                    bits_as<__m128i>(quads[1]), 1));
#else
  return bits_as<Vector<S>>(quads);
#endif
}

INVOLUTION_INLINE void load_quad(const float* from, float* to) { __builtin_memcpy(to, from, 16); }
INVOLUTION_INLINE void load_quad(const double* from, double* to) { __builtin_memcpy(to, from, 16); }
// Four elements, widened.
template <typename T>
INVOLUTION_INLINE void load_quad(const T* from, float* to) {
#if defined(INVOLUTION_CPU_AVX512) || defined(INVOLUTION_CPU_AVX2)
  uint64_t stored;
  __builtin_memcpy(&stored, from, 8);
  const __m128i four = _mm_cvtsi64_si128(static_cast<int64_t>(stored));
  const __m128i wide = widen_quad(T{}, four);
  __builtin_memcpy(to, &wide, 16);
#else
  if constexpr (kQuads == 1) {
    const Floats wide = load(from);
    __builtin_memcpy(to, &wide, 16);
  } else {
    for (int i = 0; i < 4; ++i) to[i] = load_one(from + i);
  }
#endif
}

// The quads kIndex <= i < count of `value`, each to `to` + i*pitch.
template <int kIndex = 0, typename S>
INVOLUTION_INLINE void store_apart(S* to, int64_t pitch, const Vector<S>& value, int64_t count) {
  if constexpr (kIndex < kQuads) {
    if (kIndex >= count) return;
    const Quad quad = quad_of<kIndex>(value);
    __builtin_memcpy(to + kIndex * pitch, &quad, sizeof quad);
    store_apart<kIndex + 1>(to, pitch, value, count);
  }
}
template <typename T, typename = decltype(T::bits)>
INVOLUTION_INLINE void store_apart(T* to, int64_t pitch, const Floats& value, int64_t count) {
  const HalfWords stored = narrow(T{}, value);
  typedef uint64_t Narrow __attribute__((vector_size(kVectorBytes / 2)));
  const Narrow quads = bits_as<Narrow>(stored);
#pragma GCC unroll 4
  for (int i = 0; i < kQuads; ++i) {
    if (i >= count) return;
    const uint64_t quad = quads[i];
    __builtin_memcpy(to + i * pitch, &quad, sizeof quad);
  }
}

}  // namespace involution::cpu::INVOLUTION_CPU_NAMESPACE
