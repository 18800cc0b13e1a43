// A number that the kernels divide by, as what they multiply with instead (quotient() in scalar.cuh): a
// division is some 20 instructions, a block begins with a dozen of them, and small maps are mostly
// beginnings. For 0 <= value and value * divisor < 2^31.
#pragma once

#include <cstdint>

namespace involution {

struct Divisor {
  uint32_t multiplier;  // ceil(2^31 / divisor)
};
inline Divisor divisor(int64_t value) {
  return {static_cast<uint32_t>(((int64_t{1} << 31) + value - 1) / value)};
}

}  // namespace involution
