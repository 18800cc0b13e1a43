// The transposed operation where the kernel values of a position lie together, with vectors along the
// channels:
//
//   result[p - padding + k*dilation, c] += weight[p, k] * source[p, c]
//
// channels.h gathers: it would come back to a position's kernel values for every row of results that they
// reach. Here all are used while a row of the source is at hand, in the order in which they lie in memory,
// and the rows of results that it reaches are summed in scratch. Along the width it is a gather still. The
// plan takes this where the stride is 1 along the height and the width.
#pragma once

#include "channels.h"

namespace involution::cpu::INVOLUTION_CPU_NAMESPACE {

template <int kVectors, typename T>
void scatter_item(const Plan& plan, const Item& item, const T* source, const T* weights, T* result,
                  unsigned char* scratch) {
  using S = Sum<T>;
  constexpr bool kWidens = sizeof(T) != sizeof(S);
  const Problem& problem = plan.problem;
  const AxisPlan& depth = plan.axis[kDepth];
  const AxisPlan& height = plan.axis[kHeight];
  const AxisPlan& width = plan.axis[kWidth];
  const ActivationStrides& from = plan.source_strides();
  const ActivationStrides& strides = plan.result_strides();
  const WeightStrides& weight_strides = problem.w;
  const int64_t pitch = plan.pixel_pitch, row_pitch = item.count[kWidth] * pitch;
  S* sums = reinterpret_cast<S*>(scratch);
  S* pixels = reinterpret_cast<S*>(scratch + plan.result_offset);
  S* widened = reinterpret_cast<S*>(scratch + plan.weight_offset);
  const int64_t channel = item.group * problem.channels_per_group + item.channel;
  weights = group_weights(plan, item, weights);
  source += item.batch * from.batch + channel * from.channel;
  result += item.batch * strides.batch + channel * strides.channel;
  for (int axis = 0; axis < 3; ++axis) result += item.first[axis] * strides.space[axis];

  const auto [first, count] = window_of(width, item);
  const int64_t points = height.kernel * width.kernel;
  const int64_t advance = kWidens ? plan.sums_pitch : weight_strides.space[kWidth];
  WeightStrides found = weight_strides;
  found.space[kWidth] = advance;
  RowLinks links(plan, item, found, scratch);
  links.collect(best_block<S, kVectors>);
  Target* const targets = reinterpret_cast<Target*>(links.rest);
  // Kernel values in place are met by all groups block by block: they may lie together.
  const int64_t groups = kWidens ? 1 : item.groups;
  Fetches fetches;

  // A row of the source reaches the results from lowest(row) on, a dilation apart.
  const int64_t results = item.count[kHeight], dilation = problem.dilation[kHeight];
  const auto lowest = [&](int64_t row) { return row - problem.padding[kHeight] - item.first[kHeight]; };
  const int64_t reach = (height.kernel - 1) * dilation;
  int64_t top = 0, bottom = height.source;
  while (top < bottom && lowest(top) + reach < 0) ++top;
  while (top < bottom && lowest(bottom - 1) >= results) --bottom;

  const auto row_of = [&](int64_t g, int64_t h) {
    return sums + g * plan.group_pitch + h % plan.rows_summed * row_pitch;
  };
  for (int64_t g = 0; g < item.groups; ++g)
    zero_pixels(row_of(g, 0), plan.rows_summed * item.count[kWidth], pitch);
  for (int64_t d = 0; d < item.count[kDepth]; ++d) {
    int64_t finished = 0;
    const auto finish = [&](int64_t until) {
      for (; finished < until; ++finished) {
        T* to = result + d * strides.space[kDepth] + finished * strides.space[kHeight];
        for (int64_t g = 0; g < item.groups; ++g, to += problem.channels_per_group * strides.channel) {
          copy_out(row_of(g, finished), pitch, to, strides.space[kWidth], strides.channel, item.count[kWidth],
                   item.channels);
          zero_pixels(row_of(g, finished), item.count[kWidth], pitch);
        }
      }
    };
    int64_t left = 0;  // planes of the source to come
    const auto plane_of = [&](int64_t kd) {
      const Run& run = depth.run[kd];
      const int64_t plane = run.position + item.tile[kDepth] * depth.shift + d / depth.phases;
      return run.phase == d % depth.phases && plane >= 0 && plane < depth.source ? plane : -1;
    };
    for (int64_t kd = 0; kd < depth.kernel; ++kd) left += plane_of(kd) >= 0;
    for (int64_t kd = 0; kd < depth.kernel; ++kd) {
      const int64_t plane = plane_of(kd);
      if (plane < 0) continue;
      --left;
      for (int64_t p = top; p < bottom; ++p) {
        const T* row_source = source + plane * from.space[kDepth] + p * from.space[kHeight];
        const T* row_weights = weights + plane * weight_strides.space[kDepth] +
                               p * weight_strides.space[kHeight] + kd * weight_strides.kernel[kDepth];
        fetches.row.clear();
        if (p + 1 < bottom)
          expect(row_source + from.space[kHeight] + first * from.space[kWidth], from, count,
                 item.channels + (item.groups - 1) * problem.channels_per_group, fetches.row);
        fetches.row.start(links.blocks() * item.groups / groups);
        Target* target = targets;
        for (int64_t kh = 0; kh < height.kernel; ++kh) {
          const int64_t reached = lowest(p) + kh * dilation, link = target - targets;
          if (reached < 0 || reached >= results) continue;
          links.rows[link] = {kh * (kWidens ? width.kernel : weight_strides.kernel[kHeight]), 0};
          *target++ = {row_of(0, reached) - sums, link, link + 1};
        }
        for (int64_t g = 0; g < item.groups; g += groups) {
          for (int64_t i = 0; i < groups; ++i)
            stage_pixel_rows(plan, item, row_source + (g + i) * problem.channels_per_group * from.channel, 1,
                             pixels + i * width.slots * pitch);
          const T* values = row_weights + g * weight_strides.group;
          LinkedRow<S> row{links.rows,
                           links.chains,
                           links.phases[0],
                           targets,
                           target - targets,
                           nullptr,
                           weight_strides.group,
                           advance,
                           pixels,
                           width.slots * pitch,
                           groups,
                           kWidens ? Expected::kNone : Expected::kPositions,
                           kBlocksAhead * links.phases[0].block * advance,
                           true};
          if constexpr (kWidens) {
            widen_points(values + first * weight_strides.space[kWidth], weight_strides.space[kWidth],
                         weight_strides.space[kHeight], count, points, widened, plan.sums_pitch);
            row.weights = widened - first * advance;
          } else {
            row.weights = values;
          }
          sum_row<kVectors>(row, RowResults<S>{row_of(g, 0), plan.group_pitch, pitch, pitch}, fetches);
        }
        // What rows to come reach no more.
        if (left == 0) finish(smaller(results, larger(finished, lowest(p + 1))));
      }
    }
    finish(results);
  }
}

}  // namespace involution::cpu::INVOLUTION_CPU_NAMESPACE
