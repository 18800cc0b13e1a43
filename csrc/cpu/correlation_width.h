// Local correlation with vectors along the width:
//
//   weight[tap, j] = sum over channels of query[c, j] * key[c, tap + j]
//
// The sums of some taps lie in registers while the channels run, and a vector of the query serves all of
// them.
#pragma once

#include "source_rows.h"
#include "stage_width.h"

namespace involution::cpu::INVOLUTION_CPU_NAMESPACE {

// Taps at a time: eight multiply-adds under way hide each other's latency.
constexpr int kMostTaps = 8;

// The sums of `count` taps, at most kTaps, for a row of `length` results, to rows of `pitch`. Tap t reads the
// key at key + offsets[t].
template <int kTaps, typename S, typename R>
INVOLUTION_INLINE void correlate_taps(const S* query, int64_t query_pitch, const S* key, int64_t key_pitch,
                                      const int64_t* offsets, int64_t count, int64_t channels, int64_t length,
                                      R* sums, int64_t pitch, Prefetch& prefetch) {
  if constexpr (kTaps > 1) {
    if (count < kTaps)
      return correlate_taps<kTaps - 1>(query, query_pitch, key, key_pitch, offsets, count, channels, length,
                                       sums, pitch, prefetch);
  }
  for (int64_t j = 0; j < length; j += kLanes<S>) {
    prefetch.step();
    Vector<S> sum[kTaps] = {};
    for (int64_t c = 0; c < channels; ++c) {
      const Vector<S> value = load(query + c * query_pitch + j);
#pragma GCC unroll 8
      for (int t = 0; t < kTaps; ++t) sum[t] += value * load(key + c * key_pitch + offsets[t] + j);
    }
#pragma GCC unroll 8
    for (int t = 0; t < kTaps; ++t) store_some(sums + t * pitch + j, sum[t], length - j);
  }
}

template <typename T>
class CorrelationWidth {
 public:
  // `next` is the item that this thread takes afterwards, or null.
  CorrelationWidth(const Plan& plan, const WorkItem& item, const WorkItem* next, const T* query, const T* key,
                   T* weights, unsigned char* scratch)
      : plan_(plan),
        item_(item),
        strides_(plan.problem.y),
        weight_strides_(plan.problem.w),
        staged_(reinterpret_cast<S*>(scratch)),
        sums_(reinterpret_cast<S*>(scratch + plan.weight_offset)),
        staged_query_(reinterpret_cast<S*>(scratch + plan.result_offset)),
        rows_(plan, item, key, scratch + plan.list_offset),
        offsets_(reinterpret_cast<int64_t*>(rows_.rest())),
        query_(first_channel(plan, item, strides_, query) + tile_offset(item, strides_.space)),
        weights_(group_weights(plan, item, weights) + tile_offset(item, weight_strides_.space)) {
    stage_row_by_width<T>(plan, item, nullptr, staged_ + rows_.zero_row());
    prefetch_source(plan, next, key, prefetch_.item);
    prefetch_.item.start(steps() * item.count[kDepth] * item.count[kHeight]);
  }

  void run() {
    const AxisPlan& width = plan_.axis[kWidth];
    const int64_t length = item_.count[kWidth], pitch = plan_.row_pitch;
    for (int64_t d = 0; d < item_.count[kDepth]; ++d) {
      for (int64_t h = 0; h < item_.count[kHeight]; ++h) {
        rows_.collect(
            d, h, [&](const T* from, int64_t to) { stage_row_by_width(plan_, item_, from, staged_ + to); });
        int64_t* offset = offsets_;
        for (int64_t l = 0; l < rows_.count; ++l) {
          for (int64_t k = 0; k < width.kernel; ++k) *offset++ = rows_.rows[l].source + width.tap[k].slot;
        }
        prefetch_row(d, h);
        copy_in(query_ + d * strides_.space[kDepth] + h * strides_.space[kHeight], strides_.channel,
                strides_.space[kWidth], staged_query_, pitch, item_.channels, length);
        T* to = weights_ + d * weight_strides_.space[kDepth] + h * weight_strides_.space[kHeight];
        if (plan_.tap_stride != 0 && weight_strides_.space[kWidth] == 1) {
          correlate_row(to, plan_.tap_stride);
        } else {
          correlate_row(sums_, pitch);
          write_sums(to);
        }
      }
    }
  }

 private:
  using S = Sum<T>;

  // Steps that a row takes at prefetching.
  INVOLUTION_INLINE int64_t steps() const {
    return parts() * ((item_.count[kWidth] + kLanes<S> - 1) / kLanes<S>);
  }

  // The taps are taken in parts as even as can be.
  INVOLUTION_INLINE int64_t parts() const { return (plan_.taps + kMostTaps - 1) / kMostTaps; }

  template <typename R>
  void correlate_row(R* to, int64_t pitch) {
    for (int64_t part = 0, t = 0, end; part < parts(); ++part, t = end) {
      end = (part + 1) * plan_.taps / parts();
      correlate_taps<kMostTaps>(staged_query_, plan_.row_pitch, staged_, plan_.channel_pitch, offsets_ + t,
                                end - t, item_.channels, item_.count[kWidth], to + t * pitch, pitch,
                                prefetch_);
    }
  }

  // The lines that the row's weights go to, the query of the next row, and the row of the key that is new
  // there.
  void prefetch_row(int64_t d, int64_t h) {
    const int64_t length = item_.count[kWidth];
    prefetch_.row.clear();
    if (plan_.tap_stride != 0) {
      const T* to = weights_ + d * weight_strides_.space[kDepth] + h * weight_strides_.space[kHeight];
      if (weight_strides_.space[kWidth] == 1) {
        prefetch_.row.add(to, plan_.taps, plan_.tap_stride, length);
      } else {
        prefetch_.row.add(to, length, weight_strides_.space[kWidth], plan_.taps);
      }
    }
    if (h + 1 < item_.count[kHeight]) {
      prefetch_.row.add(query_ + d * strides_.space[kDepth] + (h + 1) * strides_.space[kHeight], strides_,
                        length, item_.channels);
      rows_.prefetch(d, h + 1, prefetch_.row);
    }
    prefetch_.row.start(steps());
  }

  void write_sums(T* to) const {
    const int64_t length = item_.count[kWidth], pitch = plan_.row_pitch;
    const int64_t stride = weight_strides_.space[kWidth];
    if (plan_.tap_stride != 0)
      return copy_out(sums_, pitch, to, plan_.tap_stride, stride, plan_.taps, length);
    const auto& kernel = plan_.problem.kernel;
    const S* from = sums_;
    for (int64_t kd = 0; kd < kernel[kDepth]; ++kd) {
      for (int64_t kh = 0; kh < kernel[kHeight]; ++kh, from += kernel[kWidth] * pitch)
        copy_out(from, pitch, to + kd * weight_strides_.kernel[kDepth] + kh * weight_strides_.kernel[kHeight],
                 weight_strides_.kernel[kWidth], stride, kernel[kWidth], length);
    }
  }

  const Plan& plan_;
  const WorkItem& item_;
  const ActivationStrides& strides_;
  const WeightStrides& weight_strides_;
  S* const staged_;
  S* const sums_;
  S* const staged_query_;
  SourceRows<T> rows_;
  int64_t* const offsets_;
  const T* const query_;
  T* const weights_;
  Prefetch prefetch_;
};

}  // namespace involution::cpu::INVOLUTION_CPU_NAMESPACE
