// The kernels for any machine: vectors of 16 bytes, which x86-64 (SSE2) and Arm (NEON) always have.
#define INVOLUTION_CPU_NAMESPACE portable
#include "kernels_impl.h"

namespace involution::cpu {

Kernels default_kernels() { return portable::table("default"); }

}  // namespace involution::cpu
