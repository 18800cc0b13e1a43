// The kernels for machines with AVX2, FMA and F16C.
//
// Only what lies between the pragmas is compiled for them, and all of it is in a namespace of its own: an
// inline function of a header could be linked into code that runs elsewhere, so headers of others come
// before.
#include "kernels.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))

#include <immintrin.h>

#include "../half_types.h"

#define INVOLUTION_CPU_NAMESPACE avx2
#define INVOLUTION_CPU_AVX2

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#include "kernels_impl.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace involution::cpu {

Kernels avx2_kernels() { return avx2::table("avx2"); }

}  // namespace involution::cpu

#else

namespace involution::cpu {

Kernels avx2_kernels() { return {}; }

}  // namespace involution::cpu

#endif
