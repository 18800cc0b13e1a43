// How long a launch takes, by a rough model that was good enough to find the fastest of the measured ones:
// the warps of a multiprocessor share what it can issue, of which each takes at most one instruction in seven
// clocks, and its share of the bandwidth; each wave of blocks begins by waiting for the rows of a first step.
#pragma once

#include <algorithm>
#include <cmath>

#include "device_limits.h"

namespace involution {

struct LaunchShape {
  int64_t blocks;
  int threads;           // of a block
  int64_t shared_bytes;  // of a block
  int most_resident;     // threads that a multiprocessor's registers have room for
  double instructions;   // of a block's warps together
  double bytes;          // that a block reads and writes
};

// In clocks.
inline double launch_cost(const LaunchShape& launch, const DeviceLimits& limits) {
  const double bytes_a_clock = 16.4, start = 2500;
  const double of_processor = std::ceil(static_cast<double>(launch.blocks) / limits.multiprocessors);
  const int64_t by_memory = limits.shared_memory_per_multiprocessor / (launch.shared_bytes + 1024);
  const int64_t by_registers = launch.most_resident / launch.threads;
  const auto resident = static_cast<double>(std::max<int64_t>(1, std::min(by_memory, by_registers)));
  const double waves = std::ceil(of_processor / resident), together = std::min(of_processor, resident);
  const double issue = std::min(together * (launch.threads / 32.) / 7, 2.4);
  const double work = of_processor * launch.instructions / issue;
  return std::max(work, of_processor * launch.bytes / bytes_a_clock) + waves * start;
}

}  // namespace involution
