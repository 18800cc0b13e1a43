// Answers requests as protocol.h describes them, with whatever executes the kernels.
//
// A sanitizer or another check that finds a mistake ends the process with its report on stderr.
#pragma once

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "guarded_buffer.h"
#include "half_types.h"
#include "protocol.h"

namespace involution::host {

[[noreturn]] inline void reject(const char* why) {
  std::fprintf(stderr, "runner: %s\n", why);
  std::exit(2);
}

// False when stdin ended before the first byte.
inline bool read_bytes(void* to, std::size_t count) {
  const std::size_t got = std::fread(to, 1, count, stdin);
  if (got != count && got != 0) reject("a request ended early");
  return got == count;
}

inline void read_operand(GuardedBuffer& buffer) {
  if (!read_bytes(buffer.data(), buffer.size())) reject("a request has no data");
}

// Calls execute(T{}) with the type of the elements.
template <typename Execute>
auto with_element(const Request& request, const Execute& execute) {
  switch (static_cast<ElementType>(request.element_type)) {
    case ElementType::kFloat64:
      return execute(double{});
    case ElementType::kFloat32:
      return execute(float{});
    case ElementType::kFloat16:
      return execute(Float16{});
    case ElementType::kBFloat16:
      return execute(BFloat16{});
  }
  reject("no such element type");
}

// execute(request, a, b, out, plan) fills out and says in `plan` how; it returns the status of the reply.
template <typename Execute>
void serve_one(const Request& request, std::FILE* replies, const Execute& execute) {
  if (request.magic != kRequestMagic) reject("not a request");
  if (request.operation < 0 || request.operation > 2) reject("no such operation");
  GuardedBuffer a(request.a);
  GuardedBuffer b(request.b);
  GuardedBuffer out(request.out);
  read_operand(a);
  read_operand(b);
  std::memset(out.data(), 0xff, out.size());  // a NaN in every type, wherever nothing is written

  std::string plan;
  const std::int64_t status = execute(request, a, b, out, &plan);

  const Reply reply{kReplyMagic, status, static_cast<std::int64_t>(plan.size()),
                    static_cast<std::int64_t>(out.size())};
  std::fwrite(&reply, sizeof reply, 1, replies);
  std::fwrite(plan.data(), 1, plan.size(), replies);
  std::fwrite(out.data(), 1, out.size(), replies);
  std::fflush(replies);
}

template <typename Execute>
void serve(const Execute& execute) {
  // Anything that prints goes to stderr; only replies go to where stdout was.
  std::FILE* replies = fdopen(dup(STDOUT_FILENO), "wb");
  dup2(STDERR_FILENO, STDOUT_FILENO);
  Request request;
  while (read_bytes(&request, sizeof request)) serve_one(request, replies, execute);
  std::fclose(replies);
}

}  // namespace involution::host
