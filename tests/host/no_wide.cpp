// Beside kernels_avx512.cpp, which is as wide.
#include "cpu/kernels.h"

namespace involution::host {

cpu::Kernels wide_kernels() { return {}; }

}  // namespace involution::host
