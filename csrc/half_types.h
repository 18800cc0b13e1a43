// float16 and bfloat16 as plain bits, so that the kernels' interfaces need no framework's types.
#pragma once

#include <cstdint>

namespace involution {

struct Float16 {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

}  // namespace involution
