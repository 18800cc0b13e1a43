// Executes the shipped launchers on the host, for requests as protocol.h describes them.

#include <sstream>
#include <string>

#include "cuda/launchers.h"
#include "cuda_on_host.h"
#include "serve.h"

namespace involution::host {
namespace {

// The number of bytes up to which the address of a tensor is aligned, as far as any access asks.
int alignment_of(const GuardedBuffer& buffer) {
  const auto address = reinterpret_cast<std::uintptr_t>(buffer.data());
  const std::uintptr_t lowest_bit = address & (~address + 1);
  return static_cast<int>(lowest_bit < 128 ? lowest_bit : 128);
}

OperandAlignment alignments(Operation operation, const GuardedBuffer& a, const GuardedBuffer& b,
                            const GuardedBuffer& out) {
  switch (operation) {
    case Operation::kInvolution:
      return {/*x=*/alignment_of(a), /*w=*/alignment_of(b), /*y=*/alignment_of(out)};
    case Operation::kTranspose:
      return {/*x=*/alignment_of(out), /*w=*/alignment_of(b), /*y=*/alignment_of(a)};
    case Operation::kCorrelation:
      return {/*x=*/alignment_of(b), /*w=*/alignment_of(out), /*y=*/alignment_of(a)};
  }
  reject("no such operation");
}

std::string describe(const Plan& plan) {
  std::ostringstream text;
  text << plan.reason;
  if (plan.kind == PlanKind::kGeneric) return text.str();
  text << ": tile " << plan.tile_height << "x" << plan.tile_width << ", " << plan.blocks << " blocks of "
       << plan.threads << " threads (" << plan.runs << " runs), " << plan.shared_bytes
       << " bytes of shared memory, " << plan.channels_staged << " channels staged, " << plan.row_groups
       << " row groups, " << plan.lane_channels << " channels a lane";
  if (plan.source_vector) text << ", source_vector";
  if (plan.weight_vector) text << ", weight_vector";
  if (plan.result_vector) text << ", result_vector";
  if (plan.source_channels_last) text << ", source_channels_last";
  if (plan.weight_channels_last) text << ", weight_channels_last";
  if (plan.result_channels_last) text << ", result_channels_last";
  return text.str();
}

template <typename T>
cudaError_t execute(const Request& request, const GuardedBuffer& a, const GuardedBuffer& b,
                    GuardedBuffer& out, std::string* plan_text) {
  const auto operation = static_cast<Operation>(request.operation);
  Plan plan{};
  plan.reason = "generic because the test asks for it";
  if (!request.force_generic) {
    plan = make_plan(operation, request.problem, sizeof(T), alignments(operation, a, b, out), request.limits);
  }
  *plan_text = describe(plan);
  return involution::launch<T>(operation, request.problem, plan, reinterpret_cast<const T*>(a.data()),
                               reinterpret_cast<const T*>(b.data()), reinterpret_cast<T*>(out.data()),
                               /*stream=*/nullptr);
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
