// What a plan has to know of the device that will run it.
#pragma once

#include <cstdint>

namespace involution {

struct DeviceLimits {
  int64_t shared_memory_per_block;           // bytes, with the opt-in that every launch asks for
  int64_t shared_memory_per_multiprocessor;  // bytes
  int64_t multiprocessors;
};

// Those of a CUDA device, read once for each (ops_cuda.cpp).
const DeviceLimits& limits_of(int device);

}  // namespace involution
