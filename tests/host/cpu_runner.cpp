// Executes the native CPU kernels for requests as protocol.h describes them, under the same sanitizers.
//
// Every item of work runs by itself, in a shuffled order, with scratch of just the size that the plan asks
// for and poisoned beforehand: whatever depends on another item, or reads what nobody wrote, shows.
#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "cpu/capability.h"
#include "serve.h"

namespace involution::host {

cpu::Kernels wide_kernels();  // kernels_wide.cpp; without a name if these were not compiled

namespace {

// Those that INVOLUTION_CPU_CAPABILITY names, of the library or `wide`.
const cpu::Kernels& chosen_kernels() {
  static const cpu::Kernels wide = wide_kernels();
  const char* wanted = std::getenv("INVOLUTION_CPU_CAPABILITY");
  if (wanted != nullptr && wide.name != nullptr && wide.name == std::string(wanted)) return wide;
  const cpu::Choice& choice = cpu::chosen_kernels();
  if (choice.kernels == nullptr) reject(choice.error);
  return *choice.kernels;
}

constexpr std::align_val_t kScratchAlignment{64};

cpu::RunItems kernel_of(const cpu::Kernels& kernels, double) { return kernels.float64; }
cpu::RunItems kernel_of(const cpu::Kernels& kernels, float) { return kernels.float32; }
cpu::RunItems kernel_of(const cpu::Kernels& kernels, Float16) { return kernels.float16; }
cpu::RunItems kernel_of(const cpu::Kernels& kernels, BFloat16) { return kernels.bfloat16; }

template <typename T>
std::int64_t execute(const Request& request, const GuardedBuffer& a, const GuardedBuffer& b,
                     GuardedBuffer& out, std::string* text) {
  const cpu::Kernels& kernels = chosen_kernels();
  const cpu::RunItems run = kernel_of(kernels, T{});
  if (run == nullptr) reject("these kernels were not compiled for this type");
  std::mt19937_64 random(static_cast<std::uint64_t>(request.seed));
  const std::int64_t threads = 1 + static_cast<std::int64_t>(random() % 64);
  const cpu::Plan plan = cpu::make_plan(static_cast<Operation>(request.operation), request.problem, sizeof(T),
                                        kernels.vector_bytes, threads);
  *text = std::string(kernels.name) + ", " + std::to_string(plan.items) + " items";

  std::vector<std::int64_t> order;
  for (std::int64_t item = 0; item < plan.items; ++item) order.push_back(item);
  std::shuffle(order.begin(), order.end(), random);
  const auto bytes = static_cast<std::size_t>(plan.scratch_bytes);
  for (const std::int64_t item : order) {
    auto* scratch = static_cast<unsigned char*>(::operator new(bytes, kScratchAlignment));
    std::memset(scratch, 0xff, bytes);  // a NaN wherever nothing is written
    run(plan, a.data(), b.data(), out.data(), item, item + 1, scratch);
    ::operator delete(scratch, kScratchAlignment);
  }
  return 0;
}

}  // namespace
}  // namespace involution::host

int main() {
  using namespace involution::host;
  serve([](const Request& request, const GuardedBuffer& a, const GuardedBuffer& b, GuardedBuffer& out,
           std::string* plan) {
    return with_element(request,
                        [&](auto element) { return execute<decltype(element)>(request, a, b, out, plan); });
  });
}
