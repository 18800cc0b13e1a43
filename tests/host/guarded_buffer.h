// Memory of an exact size at a chosen alignment, around which AddressSanitizer tolerates no access.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, bytes)
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes)
#endif

#include "protocol.h"

namespace involution::host {

class GuardedBuffer {
 public:
  // `misalignment` bytes in front of the data bring it to its address. They are poisoned in units of 8 bytes,
  // the finest that AddressSanitizer knows at the front of a buffer.
  explicit GuardedBuffer(const Operand& operand)
      : size_(static_cast<std::size_t>(operand.bytes)),
        front_(static_cast<std::size_t>(operand.misalignment)),
        memory_(static_cast<std::byte*>(::operator new(front_ + size_, std::align_val_t{kAlignment}))) {
    ASAN_POISON_MEMORY_REGION(memory_, front_ / 8 * 8);
  }

  ~GuardedBuffer() {
    ASAN_UNPOISON_MEMORY_REGION(memory_, front_);
    ::operator delete(memory_, std::align_val_t{kAlignment});
  }

  GuardedBuffer(const GuardedBuffer&) = delete;
  GuardedBuffer& operator=(const GuardedBuffer&) = delete;

  std::byte* data() { return memory_ + front_; }
  const std::byte* data() const { return memory_ + front_; }
  std::size_t size() const { return size_; }

 private:
  static constexpr std::size_t kAlignment = 128;

  std::size_t size_;
  std::size_t front_;
  std::byte* memory_;
};

}  // namespace involution::host
