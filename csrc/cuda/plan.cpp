#include "plan.h"

#include <algorithm>
#include <cmath>
#include <sstream>

#include "forced_plan.h"
#include "layout.h"
#include "measured_shapes.h"

namespace involution {

namespace {

// The shape that was measured for the most similar problem.
Shape measured_shape(Operation operation, const Problem& p, bool half, const Layout& layout) {
  const int64_t width = operation == Operation::kTranspose ? p.input[kWidth] : p.output[kWidth];
  const auto planes = static_cast<double>(std::max<int64_t>(1, p.batch * p.groups * p.channels_per_group));
  const MeasuredShape* nearest = nullptr;
  double least = 0;
  for (const MeasuredShape& row : kMeasuredShapes) {
    if (row.operation != operation || row.half != half ||
        row.channels_last != layout.source_channels_last()) {
      continue;
    }
    // A map half or twice as wide counts as much as another width of the kernel, another stride as much as
    // both. Of maps of the same width, many want other blocks than few.
    const double distance = std::abs(std::log2(static_cast<double>(width) / row.width)) +
                            ((row.kernel < 7) != (p.kernel[kWidth] < 7) ? 1 : 0) +
                            (row.stride != p.stride[kWidth] ? 2 : 0) +
                            0.15 * std::abs(std::log2(planes / static_cast<double>(row.planes)));
    if (nearest == nullptr || distance < least) nearest = &row, least = distance;
  }
  if (nearest == nullptr) return half ? Shape{64, 4, 1, 0, 3, 4, 1} : Shape{32, 4, 2, 0, 2, 4, 1};
  Shape shape = nearest->shape;
  // What is a whole map there may not be one here.
  if (shape.rows > 1 && p.output[kHeight] > 2 * nearest->width) shape.rows = std::min(shape.rows, 2);
  return shape;
}

void override_shape(Shape* shape, bool* generic) {
  for_each_forced([&](const std::string& name, int value) {
    if (name == "generic") *generic = true;
    if (value < 1) return;
    if (name == "pack") shape->pack = value;
    if (name == "runs") shape->runs = value;
    if (name == "rows") shape->rows = value;
    if (name == "chunks") shape->chunks = value;
    if (name == "stages") shape->stages = std::min(std::max(value, 2), 4);
    if (name == "producers") shape->producers = value;
    if (name == "parts") shape->parts = value;
  });
}

// Less of a block, until it fits; false where nothing is left to take away.
bool shrink(Shape* shape) {
  if (shape->runs > 1) {
    shape->runs = (shape->runs + 1) / 2;
  } else if (shape->rows > 1) {
    shape->rows /= 2;
  } else if (shape->pack > 16) {
    shape->pack /= 2;
  } else if (shape->stages > 2) {
    shape->stages = 2;
  } else if (shape->producers < 8) {
    shape->producers = 8;  // long rows of small pieces
  } else if (shape->parts > 1) {
    shape->parts /= 2;
  } else if (shape->pack > 4) {
    shape->pack /= 2;
  } else {
    return false;
  }
  return true;
}

}  // namespace

Plan make_plan(Operation operation, const Problem& problem, int element_size, OperandAlignment alignment,
               const DeviceLimits& limits) {
  Plan plan{};
  const Layout layout(operation, problem, element_size, alignment);
  plan.reason = layout.why_generic();
  if (plan.reason != nullptr) return plan;
  Shape shape = measured_shape(operation, problem, element_size == 2, layout);
  bool generic = false;
  override_shape(&shape, &generic);
  if (generic) {
    plan.reason = "INVOLUTION_CUDA_PLAN asks for it";
    return plan;
  }
  do {
    if (layout.lay_out(shape, limits, &plan)) {
      // Fewer channels for each of more blocks, where half of the multiprocessors or more would have none.
      Plan more{};
      while (!is_plan_forced() && 2 * plan.blocks <= limits.multiprocessors && shape.pack > 16) {
        shape.pack /= 2;
        if (!layout.lay_out(shape, limits, &more) || more.blocks <= plan.blocks) break;
        plan = more;
      }
      plan.reason = element_size == 2 ? "band" : "fma";
      return plan;
    }
  } while (shrink(&shape));
  plan = Plan{};
  plan.reason = "no block fits into shared memory and the grid";
  return plan;
}

std::string describe(const Plan& plan) {
  std::ostringstream text;
  if (plan.kind == PlanKind::kGeneric) {
    text << "generic: " << plan.reason;
    return text.str();
  }
  const March& m = plan.march;
  text << (plan.kind == PlanKind::kBand ? "band" : "fma") << (plan.square ? " square" : "")
       << (plan.source_channels_last ? " channels_last" : " contiguous") << ": " << plan.blocks
       << " blocks of " << m.consumers << " + " << m.producers << " warps and " << plan.shared_bytes
       << " bytes; " << m.pack_channels << " channels, " << m.strips << " strips of " << m.runs << " runs, "
       << m.chunks << " chunks of " << m.chunk_rows << " rows, " << m.step_rows << " rows a step, "
       << m.stages << " stages, " << m.parts << " parts; pieces of " << m.source.piece_bytes << ", "
       << m.second.piece_bytes << " and " << m.result.piece_bytes << " bytes";
  return text.str();
}

}  // namespace involution
