// INVOLUTION_CUDA_PLAN="runs=4 stages=3 producers=6", which overrides parts of a plan, for measuring.
#pragma once

#include <cstdlib>
#include <sstream>
#include <string>

namespace involution {

inline bool is_plan_forced() { return std::getenv("INVOLUTION_CUDA_PLAN") != nullptr; }

// Calls `with(name, value)` for each word; the value of a word without a number is 0.
template <typename With>
void for_each_forced(const With& with) {
  if (!is_plan_forced()) return;
  std::istringstream words(std::getenv("INVOLUTION_CUDA_PLAN"));
  std::string word;
  while (words >> word) {
    const size_t equals = word.find('=');
    with(word.substr(0, equals), equals == std::string::npos ? 0 : std::atoi(word.c_str() + equals + 1));
  }
}

}  // namespace involution
