// Prefetching of what will be read, or written, later.
#pragma once

#include "../problem.h"
#include "simd.h"

namespace involution::cpu::INVOLUTION_CPU_NAMESPACE {

constexpr int64_t kLineBytes = 64;

// To the second-level cache: what comes to the first before its time takes room and buffers there that the
// work at hand needs.
INVOLUTION_INLINE void prefetch_line(const void* from) { __builtin_prefetch(from, 0, 2); }

// Memory that is prefetched a few lines at a time: all at once, they would wait for each other.
class PrefetchQueue {
 public:
  // `runs` runs of `run` elements, `pitch` apart. What finds no room is not prefetched.
  template <typename T>
  INVOLUTION_INLINE void add(const T* first, int64_t runs, int64_t pitch, int64_t run) {
    constexpr int64_t kSize = sizeof(T);
    if (count_ == kMost || runs <= 0 || run <= 0) return;
    if (pitch == run) {  // runs that follow each other are one
      run *= runs;
      runs = 1;
    }
    // A run may begin within a line.
    entries_[count_++] = {reinterpret_cast<const char*>(first), runs, pitch * kSize,
                          (run * kSize + kLineBytes - 1) / kLineBytes + 1};
  }

  // `count` positions, side by side along the width, of `channels` channels.
  template <typename T>
  INVOLUTION_INLINE void add(const T* first, const ActivationStrides& strides, int64_t count,
                             int64_t channels) {
    if (strides.space[kWidth] == 1) {
      add(first, channels, strides.channel, count);
    } else {
      add(first, count, strides.space[kWidth], strides.channel == 1 ? channels : 1);
    }
  }

  // What has been added is prefetched in `steps` steps from here on.
  INVOLUTION_INLINE void start(int64_t steps) {
    int64_t lines = 0;
    for (int64_t i = 0; i < count_; ++i) lines += entries_[i].runs * entries_[i].lines;
    share_ = (lines + steps - 1) / steps;
    line_ = 0;
  }

  INVOLUTION_INLINE void step() {
    for (int64_t left = share_; left > 0 && count_ > 0; --left) {
      Entry& entry = entries_[count_ - 1];
      prefetch_line(entry.first + line_ * kLineBytes);
      if (++line_ < entry.lines) continue;
      line_ = 0;
      entry.first += entry.pitch;
      if (--entry.runs == 0) --count_;
    }
  }

  INVOLUTION_INLINE void clear() { count_ = 0; }

 private:
  static constexpr int kMost = 12;
  struct Entry {
    const char* first;
    int64_t runs;
    int64_t pitch;  // bytes
    int64_t lines;  // of a run
  };
  Entry entries_[kMost];
  int64_t count_ = 0, line_ = 0, share_ = 0;
};

// What the next row of results needs, while a row is computed, and what the thread's next work item needs,
// while an item is.
struct Prefetch {
  INVOLUTION_INLINE void step() {
    row.step();
    item.step();
  }

  PrefetchQueue row, item;
};

}  // namespace involution::cpu::INVOLUTION_CPU_NAMESPACE
