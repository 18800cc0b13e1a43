// Executes the launcher of the fused layer on the host. Requests and replies travel as protocol.h describes,
// but a request is this file's own: its numbers, then the bytes of the operands in the order of their sizes,
// of which the last, the result, is not sent.

#include <string>

#include "cuda/fused_launcher.h"
#include "cuda_on_host.h"
#include "serve.h"

namespace involution::host {
namespace {

struct FusedRequest {
  std::int64_t magic;
  std::int64_t element_type;
  std::int64_t seed;
  std::int64_t relu;
  DeviceLimits limits;
  FusedProblem problem;
  std::int64_t bytes[7];  // x, features, weight, bias, scale, shift, y; 0: null
};
static_assert(sizeof(FusedRequest) == (4 + 3 + 10 + 7) * 8, "host_runner.py packs the same numbers");

template <typename T>
const T* operand(const GuardedBuffer& buffer) {
  return buffer.size() == 0 ? nullptr : reinterpret_cast<const T*>(buffer.data());
}

template <typename T>
std::int64_t execute(FusedPlan plan, const FusedRequest& request, GuardedBuffer (&buffers)[7]) {
  plan.march.relu = static_cast<int>(request.relu);
  const FusedOperands<T> operands{operand<T>(buffers[0]),
                                  operand<T>(buffers[1]),
                                  operand<T>(buffers[2]),
                                  operand<T>(buffers[3]),
                                  operand<float>(buffers[4]),
                                  operand<float>(buffers[5]),
                                  reinterpret_cast<T*>(buffers[6].data())};
  return launch_fused<T>(plan, operands, /*stream=*/nullptr);
}

void serve_one(const FusedRequest& request, std::FILE* replies) {
  if (request.magic != kRequestMagic) reject("not a request");
  const auto sized = [&](int i) { return GuardedBuffer({request.bytes[i], 0}); };
  GuardedBuffer buffers[7] = {sized(0), sized(1), sized(2), sized(3), sized(4), sized(5), sized(6)};
  for (int i = 0; i < 6; ++i) {
    if (buffers[i].size() > 0) read_operand(buffers[i]);
  }
  std::memset(buffers[6].data(), 0xff, buffers[6].size());
  options().seed = static_cast<std::uint64_t>(request.seed);
  options().shared_memory_per_block = static_cast<std::size_t>(request.limits.shared_memory_per_block);

  const FusedPlan plan = make_fused_plan(request.problem, request.limits);
  const std::string text = describe(plan);
  std::int64_t status = 0;
  if (plan.reason == nullptr) {
    status = static_cast<ElementType>(request.element_type) == ElementType::kFloat16
                 ? execute<Float16>(plan, request, buffers)
                 : execute<BFloat16>(plan, request, buffers);
  }
  const Reply reply{kReplyMagic, status, static_cast<std::int64_t>(text.size()), request.bytes[6]};
  std::fwrite(&reply, sizeof reply, 1, replies);
  std::fwrite(text.data(), 1, text.size(), replies);
  std::fwrite(buffers[6].data(), 1, buffers[6].size(), replies);
  std::fflush(replies);
}

}  // namespace
}  // namespace involution::host

int main() {
  using namespace involution::host;
  std::FILE* replies = fdopen(dup(STDOUT_FILENO), "wb");
  dup2(STDERR_FILENO, STDOUT_FILENO);
  FusedRequest request;
  while (read_bytes(&request, sizeof request)) serve_one(request, replies);
  std::fclose(replies);
}
