// Runs the threads of a block as fibers: who runs next, who waits for whom, and when waiting is a mistake.
//
// A thread runs until it waits or returns. The last thread to arrive at a barrier or warp operation releases
// the others. When no thread can run and some still wait, the kernel is wrong: CUDA leaves what happens then
// undefined, here it is reported.

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "cuda_on_host.h"
#include "fiber.h"
#include "random.h"

namespace involution::host {
namespace {

using detail::CallSite;

constexpr int kLanes = 32;
constexpr int kMaxThreads = 1024;
constexpr std::size_t kSharedAlignment = 128;

enum class State { kReady, kBlockBarrier, kWarpBarrier, kShuffle, kReturned };

struct Thread {
  Fiber fiber;
  int number;  // within the block; x runs fastest
  uint3 index;
  State state;
  CallSite site;        // where it waits
  unsigned mask;        // of the warp operation it waits in
  std::uint64_t given;  // to the other lanes of a shuffle
  std::uint64_t received;
  int source_lane;
};

struct Warp {
  std::uint32_t lanes;    // that exist: the last warp of a block may be short
  std::uint32_t ready;    // can run
  std::uint32_t waiting;  // in a warp operation
};

struct SharedMemoryDeleter {
  void operator()(unsigned char* memory) const {
    ::operator delete(memory, std::align_val_t{kSharedAlignment});
  }
};

// All that belongs to the launch in progress. Fibers and their stacks stay for the next.
struct Machine {
  std::vector<std::unique_ptr<Thread>> pool;
  std::array<Warp, kMaxThreads / kLanes> warps;
  int thread_count = 0;
  int warp_count = 0;
  int at_block_barrier = 0;
  int returned = 0;
  Thread* running = nullptr;
  bool launched = false;
  unsigned char* shared = nullptr;

  Random random{0};
  std::uint32_t runnable = 0;  // warps with a lane that is ready
  bool warp_by_warp = false;   // how the threads of this phase take turns
  int current_warp = 0;

  void (*body)(void*) = nullptr;
  void* argument = nullptr;

  Thread& lane(int warp, int lane) { return *pool[warp * kLanes + lane]; }
};

Machine machine;
cudaError_t last_error = cudaSuccess;

// ---- reports -----------------------------------------------------------------------------------------

[[noreturn]] void fail(const std::string& message) {
  const uint3 block = detail::block_index;
  std::fprintf(stderr, "cuda_on_host: %s\n  in block (%u, %u, %u) of %d threads, seed %llu\n",
               message.c_str(), block.x, block.y, block.z, machine.thread_count,
               static_cast<unsigned long long>(options().seed));
  std::fflush(stderr);
  std::_Exit(kCheckFailedExitCode);
}

std::string doing(const Thread& thread) {
  if (thread.state == State::kReady) return "not there yet";
  if (thread.state == State::kReturned) return "returned";
  const std::string where = std::string(" at ") + thread.site.file + ":" + std::to_string(thread.site.line);
  if (thread.state == State::kBlockBarrier) return "in __syncthreads" + where;
  char mask[32];
  std::snprintf(mask, sizeof mask, ", mask 0x%08x", thread.mask);
  return (thread.state == State::kShuffle ? "in a warp shuffle" : "in __syncwarp") + where + mask;
}

// "0-31, 40": neighbours are joined.
std::string ranges(const std::vector<int>& numbers) {
  std::string text;
  for (std::size_t first = 0, last = 0; first < numbers.size(); first = ++last) {
    while (last + 1 < numbers.size() && numbers[last + 1] == numbers[last] + 1) ++last;
    text += (text.empty() ? "" : ", ") + std::to_string(numbers[first]);
    if (last > first) text += "-" + std::to_string(numbers[last]);
  }
  return text;
}

// Says what every thread of the block is doing, those that do the same in one line.
[[noreturn]] void report_divergence() {
  std::vector<std::pair<std::string, std::vector<int>>> groups;
  for (int i = 0; i < machine.thread_count; ++i) {
    const std::string what = doing(*machine.pool[i]);
    auto group = std::find_if(groups.begin(), groups.end(), [&](auto& known) { return known.first == what; });
    if (group == groups.end()) group = groups.insert(groups.end(), {what, {}});
    group->second.push_back(i);
  }
  std::string message = "divergent barrier: not all threads that have to meet arrived at the same place";
  for (const auto& [what, threads] : groups) message += "\n  " + what + ": threads " + ranges(threads);
  fail(message);
}

// ---- scheduling --------------------------------------------------------------------------------------

// Called whenever all threads of the block can run. Threads then take turns one by one, across all warps, or
// each warp goes as far as it can before the next: the first way meets races inside a warp and between single
// threads, the second those between warps that a warp operation seems to separate.
void begin_phase() {
  for (int w = 0; w < machine.warp_count; ++w) machine.warps[w].ready = machine.warps[w].lanes;
  machine.runnable = machine.warp_count == 32 ? ~0u : (1u << machine.warp_count) - 1;
  machine.warp_by_warp = machine.random.next() & 1;
  machine.at_block_barrier = 0;
}

Thread* take_next() {
  if (machine.runnable == 0) return nullptr;
  const bool stay = machine.warp_by_warp && (machine.runnable >> machine.current_warp & 1);
  if (!stay) machine.current_warp = machine.random.bit_of(machine.runnable);
  Warp& warp = machine.warps[machine.current_warp];
  const int lane = machine.random.bit_of(warp.ready);
  warp.ready &= ~(1u << lane);
  if (warp.ready == 0) machine.runnable &= ~(1u << machine.current_warp);
  return &machine.lane(machine.current_warp, lane);
}

void run_thread(void* pointer) {
  auto* thread = static_cast<Thread*>(pointer);
  try {
    machine.body(machine.argument);
  } catch (const std::exception& error) {
    fail("thread " + std::to_string(thread->number) + " threw an exception: " + error.what());
  } catch (...) {
    fail("thread " + std::to_string(thread->number) + " threw an exception");
  }
  thread->state = State::kReturned;
  ++machine.returned;
}

void run_block() {
  for (int i = 0; i < machine.thread_count; ++i) {
    Thread& thread = *machine.pool[i];
    thread.state = State::kReady;
    thread.fiber.start(run_thread, &thread);
  }
  for (int w = 0; w < machine.warp_count; ++w) machine.warps[w].waiting = 0;
  machine.returned = 0;
  begin_phase();
  while (Thread* thread = take_next()) {
    machine.running = thread;
    detail::thread_index = thread->index;
    thread->fiber.resume();
  }
  machine.running = nullptr;
  if (machine.returned != machine.thread_count) report_divergence();
}

// ---- waiting -----------------------------------------------------------------------------------------

bool same_place(CallSite a, CallSite b) { return a.line == b.line && std::strcmp(a.file, b.file) == 0; }

Thread& arrive(const char* what, State state, CallSite site) {
  if (machine.running == nullptr) fail(std::string(what) + " was called outside a kernel");
  Thread& thread = *machine.running;
  thread.state = state;
  thread.site = site;
  return thread;
}

void wait(Thread& thread) {
  Fiber::suspend();
  thread.state = State::kReady;
}

// Releases the lanes in `mask`, all of which have arrived, once they are seen to agree on what they do.
void complete_warp_operation(Warp& warp, int warp_number, const Thread& last) {
  const std::uint32_t participants = last.mask & warp.lanes;
  for (int i = 0; i < kLanes; ++i) {
    if (!(participants >> i & 1)) continue;
    Thread& thread = machine.lane(warp_number, i);
    if (thread.state != last.state || thread.mask != last.mask || !same_place(thread.site, last.site)) {
      report_divergence();
    }
    if (thread.state != State::kShuffle) continue;
    const int source = thread.source_lane;
    if (source < 0 || source >= kLanes || !(participants >> source & 1)) {
      fail("thread " + std::to_string(thread.number) + ", " + doing(thread) + ", reads lane " +
           std::to_string(source) + ", which takes no part");
    }
    thread.received = machine.lane(warp_number, source).given;
  }
  warp.waiting &= ~participants;
  warp.ready |= participants;
  machine.runnable |= 1u << warp_number;
}

void wait_for_warp(Thread& thread, unsigned mask) {
  const int warp_number = thread.number / kLanes;
  const int lane = thread.number % kLanes;
  Warp& warp = machine.warps[warp_number];
  thread.mask = mask;
  if (!(mask >> lane & 1)) {
    fail("thread " + std::to_string(thread.number) + ", " + doing(thread) + ", is not in its own mask");
  }
  warp.waiting |= 1u << lane;
  if ((mask & warp.lanes & ~warp.waiting) == 0) complete_warp_operation(warp, warp_number, thread);
  wait(thread);
}

// ---- launches ----------------------------------------------------------------------------------------

cudaError_t check_configuration(dim3 grid, dim3 block, std::size_t shared_bytes) {
  const std::uint64_t threads = std::uint64_t{block.x} * block.y * block.z;
  const bool grid_fits = grid.x <= 0x7fffffffu && grid.y <= 65535 && grid.z <= 65535;
  const bool block_fits = block.x <= 1024 && block.y <= 1024 && block.z <= 64 && threads <= kMaxThreads;
  if (std::uint64_t{grid.x} * grid.y * grid.z == 0 || threads == 0) return cudaErrorInvalidConfiguration;
  if (!grid_fits || !block_fits) return cudaErrorInvalidConfiguration;
  if (shared_bytes > options().shared_memory_per_block) return cudaErrorInvalidValue;
  return cudaSuccess;
}

void prepare_threads(dim3 block) {
  machine.thread_count = static_cast<int>(block.x * block.y * block.z);
  machine.warp_count = (machine.thread_count + kLanes - 1) / kLanes;
  while (static_cast<int>(machine.pool.size()) < machine.thread_count) {
    machine.pool.push_back(std::make_unique<Thread>());
  }
  for (int i = 0; i < machine.thread_count; ++i) {
    const auto n = static_cast<unsigned>(i);
    machine.pool[i]->number = i;
    machine.pool[i]->index = {n % block.x, n / block.x % block.y, n / (block.x * block.y)};
  }
  for (int w = 0; w < machine.warp_count; ++w) {
    const int lanes = std::min(kLanes, machine.thread_count - w * kLanes);
    machine.warps[w].lanes = lanes == kLanes ? ~0u : (1u << lanes) - 1;
  }
}

std::vector<std::uint32_t> shuffled(std::uint64_t count) {
  std::vector<std::uint32_t> order(count);
  std::iota(order.begin(), order.end(), 0u);
  for (std::uint64_t i = count; i > 1; --i) std::swap(order[i - 1], order[machine.random.below(i)]);
  return order;
}

}  // namespace

Options& options() {
  static Options options;
  return options;
}

unsigned char* shared_memory() {
  if (machine.running == nullptr) fail("shared memory was used outside a kernel");
  return machine.shared;
}

namespace detail {

void block_barrier(CallSite site) {
  Thread& thread = arrive("__syncthreads", State::kBlockBarrier, site);
  if (++machine.at_block_barrier == machine.thread_count) {
    for (int i = 0; i < machine.thread_count; ++i) {
      if (!same_place(machine.pool[i]->site, site)) report_divergence();
    }
    begin_phase();
  }
  wait(thread);
}

void warp_barrier(unsigned mask, CallSite site) {
  wait_for_warp(arrive("__syncwarp", State::kWarpBarrier, site), mask);
}

std::uint64_t exchange(unsigned mask, std::uint64_t bits, int source_lane, CallSite site) {
  Thread& thread = arrive("a warp shuffle", State::kShuffle, site);
  thread.given = bits;
  thread.source_lane = source_lane;
  wait_for_warp(thread, mask);
  return thread.received;
}

int lane_index() { return machine.running == nullptr ? 0 : machine.running->number % kLanes; }

cudaError_t run_grid(dim3 grid, dim3 block, std::size_t shared_bytes, void (*body)(void*), void* argument) {
  if (machine.launched) fail("a kernel was launched from within a kernel");
  const cudaError_t error = check_configuration(grid, block, shared_bytes);
  if (error != cudaSuccess) return last_error = error;

  machine.random = Random(options().seed);
  machine.launched = true;
  machine.body = body;
  machine.argument = argument;
  prepare_threads(block);
  // From the heap and of the exact size, so that AddressSanitizer sees what lies beyond.
  const std::unique_ptr<unsigned char, SharedMemoryDeleter> shared(
      static_cast<unsigned char*>(::operator new(shared_bytes, std::align_val_t{kSharedAlignment})));
  machine.shared = shared.get();
  block_dimensions = block;
  grid_dimensions = grid;

  const std::uint64_t blocks = std::uint64_t{grid.x} * grid.y * grid.z;
  for (const std::uint32_t b : shuffled(blocks)) {
    block_index = {b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y};
    std::memset(machine.shared, 0xff, shared_bytes);
    run_block();
  }
  machine.shared = nullptr;
  machine.launched = false;
  return cudaSuccess;
}

}  // namespace detail
}  // namespace involution::host

cudaError_t cudaGetLastError() {
  const cudaError_t error = involution::host::last_error;
  involution::host::last_error = cudaSuccess;
  return error;
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorNotSupported:
      return "operation not supported";
  }
  return "unrecognized error code";
}
