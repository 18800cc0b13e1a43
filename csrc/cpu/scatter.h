// The transposed operation where the kernel values of a position lie together, with vectors along the
// channels:
//
//   result[p - padding + k*dilation, c] += weight[p, k] * source[p, c]
//
// channels.h gathers: it would come back to a position's kernel values for every row of results that they
// reach. Here all are used while a row of the source is at hand, in the order in which they lie in memory,
// and the rows of results that it reaches are summed in scratch. Along the width it is a gather still. The
// plan takes this where the stride is 1 along the height and the width, and for volumes of half types alone.
#pragma once

#include "channels.h"

namespace involution::cpu::INVOLUTION_CPU_NAMESPACE {

template <int kVectors, typename T>
class Scatter {
 public:
  Scatter(const Plan& plan, const Item& item, const T* source, const T* weights, T* result,
          unsigned char* scratch)
      : plan_(plan),
        item_(item),
        problem_(plan.problem),
        depth_(plan.axis[kDepth]),
        height_(plan.axis[kHeight]),
        from_(plan.source_strides()),
        strides_(plan.result_strides()),
        weight_strides_(plan.problem.w),
        pitch_(plan.pixel_pitch),
        positions_(window_of(plan, item, kWidth)),
        reach_((height_.kernel - 1) * problem_.dilation[kHeight]),
        advance_(kWidens ? plan.sums_pitch : weight_strides_.space[kWidth]),
        value_row_(kWidens ? positions_.count * plan.sums_pitch : weight_strides_.space[kHeight]),
        pixel_row_(plan.axis[kWidth].slots * pitch_),
        found_(found_strides()),
        links_(plan, item, found_, scratch),
        targets_(reinterpret_cast<Target*>(links_.rest)),
        sums_(reinterpret_cast<S*>(scratch)),
        widened_(reinterpret_cast<S*>(scratch + plan.weight_offset)),
        pixels_(reinterpret_cast<S*>(scratch + plan.result_offset)),
        source_(first_channel(plan, item, from_, source)),
        weights_(group_weights(plan, item, weights)),
        result_(first_channel(plan, item, strides_, result) + tile_offset(item, strides_.space)) {
    links_.collect(best_block<S, kVectors>);
    for (int64_t g = 0; g < item.groups; ++g)
      zero_pixels(row_of(g, 0), plan.rows_summed * item.count[kWidth], pitch_);
  }

  void run() {
    const int64_t results = item_.count[kHeight], sharing = plan_.rows_sharing;
    int64_t top = 0, bottom = height_.source;
    while (top < bottom && lowest(top) + reach_ < 0) ++top;
    while (top < bottom && lowest(bottom - 1) >= results) --bottom;
    for (int64_t d = 0; d < item_.count[kDepth]; ++d) {
      finished_ = 0;
      int64_t left = 0;  // planes of the source to come
      for (int64_t kd = 0; kd < depth_.kernel; ++kd) left += plane_of(d, kd) >= 0;
      for (int64_t kd = 0; kd < depth_.kernel; ++kd) {
        const int64_t plane = plane_of(d, kd);
        if (plane < 0) continue;
        --left;
        for (int64_t p = top, rows; p < bottom; p += rows) {
          // Which rows belong together does not depend on the tile: the order of the sums would.
          rows = smaller(sharing - p % sharing, bottom - p);
          const int64_t next = smaller(sharing, bottom - p - rows);
          // What rows to come reach no more.
          int64_t until = finished_;
          if (left == 0) until = next > 0 ? smaller(results, lowest(p + rows)) : results;
          fetch_rows(d, until, plane, p + rows, next);
          add_rows(kd, plane, p, rows);
          finish(d, until);
        }
      }
      finish(d, results);
    }
  }

 private:
  using S = Sum<T>;
  static constexpr bool kWidens = sizeof(T) != sizeof(S);

  WeightStrides found_strides() const {
    WeightStrides found = weight_strides_;
    found.space[kWidth] = advance_;
    return found;
  }

  // A row of the source reaches the results from here on, a dilation apart.
  INVOLUTION_INLINE int64_t lowest(int64_t row) const {
    return row - problem_.padding[kHeight] - item_.first[kHeight];
  }

  INVOLUTION_INLINE S* row_of(int64_t g, int64_t h) const {
    return sums_ + g * plan_.group_pitch + h % plan_.rows_summed * item_.count[kWidth] * pitch_;
  }

  // The plane of the source that kernel index kd and the plane d of results meet, or -1.
  INVOLUTION_INLINE int64_t plane_of(int64_t d, int64_t kd) const {
    const Run& run = depth_.run[kd];
    const int64_t plane = run.position + item_.tile[kDepth] * depth_.shift + d / depth_.phases;
    return run.phase == d % depth_.phases && plane >= 0 && plane < depth_.source ? plane : -1;
  }

  // What is fetched while rows are added: the lines that rows of results go to, below `until` of plane d, and
  // the `next` rows of the source, from p on.
  void fetch_rows(int64_t d, int64_t until, int64_t plane, int64_t p, int64_t next) {
    const T* source = source_ + plane * from_.space[kDepth] + positions_.first * from_.space[kWidth];
    const int64_t channels = channels_of(plan_, item_);
    fetches_.row.clear();
    for (int64_t h = finished_; h < until; ++h)
      expect(result_ + d * strides_.space[kDepth] + h * strides_.space[kHeight], strides_,
             item_.count[kWidth], channels, fetches_.row);
    for (int64_t r = p; r < p + next; ++r)
      expect(source + r * from_.space[kHeight], from_, positions_.count, channels, fetches_.row);
    fetches_.row.start(links_.blocks() * item_.groups);
  }

  // Adds `rows` rows of a plane of the source, from p on, to the results that they reach.
  void add_rows(int64_t kd, int64_t plane, int64_t p, int64_t rows) {
    const T* source = source_ + plane * from_.space[kDepth] + p * from_.space[kHeight];
    const T* weights = weights_ + plane * weight_strides_.space[kDepth] + p * weight_strides_.space[kHeight] +
                       kd * weight_strides_.kernel[kDepth];
    const int64_t group_stride = problem_.channels_per_group * from_.channel;
    // Kernel values in place are met by all groups block by block: they may lie together.
    const int64_t groups = kWidens ? 1 : item_.groups;
    const int64_t targets = link_rows(p, rows);
    for (int64_t g = 0; g < item_.groups; g += groups) {
      for (int64_t i = 0; i < groups; ++i) {
        S* to = pixels_ + i * plan_.rows_sharing * pixel_row_;
        for (int64_t r = 0; r < rows; ++r)
          stage_pixel_rows(plan_, item_, source + (g + i) * group_stride + r * from_.space[kHeight], 1,
                           to + r * pixel_row_);
      }
      // Rows fetch the kernel values of those that follow.
      LinkedRow<S> row{links_.rows,
                       links_.chains,
                       links_.phases[0],
                       targets_,
                       targets,
                       nullptr,
                       weight_strides_.group,
                       advance_,
                       pixels_,
                       plan_.rows_sharing * pixel_row_,
                       groups,
                       kWidens ? Expected::kNone : Expected::kPositions,
                       rows * weight_strides_.space[kHeight],
                       true};
      if constexpr (kWidens) {
        const T* values =
            weights + g * weight_strides_.group + positions_.first * weight_strides_.space[kWidth];
        for (int64_t r = 0; r < rows; ++r)
          widen_points(values + r * weight_strides_.space[kHeight], weight_strides_.space[kWidth],
                       rows * weight_strides_.space[kHeight], positions_.count,
                       height_.kernel * plan_.axis[kWidth].kernel, widened_ + r * value_row_,
                       plan_.sums_pitch);
        row.weights = widened_ - positions_.first * advance_;
      } else {
        row.weights = weights + g * weight_strides_.group;
      }
      sum_row<kVectors>(row, RowResults<S>{row_of(g, 0), plan_.group_pitch, pitch_, pitch_}, fetches_);
    }
  }

  // Lists the rows of results that these rows of the source reach: each comes and goes once for all of them.
  int64_t link_rows(int64_t p, int64_t rows) {
    const int64_t dilation = problem_.dilation[kHeight];
    const int64_t kernel_row = kWidens ? plan_.axis[kWidth].kernel : weight_strides_.kernel[kHeight];
    const int64_t last = smaller(item_.count[kHeight] - 1, lowest(p + rows - 1) + reach_);
    int64_t targets = 0, links = 0;
    for (int64_t h = larger(0, lowest(p)); h <= last; ++h) {
      const int64_t begin = links;
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t along = h - lowest(p + r);
        if (along < 0 || along > reach_ || along % dilation != 0) continue;
        links_.rows[links++] = {r * value_row_ + along / dilation * kernel_row, r * pixel_row_};
      }
      if (links > begin) targets_[targets++] = {row_of(0, h) - sums_, begin, links};
    }
    return targets;
  }

  // Writes the rows of results below `until` that are there no more than as sums.
  void finish(int64_t d, int64_t until) {
    for (; finished_ < until; ++finished_) {
      T* to = result_ + d * strides_.space[kDepth] + finished_ * strides_.space[kHeight];
      for (int64_t g = 0; g < item_.groups; ++g, to += problem_.channels_per_group * strides_.channel) {
        copy_out(row_of(g, finished_), pitch_, to, strides_.space[kWidth], strides_.channel,
                 item_.count[kWidth], item_.channels);
        zero_pixels(row_of(g, finished_), item_.count[kWidth], pitch_);
      }
    }
  }

  const Plan& plan_;
  const Item& item_;
  const Problem& problem_;
  const AxisPlan& depth_;
  const AxisPlan& height_;
  const ActivationStrides& from_;
  const ActivationStrides& strides_;
  const WeightStrides& weight_strides_;
  const int64_t pitch_;
  const Window positions_;  // of the source that the item meets
  const int64_t reach_;     // from the first row of results that a row of the source reaches to the last
  const int64_t advance_;   // kernel values from position to position, and from row to row
  const int64_t value_row_;
  const int64_t pixel_row_;
  const WeightStrides found_;
  RowLinks links_;
  Target* const targets_;
  S* const sums_;
  S* const widened_;
  S* const pixels_;
  const T* const source_;
  const T* const weights_;
  T* const result_;
  int64_t finished_ = 0;
  Fetches fetches_;
};

}  // namespace involution::cpu::INVOLUTION_CPU_NAMESPACE
