// What tests/host_runner.py and the runner say to each other, over the runner's stdin and stdout.
//
// All numbers are int64 in the machine's byte order. Python sends a Request, then the bytes of a and of b;
// the runner executes it and sends a Reply, the plan as text and the bytes of out, until stdin ends.
//
// A tensor travels as the memory from its first element to its last, which the kernel finds at an address
// that lies `misalignment` bytes past a multiple of 128. Nothing else around it may be touched.
#pragma once

#include <cstdint>

#include "cuda/device_limits.h"
#include "problem.h"

namespace involution::host {

constexpr std::int64_t kRequestMagic = 0x696e766f6c757431;  // "involut1"
constexpr std::int64_t kReplyMagic = 0x726573756c740031;    // "result", 1

enum class ElementType : std::int64_t { kFloat64, kFloat32, kFloat16, kBFloat16 };

struct Operand {
  std::int64_t bytes;
  std::int64_t misalignment;
};

struct Request {
  std::int64_t magic;
  std::int64_t operation;  // of enum class Operation
  std::int64_t element_type;
  std::int64_t seed;
  std::int64_t force_generic;  // 0 or 1
  Operand a;
  Operand b;
  Operand out;
  DeviceLimits limits;
  Problem problem;
};
static_assert(sizeof(Request) == (5 + 6 + 3 + 39) * 8, "host_runner.py packs the same numbers");

struct Reply {
  std::int64_t magic;
  std::int64_t status;  // a cudaError_t
  std::int64_t plan_bytes;
  std::int64_t out_bytes;
};

}  // namespace involution::host
