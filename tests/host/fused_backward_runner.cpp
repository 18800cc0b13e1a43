// Executes the launcher of the fused layer's gradients on the host. Requests and replies travel as protocol.h
// describes, but a request is this file's own: its numbers, then the bytes of the operands in the order of
// their sizes, of which the last four, the results, are not sent. They come back one behind the other, and
// where a plan says why there is none, as NaN.

#include <string>

#include "cuda/fused_backward_launcher.h"
#include "cuda_on_host.h"
#include "serve.h"

namespace involution::host {
namespace {

constexpr int kGiven = 5, kAll = 9;

struct FusedBackwardRequest {
  std::int64_t magic;
  std::int64_t element_type;
  std::int64_t seed;
  DeviceLimits limits;
  FusedProblem problem;
  std::int64_t bytes[kAll];  // dy, x, features, weight, bias, dx, dfeatures, dweight, dbias; 0: null
};
static_assert(sizeof(FusedBackwardRequest) == (3 + 3 + 10 + kAll) * 8,
              "host_runner.py packs the same numbers");

template <typename T>
std::int64_t execute(const FusedBackwardPlan& plan, GuardedBuffer* const (&buffers)[kAll]) {
  const auto operand = [&](int i) {
    return buffers[i]->size() == 0 ? nullptr : reinterpret_cast<T*>(buffers[i]->data());
  };
  const FusedBackwardMarch& m = plan.march;
  const std::int64_t rows = std::int64_t{m.groups} * kFusedBackwardSize * kFusedBackwardSize;
  const bool sums = plan.gradient == FusedGradient::kWeight;
  GuardedBuffer parts({sums ? plan.parts * rows * (m.reduced + 1) * 4 : 0, 0});
  std::memset(parts.data(), 0xff, parts.size());
  const FusedBackwardOperands<T> operands{
      operand(0), operand(1), operand(2), operand(3), operand(4),
      operand(5), operand(6), operand(7), operand(8), reinterpret_cast<float*>(parts.data())};
  return launch_fused_backward<T>(plan, operands, /*stream=*/nullptr);
}

void serve_one(const FusedBackwardRequest& request, std::FILE* replies) {
  if (request.magic != kRequestMagic) reject("not a request");
  const auto sized = [&](int i) { return GuardedBuffer({request.bytes[i], 0}); };
  GuardedBuffer dy = sized(0), x = sized(1), features = sized(2), weight = sized(3), bias = sized(4);
  GuardedBuffer dx = sized(5), dfeatures = sized(6), dweight = sized(7), dbias = sized(8);
  GuardedBuffer* const buffers[kAll] = {&dy, &x,         &features, &weight, &bias,
                                        &dx, &dfeatures, &dweight,  &dbias};
  for (int i = 0; i < kAll; ++i) {
    if (i >= kGiven) {
      std::memset(buffers[i]->data(), 0xff, buffers[i]->size());
    } else if (buffers[i]->size() > 0) {
      read_operand(*buffers[i]);
    }
  }
  options().seed = static_cast<std::uint64_t>(request.seed);
  options().shared_memory_per_block = static_cast<std::size_t>(request.limits.shared_memory_per_block);

  std::string text;
  std::int64_t status = 0;
  for (const FusedGradient gradient :
       {FusedGradient::kInput, FusedGradient::kFeatures, FusedGradient::kWeight}) {
    const FusedBackwardPlan plan = make_fused_backward_plan(gradient, request.problem, request.limits);
    text += (text.empty() ? "" : "\n") + describe(plan);
    if (plan.reason != nullptr || status != 0) continue;
    status = static_cast<ElementType>(request.element_type) == ElementType::kFloat16
                 ? execute<Float16>(plan, buffers)
                 : execute<BFloat16>(plan, buffers);
  }
  Reply reply{kReplyMagic, status, static_cast<std::int64_t>(text.size()), 0};
  for (int i = kGiven; i < kAll; ++i) reply.out_bytes += request.bytes[i];
  std::fwrite(&reply, sizeof reply, 1, replies);
  std::fwrite(text.data(), 1, text.size(), replies);
  for (int i = kGiven; i < kAll; ++i) std::fwrite(buffers[i]->data(), 1, buffers[i]->size(), replies);
  std::fflush(replies);
}

}  // namespace
}  // namespace involution::host

int main() {
  using namespace involution::host;
  std::FILE* replies = fdopen(dup(STDOUT_FILENO), "wb");
  dup2(STDERR_FILENO, STDOUT_FILENO);
  FusedBackwardRequest request;
  while (read_bytes(&request, sizeof request)) serve_one(request, replies);
  std::fclose(replies);
}
