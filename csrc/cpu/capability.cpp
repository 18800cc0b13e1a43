#include "capability.h"

#include <cstdlib>
#include <cstring>

namespace involution::cpu {

namespace {

bool machine_has_avx2() {
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#else
  return false;
#endif
}

bool machine_has_avx512() {
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
  return machine_has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

Choice choose() {
  static const Kernels kernels[] = {avx512_kernels(), avx2_kernels(), default_kernels()};
  const bool runs[] = {machine_has_avx512(), machine_has_avx2(), true};
  const char* wanted = std::getenv("INVOLUTION_CPU_CAPABILITY");
  if (wanted != nullptr && *wanted == '\0') wanted = nullptr;
  for (int i = 0; i < 3; ++i) {
    const bool usable = runs[i] && kernels[i].name != nullptr;
    if (usable && (wanted == nullptr || std::strcmp(wanted, kernels[i].name) == 0))
      return {&kernels[i], nullptr};
  }
  const bool known = std::strcmp(wanted, "avx2") == 0 || std::strcmp(wanted, "avx512") == 0;
  return {nullptr, known ? "names an instruction set that this machine does not have"
                         : "must be one of default, avx2 and avx512"};
}

}  // namespace

const Choice& chosen_kernels() {
  static const Choice choice = choose();
  return choice;
}

}  // namespace involution::cpu
