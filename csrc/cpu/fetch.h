// What will be read, or written, later: fetched into the cache while other work goes on.
#pragma once

#include "simd.h"

namespace involution::cpu::INVOLUTION_CPU_NAMESPACE {

constexpr int64_t kLineBytes = 64;

// The line at `from`, to the second-level cache: what comes to the first before its time takes room and
// buffers there that the work at hand needs.
INVOLUTION_INLINE void expect_line(const void* from) { __builtin_prefetch(from, 0, 2); }

// `count` elements that follow each other.
template <typename T>
INVOLUTION_INLINE void expect_run(const T* from, int64_t count) {
  constexpr int64_t kLine = kLineBytes / static_cast<int64_t>(sizeof(T));
  for (int64_t i = 0; i < count; i += kLine) expect_line(from + i);
  expect_line(from + count - 1);
}

// Runs of memory that are fetched a share at a time: all at once would wait for each other.
class FetchQueue {
 public:
  // `runs` runs of `run` elements, `pitch` apart. What finds no room is not fetched.
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

  // What has been added is fetched in `steps` steps from here on.
  INVOLUTION_INLINE void start(int64_t steps) {
    int64_t lines = 0;
    for (int64_t i = 0; i < count_; ++i) lines += entries_[i].runs * entries_[i].lines;
    share_ = (lines + steps - 1) / steps;
    line_ = 0;
  }

  INVOLUTION_INLINE void step() {
    for (int64_t left = share_; left > 0 && count_ > 0; --left) {
      Entry& entry = entries_[count_ - 1];
      expect_line(entry.first + line_ * kLineBytes);
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

// What a row fetches while it is computed, and what its item does.
struct Fetches {
  INVOLUTION_INLINE void step() {
    row.step();
    item.step();
  }

  FetchQueue row, item;
};

}  // namespace involution::cpu::INVOLUTION_CPU_NAMESPACE
