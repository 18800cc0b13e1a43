// What to run for a problem: a plain value, made on the host, that can be printed and tested without a GPU.
// The only place where a fast kernel is chosen over the generic one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "../problem.h"
#include "device_limits.h"
#include "march.h"

namespace involution {

enum class PlanKind {
  kGeneric,  // any problem (generic.cuh)
  kFma,      // float32 (fma_*.cuh)
  kBand,     // float16 and bfloat16 on tensor cores (band_*.cuh)
};

// Bytes that the address of each tensor is a multiple of, as far as 16.
struct OperandAlignment {
  int x;
  int w;
  int y;
};

// How a block is shaped and fed. What is chosen from measurements, and what INVOLUTION_CUDA_PLAN overrides.
struct Shape {
  int pack;       // channels of a block
  int runs;       // of 8 columns (kFma: 7; transposed: times the stride) in its strip
  int rows;       // of y in a step
  int chunks;     // that the rows of an image are cut into; 0: as many as fill the machine
  int stages;     // steps in flight
  int producers;  // warps that copy, at the least
  int parts;      // kFma: threads that share the kernel rows of a sum, or of a position's results
};

struct Plan {
  PlanKind kind;
  const char* reason;  // why not another kind
  Shape shape;
  March march;
  bool square;  // as many kernel rows as columns, and what else the kernels for that need
  bool source_channels_last;
  int64_t shared_bytes;
  int64_t blocks;
  int64_t images;
  int threads;
};

Plan make_plan(Operation operation, const Problem& problem, int element_size, OperandAlignment alignment,
               const DeviceLimits& limits);

// In words, on one line.
std::string describe(const Plan& plan);

}  // namespace involution
