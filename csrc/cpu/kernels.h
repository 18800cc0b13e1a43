// What the kernels offer to the rest of the extension: one table of functions for each instruction set.
#pragma once

#include <cstdint>

#include "plan.h"

namespace involution::cpu {

// Computes the work items begin <= i < end. `scratch` has plan.scratch_bytes, at a multiple of 64.
//
//   operation    first (B, C, ...)  second                 result
//   involution   x, input frame     w                      y, output frame
//   transpose    y, output frame    w                      x, input frame
//   correlation  y, output frame    x, input frame         w
using RunItems = void (*)(const Plan& plan, const void* first, const void* second, void* result,
                          int64_t begin, int64_t end, unsigned char* scratch);

struct Kernels {
  const char* name;
  int vector_bytes;
  RunItems float64;
  RunItems float32;
  RunItems float16;
  RunItems bfloat16;
};

Kernels default_kernels();
// These two have a null name where the compiler or the architecture has no such instructions.
Kernels avx2_kernels();
Kernels avx512_kernels();

}  // namespace involution::cpu
