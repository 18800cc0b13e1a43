#include "fused_backward_plan.h"

#include <algorithm>
#include <sstream>

#include "../integer_math.h"
#include "forced_plan.h"
#include "launch_cost.h"

namespace involution {
namespace {

// The kernels for gradients take what those of the forward pass take, for one size of windows and no stride.
const char* why_none(const FusedProblem& p) {
  if (p.kernel[0] != kFusedBackwardSize || p.kernel[1] != kFusedBackwardSize) return "the kernel is not 7x7";
  if (p.stride[0] != 1 || p.stride[1] != 1) return "the stride is not 1";
  return why_not_fused(p);
}

// The strips, chunks and sets of images whose launch ends soonest.
class Search {
 public:
  Search(const DeviceLimits& limits, FusedBackwardPlan* plan)
      : limits_(limits),
        plan_(*plan),
        block_(fused_backward_block(plan->gradient, plan->steps)),
        layout_(fused_backward_layout(plan->gradient, plan->steps)) {}

  // False where no block fits.
  bool run() {
    const FusedBackwardMarch m = plan_.march;
    int forced_runs = 0, forced_chunks = 0, forced_images = 0;
    const bool several_images = plan_.gradient == FusedGradient::kWeight;  // as there is a sum over them
    for_each_forced([&](const std::string& name, int value) {
      if (name == "runs") forced_runs = value;
      if (name == "chunks") forced_chunks = value;
      if (name == "images" && several_images) forced_images = value;
    });
    double least = 0;
    bool found = false;
    const int needed = ceil_div(m.width, block_.tile_columns);
    for (int runs = 1; runs <= needed && runs * block_.groups * 32 <= block_.most_threads; ++runs) {
      if (forced_runs > 0 && runs != forced_runs) continue;
      for (int chunks = 1; chunks <= ceil_div(m.height, kFusedTileRows); ++chunks) {
        if (forced_chunks > 0 && chunks != forced_chunks) continue;
        for (int images = 1; images <= (several_images && chunks == 1 ? m.batch : 1); ++images) {
          if (forced_images > 0 && images != forced_images) continue;
          if (images > 1 && ceil_div(m.batch, images) == ceil_div(m.batch, images - 1)) continue;
          const FusedBackwardPlan candidate = cut(runs, chunks, images);
          if (candidate.march.chunks != chunks) continue;  // the rows do not come out at so many
          if (candidate.threads > block_.threads()) continue;
          if (candidate.shared_bytes > limits_.shared_memory_per_block) continue;
          const double cost = cost_of(candidate);
          if (!found || cost < least * 0.999) least = cost, plan_ = candidate, found = true;
        }
      }
    }
    return found;
  }

 private:
  FusedBackwardPlan cut(int runs, int chunks, int images) const {
    FusedBackwardPlan plan = plan_;
    FusedBackwardMarch& m = plan.march;
    const int columns = runs * block_.tile_columns;
    m.runs = runs;
    m.strips = ceil_div(m.width, columns);
    m.chunk_rows = round_up(ceil_div(m.height, chunks), kFusedTileRows);
    m.chunks = ceil_div(m.height, m.chunk_rows);
    m.images = images;
    m.pixel_row = (columns + 8) * layout_.pixel;
    m.gradient_row = columns * layout_.pixel;
    int tiles = runs;
    int64_t rings = 0, results = 0;
    switch (plan.gradient) {
      case FusedGradient::kInput:
        m.feature_row = fused_feature_columns(columns + 8, plan.steps) * layout_.feature;
        rings = int64_t{layout_.ring} * (m.pixel_row + m.feature_row) +
                int64_t{block_.groups} * layout_.group_weight + int64_t{runs} * block_.groups * layout_.warp;
        break;
      case FusedGradient::kFeatures:  // two packs of groups: all rows of the chunk, and its weights
        tiles = runs * (m.chunk_rows / kFusedTileRows);
        rings = 2 * (int64_t{m.chunk_rows + kFusedBackwardSize - 1} * m.pixel_row +
                     int64_t{m.chunk_rows} * m.gradient_row + int64_t{block_.groups} * layout_.group_weight);
        results = int64_t{tiles} * block_.groups * layout_.warp;
        break;
      case FusedGradient::kWeight:
        m.feature_row =
            fused_feature_columns(columns, plan.steps) * layout_.feature + 16;  // two rows in different banks
        rings = int64_t{layout_.ring} * m.pixel_row +
                int64_t{2 * kFusedTileRows} * (m.gradient_row + m.feature_row);
        results = int64_t{tiles} * block_.groups * layout_.warp;
        break;
    }
    plan.threads = (tiles * block_.groups + block_.copying) * 32;
    plan.shared_bytes = std::max(rings, results);  // these take the place of those
    plan.parts = int64_t{m.strips} * m.chunks * ceil_div(m.batch, images);
    plan.blocks = plan.parts * m.packs * m.slices;
    return plan;
  }

  // Instructions as they are in the compiled loops: those of a warp for 32 positions of a group, 10 to copy
  // 32 pieces of 16 bytes, 37 of every warp that copies to go on to the next four rows, and those of a
  // weight's sums at the end.
  double cost_of(const FusedBackwardPlan& plan) const {
    const FusedBackwardMarch& m = plan.march;
    const double columns = m.runs * block_.tile_columns, rows = m.chunk_rows, steps = plan.steps;
    const double map = columns * rows, halo = (columns + 8) * (rows + kFusedBackwardSize - 1);
    const double pixel = layout_.pixel;
    double computing = 0, copied = 0, written = 0, fours = 0, turns = 1, at_end = 0;
    switch (plan.gradient) {
      case FusedGradient::kInput:
        computing = plan.steps == 1 ? 287 : 255 + 78 * steps;
        copied = halo * (pixel + 2. * m.reduced), fours = 2 * rows / 4;
        written = map * pixel;
        break;
      case FusedGradient::kFeatures:
        turns = ceil_div(m.groups, block_.groups);
        computing = 215 + 42 * steps;
        copied = (halo + map) * pixel + block_.groups * 2048 * steps, fours = (2 * rows + 6) / 4;
        written = map * m.reduced * 2;
        break;
      case FusedGradient::kWeight:
        turns = m.images;
        computing = 287;
        copied = halo * pixel + map * (pixel + 32 * steps), fours = 3 * rows / 4;
        written = block_.groups * 49. * 16 * steps * 6;
        at_end = block_.groups * 49. * steps / 2 * (24 + 4 * m.runs);
        break;
    }
    const double warps = plan.threads / 32., copying = block_.copying > 0 ? block_.copying : warps;
    const double instructions =
        turns * (computing * map * block_.groups / 32 + 37 * fours * copying + copied / 512 * 10) + at_end;
    // One block adds up the parts of 16 and more, which takes it so long for each.
    const double sums = plan.gradient == FusedGradient::kWeight ? static_cast<double>(plan.parts) * 2.5 : 0;
    return launch_cost({plan.blocks, plan.threads, plan.shared_bytes, block_.threads(), instructions,
                        turns * 0.85 * copied + written},
                       limits_) +
           sums;
  }

  const DeviceLimits& limits_;
  FusedBackwardPlan& plan_;
  const FusedBackwardBlock block_;
  const FusedBackwardLayout layout_;
};

const char* name_of(FusedGradient gradient) {
  if (gradient == FusedGradient::kInput) return "input";
  return gradient == FusedGradient::kFeatures ? "features" : "weight and bias";
}

}  // namespace

FusedBackwardPlan make_fused_backward_plan(FusedGradient gradient, const FusedProblem& problem,
                                           const DeviceLimits& limits) {
  FusedBackwardPlan plan{};
  plan.gradient = gradient;
  plan.reason = why_none(problem);
  if (plan.reason != nullptr) return plan;
  FusedBackwardMarch& m = plan.march;
  m.batch = static_cast<int>(problem.batch);
  m.channels = static_cast<int>(problem.channels);
  m.groups = static_cast<int>(problem.channels / kFusedGroupChannels);
  m.reduced = static_cast<int>(problem.reduced);
  m.height = static_cast<int>(problem.height);
  m.width = static_cast<int>(problem.width);
  const int most_steps = fused_backward_block(gradient, 1).most_steps;
  for (plan.steps = 1; plan.steps < most_steps && plan.steps * 16 < m.reduced;) plan.steps *= 2;
  m.slices = ceil_div(m.reduced, plan.steps * 16);
  const int groups = fused_backward_block(gradient, plan.steps).groups;
  m.packs = gradient == FusedGradient::kFeatures ? 1 : ceil_div(m.groups, groups);
  if (!Search(limits, &plan).run()) {
    plan.reason = "no block fits into shared memory";
  } else if (plan.blocks >= int64_t{1} << 31) {
    plan.reason = "a grid has no room for the blocks";
  }
  return plan;
}

std::string describe(const FusedBackwardPlan& plan) {
  std::ostringstream text;
  text << "gradient of " << name_of(plan.gradient) << ": ";
  if (plan.reason != nullptr) {
    text << "not fused: " << plan.reason;
    return text.str();
  }
  const FusedBackwardMarch& m = plan.march;
  const FusedBackwardBlock block = fused_backward_block(plan.gradient, plan.steps);
  text << plan.blocks << " blocks of " << plan.threads / 32 - block.copying << " + " << block.copying
       << " warps and " << plan.shared_bytes << " bytes; " << block.groups << " groups at once, " << m.strips
       << " strips of " << m.runs * block.tile_columns << " columns, " << m.chunks << " chunks of "
       << m.chunk_rows << " rows, " << m.images << " images; reduced channels in " << m.slices
       << " slices of " << plan.steps << " steps of 16";
  return text.str();
}

}  // namespace involution
