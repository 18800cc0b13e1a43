// In place of kernels_avx512.cpp on a machine without AVX-512: kernels with vectors as wide, which the
// compiler takes apart. What depends on the width alone is tested with them. Of two types, for the time that
// they take to compile.
#define INVOLUTION_CPU_NAMESPACE wide
#define INVOLUTION_CPU_VECTOR_BYTES 64
#include "cpu/kernels_impl.h"

namespace involution::host {

cpu::Kernels wide_kernels() {
  return {"wide",  cpu::wide::kVectorBytes,        nullptr, &cpu::wide::run_items<float>,
          nullptr, &cpu::wide::run_items<BFloat16>};
}

}  // namespace involution::host

namespace involution::cpu {

Kernels avx512_kernels() { return {}; }

}  // namespace involution::cpu
