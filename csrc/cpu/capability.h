// Which of the compiled instruction sets this machine runs.
#pragma once

#include "kernels.h"

namespace involution::cpu {

// The kernels of the best instruction set that the machine has; or of the one that the environment variable
// INVOLUTION_CPU_CAPABILITY names ("default", "avx2" or "avx512"), read when the first operation runs. Where
// that cannot be, `kernels` is null and `error` says why.
struct Choice {
  const Kernels* kernels;
  const char* error;
};

const Choice& chosen_kernels();

}  // namespace involution::cpu
