// Executes the shipped launchers on the host, for requests as protocol.h describes them.
//
// A sanitizer or a barrier check that finds a mistake ends the process with its report on stderr.

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <string>
#include <vector>

#include "cuda/launchers.h"
#include "cuda_on_host.h"
#include "guarded_buffer.h"
#include "protocol.h"

namespace involution::host {
namespace {

[[noreturn]] void reject(const char* why) {
  std::fprintf(stderr, "runner: %s\n", why);
  std::exit(2);
}

// False when stdin ended before the first byte.
bool read_bytes(void* to, std::size_t count) {
  const std::size_t got = std::fread(to, 1, count, stdin);
  if (got != count && got != 0) reject("a request ended early");
  return got == count;
}

void read_operand(GuardedBuffer& buffer) {
  if (!read_bytes(buffer.data(), buffer.size())) reject("a request has no data");
}

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
       << " row groups";
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

cudaError_t execute(const Request& request, const GuardedBuffer& a, const GuardedBuffer& b,
                    GuardedBuffer& out, std::string* plan_text) {
  switch (static_cast<ElementType>(request.element_type)) {
    case ElementType::kFloat64:
      return execute<double>(request, a, b, out, plan_text);
    case ElementType::kFloat32:
      return execute<float>(request, a, b, out, plan_text);
    case ElementType::kFloat16:
      return execute<Float16>(request, a, b, out, plan_text);
    case ElementType::kBFloat16:
      return execute<BFloat16>(request, a, b, out, plan_text);
  }
  reject("no such element type");
}

void serve(const Request& request, std::FILE* replies) {
  if (request.magic != kRequestMagic) reject("not a request");
  if (request.operation < 0 || request.operation > 2) reject("no such operation");
  GuardedBuffer a(request.a);
  GuardedBuffer b(request.b);
  GuardedBuffer out(request.out);
  read_operand(a);
  read_operand(b);
  std::memset(out.data(), 0xff, out.size());  // a NaN in every type, wherever nothing is written

  options().seed = static_cast<std::uint64_t>(request.seed);
  options().shared_memory_per_block = static_cast<std::size_t>(request.limits.shared_memory_per_block);
  std::string plan;
  const cudaError_t status = execute(request, a, b, out, &plan);

  const Reply reply{kReplyMagic, status, static_cast<std::int64_t>(plan.size()),
                    static_cast<std::int64_t>(out.size())};
  std::fwrite(&reply, sizeof reply, 1, replies);
  std::fwrite(plan.data(), 1, plan.size(), replies);
  std::fwrite(out.data(), 1, out.size(), replies);
  std::fflush(replies);
}

}  // namespace
}  // namespace involution::host

int main() {
  // Anything that prints goes to stderr; only replies go to where stdout was.
  std::FILE* replies = fdopen(dup(STDOUT_FILENO), "wb");
  dup2(STDERR_FILENO, STDOUT_FILENO);
  involution::host::Request request;
  while (involution::host::read_bytes(&request, sizeof request)) involution::host::serve(request, replies);
  std::fclose(replies);
}
