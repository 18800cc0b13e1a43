// Executes the shipped launchers on the host, for requests as protocol.h describes them.

#include <sstream>
#include <string>

#include "cuda/launchers.h"
#include "cuda_on_host.h"
#include "serve.h"

namespace involution::host {
namespace {

template <typename T>
cudaError_t execute(const Request& request, const GuardedBuffer& a, const GuardedBuffer& b,
                    GuardedBuffer& out, std::string* plan_text) {
  const auto operation = static_cast<Operation>(request.operation);
  const auto* first = reinterpret_cast<const T*>(a.data());
  const auto* second = reinterpret_cast<const T*>(b.data());
  auto* result = reinterpret_cast<T*>(out.data());
  if (request.force_generic) {
    Plan plan{};
    plan.reason = "generic because the test asks for it";
    *plan_text = describe(plan);
    return involution::launch<T>(operation, request.problem, plan, first, second, result, /*stream=*/nullptr);
  }
  return launch_parts<T>(operation, request.problem, first, second, result, /*stream=*/nullptr,
                         [&](const Problem& part, OperandAlignment alignment) {
                           const Plan plan = make_plan(operation, part, sizeof(T), alignment, request.limits);
                           if (!plan_text->empty()) *plan_text += "; ";
                           *plan_text += describe(plan);
                           return plan;
                         });
}

}  // namespace
}  // namespace involution::host

int main() {
  using namespace involution::host;
  serve([](const Request& request, const GuardedBuffer& a, const GuardedBuffer& b, GuardedBuffer& out,
           std::string* plan) {
    options().seed = static_cast<std::uint64_t>(request.seed);
    options().shared_memory_per_block = static_cast<std::size_t>(request.limits.shared_memory_per_block);
    return with_element(request, [&](auto element) {
      return static_cast<std::int64_t>(execute<decltype(element)>(request, a, b, out, plan));
    });
  });
}
