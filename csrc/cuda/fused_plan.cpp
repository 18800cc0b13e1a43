#include "fused_plan.h"

#include <algorithm>
#include <sstream>

#include "../integer_math.h"
#include "forced_plan.h"
#include "launch_cost.h"

namespace involution {

const char* why_not_fused(const FusedProblem& p) {
  if (p.group_channels != kFusedGroupChannels) return "a group does not have 16 channels";
  if (p.kernel[0] != p.kernel[1] || (p.kernel[1] != 3 && p.kernel[1] != 5 && p.kernel[1] != 7)) {
    return "the kernel is not 3x3, 5x5 or 7x7";
  }
  if (p.stride[0] != p.stride[1] || (p.stride[0] != 1 && p.stride[0] != 2)) return "the stride is not 1 or 2";
  if (p.reduced % 8 != 0 || p.reduced > 128) return "the reduced channels are not a multiple of 8 up to 128";
  // Places in an image are 32 bits.
  const int64_t image = p.height * p.width * std::max(p.channels, p.reduced) * 2;
  if (image >= int64_t{1} << 32) return "an image has 4 GiB or more";
  return nullptr;
}

namespace {

// The strips and chunks whose launch ends soonest.
class Search {
 public:
  Search(const FusedProblem& problem, const DeviceLimits& limits, FusedPlan* plan)
      : p_(problem),
        limits_(limits),
        plan_(*plan),
        block_(fused_block(plan->kernel, plan->steps, plan->stride)),
        layout_(fused_layout(plan->kernel, plan->steps, plan->stride)),
        tile_columns_(fused_tile_columns(plan->stride)) {}

  // False where no block fits.
  bool run() {
    const FusedMarch& m = plan_.march;
    const int needed = ceil_div(m.result_width, tile_columns_);
    int forced_runs = 0, forced_chunks = 0;
    for_each_forced([&](const std::string& name, int value) {
      if (name == "runs") forced_runs = value;
      if (name == "chunks") forced_chunks = value;
    });
    double least = 0;
    bool found = false;
    for (int runs = 1; runs <= needed && warps_of(runs) * 32 <= block_.most_threads; ++runs) {
      for (int chunks = 1; chunks <= ceil_div(m.result_height, kFusedTileRows); ++chunks) {
        FusedPlan candidate = cut(runs, needed, chunks);
        if (candidate.shared_bytes > limits_.shared_memory_per_block) return found;
        if (candidate.march.chunks != chunks) continue;  // the rows do not come out at so many
        if (forced_runs > 0 && runs != forced_runs) continue;
        if (forced_chunks > 0 && chunks != forced_chunks) continue;
        const double cost = cost_of(candidate);
        if (!found || cost < least * 0.999) least = cost, plan_ = candidate, found = true;
      }
    }
    return found;
  }

 private:
  int warps_of(int runs) const { return runs * block_.groups / block_.warp_groups; }

  FusedPlan cut(int runs, int needed, int chunks) const {
    FusedPlan plan = plan_;
    FusedMarch& m = plan.march;
    const int columns = runs * tile_columns_;
    m.runs = runs;
    m.strips = ceil_div(needed, runs);
    m.packs = ceil_div(m.groups, block_.groups);
    m.chunk_rows = ceil_div(ceil_div(m.result_height, chunks), kFusedTileRows) * kFusedTileRows;
    m.chunks = ceil_div(m.result_height, m.chunk_rows);
    m.by_packs = divisor(m.packs);
    m.pixel_row = (columns * plan.stride + 8) * layout_.pixel;
    // Four columns of two rows are one matrix, in different banks: every other column, or with a stride all.
    m.feature_row =
        fused_feature_columns(columns, plan.steps) * layout_.feature + (plan.stride == 1 ? 16 : 64);
    plan.threads = (warps_of(runs) + block_.copying) * 32;
    plan.images = p_.batch;
    plan.blocks = p_.batch * m.packs * m.strips * m.chunks;
    constexpr int kAffine = 2 * kFusedGroupChannels * 4;  // scales and shifts of a group
    plan.shared_bytes = int64_t{block_.groups} * (layout_.group_weight + kAffine) +
                        int64_t{warps_of(runs)} * layout_.result + int64_t{layout_.ring} * m.pixel_row +
                        int64_t{2 * kFusedTileRows} * m.feature_row;
    return plan;
  }

  double cost_of(const FusedPlan& plan) const {
    const double of_tile = plan.stride == 1 ? 190. + 21. * plan.steps : 150. + 10.5 * plan.steps;
    const FusedMarch& m = plan.march;
    const double tiles = (m.chunk_rows / kFusedTileRows) * warps_of(m.runs) * block_.warp_groups;
    const double columns = m.runs * tile_columns_, rows = m.chunk_rows;
    const double read = (columns * plan.stride + 8) * (rows * plan.stride + plan.kernel - 1);
    const double bytes =
        block_.groups * 32. * (columns * rows + read + columns * rows * m.reduced / 16. / block_.groups);
    return launch_cost({plan.blocks, plan.threads, plan.shared_bytes, block_.residents * block_.threads(),
                        tiles * of_tile * plan.kernel / 7, bytes},
                       limits_);
  }

  const FusedProblem& p_;
  const DeviceLimits& limits_;
  FusedPlan& plan_;
  const FusedBlock block_;
  const FusedLayout layout_;
  const int tile_columns_;
};

}  // namespace

FusedPlan make_fused_plan(const FusedProblem& problem, const DeviceLimits& limits) {
  FusedPlan plan{};
  plan.reason = why_not_fused(problem);
  if (plan.reason != nullptr) return plan;
  plan.kernel = static_cast<int>(problem.kernel[0]);
  plan.stride = static_cast<int>(problem.stride[0]);
  // With a stride a lane takes 8 of 32 channels, so that there are two steps at least.
  for (plan.steps = plan.stride; plan.steps * 16 < problem.reduced;) plan.steps *= 2;
  FusedMarch& m = plan.march;
  m.channels = static_cast<int>(problem.channels);
  m.groups = static_cast<int>(problem.channels / kFusedGroupChannels);
  m.reduced = static_cast<int>(problem.reduced);
  m.height = static_cast<int>(problem.height);
  m.width = static_cast<int>(problem.width);
  m.result_height = ceil_div(m.height, plan.stride);
  m.result_width = ceil_div(m.width, plan.stride);
  if (!Search(problem, limits, &plan).run()) {
    plan.reason = "no block fits into shared memory";
  } else if (int64_t{m.packs} * m.strips * m.packs >= int64_t{1} << 31 || m.chunks >= 65536 ||
             plan.images >= 65536) {
    plan.reason = "a grid has no room for the blocks";
  }
  return plan;
}

std::string describe(const FusedPlan& plan) {
  std::ostringstream text;
  if (plan.reason != nullptr) {
    text << "not fused: " << plan.reason;
    return text.str();
  }
  const FusedMarch& m = plan.march;
  const FusedBlock block = fused_block(plan.kernel, plan.steps, plan.stride);
  text << "fused " << plan.kernel << "x" << plan.kernel << ", stride " << plan.stride << ": " << plan.blocks
       << " blocks of " << plan.threads / 32 - block.copying << " + " << block.copying << " warps and "
       << plan.shared_bytes << " bytes; " << block.groups << " groups, " << m.strips << " strips of "
       << m.runs * fused_tile_columns(plan.stride) << " columns, " << m.chunks << " chunks of "
       << m.chunk_rows << " rows; reduced channels in " << plan.steps << " steps of 16";
  return text.str();
}

}  // namespace involution
