// Local correlation with vectors along a row of the kernel:
//
//   weight[j, kh, kw] = sum over channels of query[j, c] * key[c, row(j) + kh, column(j) + kw]
//
// A vector is one row of a position's window, and the query is broadcast from where it lies. Neither narrow
// maps nor strides leave a vector half empty, and no sum ever leaves its lane.
#pragma once

#include "source_rows.h"
#include "stage_width.h"

namespace involution::cpu::INVOLUTION_CPU_NAMESPACE {

// Elements of a vector: the widest kernel.
constexpr int kKernelRow = 8;
template <typename S>
constexpr bool kHasKernelRow = kEdge<S> == kKernelRow;

template <typename T>
class CorrelationKernelRow {
 public:
  // `next` is the item that this thread takes afterwards, or null.
  CorrelationKernelRow(const Plan& plan, const WorkItem& item, const WorkItem* next, const T* query,
                       const T* key, T* weights, unsigned char* scratch)
      : plan_(plan),
        item_(item),
        next_(next),
        strides_(plan.problem.y),
        weight_strides_(plan.problem.w),
        staged_(reinterpret_cast<S*>(scratch)),
        sums_(reinterpret_cast<S*>(scratch + plan.weight_offset)),
        rows_(plan, item, key, scratch + plan.list_offset),
        query_(query),
        weights_(weights) {
    stage(nullptr, rows_.zero_row());
    prefetch_source(plan, next, key, prefetch_.item);
    if (next != nullptr && plan.few_weights)
      prefetch_.item.add(group_weights(plan, *next, weights), 1, 0, plan.taps * plan.tap_stride);
    prefetch_.item.start(steps() * item.count[kDepth] * item.count[kHeight]);
  }

  void run() {
    for (int64_t d = 0; d < item_.count[kDepth]; ++d) {
      for (int64_t h = 0; h < item_.count[kHeight]; ++h) {
        rows_.collect(d, h, [&](const T* from, int64_t to) { stage(from, to); });
        prefetch_row(d, h);
        if (plan_.tap_stride == 1) {
          correlate_row_in_place(query_at(item_, d, h), weights_at(item_, d, h));
        } else {
          correlate_row(d, h);
        }
      }
    }
  }

 private:
  using S = Sum<T>;
  using V = EdgeVector<S>;
  static constexpr int64_t kPositionsTogether = 16;

  // Steps that a row takes at prefetching.
  INVOLUTION_INLINE int64_t steps() const { return item_.count[kWidth] * item_.groups; }

  INVOLUTION_INLINE const T* query_at(const WorkItem& item, int64_t d, int64_t h) const {
    return first_channel(plan_, item, strides_, query_) + tile_offset(item, strides_.space) +
           d * strides_.space[kDepth] + h * strides_.space[kHeight];
  }
  INVOLUTION_INLINE T* weights_at(const WorkItem& item, int64_t d, int64_t h) const {
    return group_weights(plan_, item, weights_) + tile_offset(item, weight_strides_.space) +
           d * weight_strides_.space[kDepth] + h * weight_strides_.space[kHeight];
  }

  // A row of the key of all groups, or zeros.
  void stage(const T* from, int64_t to) {
    const int64_t group_stride = plan_.problem.channels_per_group * plan_.source_strides().channel;
    for (int64_t g = 0; g < item_.groups; ++g)
      stage_row_by_width(plan_, item_, from == nullptr ? from : from + g * group_stride,
                         staged_ + g * plan_.group_pitch + to);
  }

  // What comes after row (d, h): the query, the rows of the key that are new, and the lines that results go
  // to.
  void prefetch_row(int64_t d, int64_t h) {
    const bool more = h + 1 < item_.count[kHeight];
    prefetch_.row.clear();
    if (more) rows_.prefetch(d, h + 1, prefetch_.row);
    if (const WorkItem* item = more ? &item_ : next_; item != nullptr) {
      const int64_t row = more ? h + 1 : 0, length = item->count[kWidth];
      prefetch_.row.add(query_at(*item, more ? d : 0, row), strides_, length, channels_of(plan_, *item));
      const T* to = weights_at(*item, more ? d : 0, row);
      if (plan_.tap_stride == 1) {
        prefetch_.row.add(to, length, weight_strides_.space[kWidth],
                          (item->groups - 1) * weight_strides_.group + plan_.taps);
      } else if (weight_strides_.space[kWidth] == 1 && !plan_.few_weights) {
        prefetch_.row.add(to, plan_.taps, plan_.tap_stride, length);
      }
    }
    prefetch_.row.start(steps());
  }

  // A row of all groups to scratch, which it leaves together with those that follow each other in memory, for
  // the sake of narrow ones.
  void correlate_row(int64_t d, int64_t h) {
    const int64_t length = item_.count[kWidth], stride = weight_strides_.space[kWidth];
    const bool dense = item_.groups == 1 && weight_strides_.space[kHeight] == length * stride;
    const bool more = dense && h + 1 < item_.count[kHeight] && (waiting_ + 2) * length <= plan_.row_pitch;
    for (int64_t g = 0; g < item_.groups; ++g) {
      correlate_positions(query_at(item_, d, h), g, 0, length, sums_ + waiting_ * length * plan_.taps,
                          plan_.taps);
      if (!more)
        copy_out(sums_, plan_.taps, weights_at(item_, d, h - waiting_) + g * weight_strides_.group, stride,
                 plan_.tap_stride, (waiting_ + 1) * length, plan_.taps);
    }
    waiting_ = more ? waiting_ + 1 : 0;
  }

  // A row of all groups whose taps lie side by side. The groups of some positions follow each other: they may
  // share lines.
  void correlate_row_in_place(const T* query, T* weights) {
    const int64_t length = item_.count[kWidth], stride = weight_strides_.space[kWidth];
    for (int64_t begin = 0; begin < length; begin += kPositionsTogether) {
      const int64_t count = min(kPositionsTogether, length - begin);
      for (int64_t g = 0; g < item_.groups; ++g) {
        T* to = weights + g * weight_strides_.group + begin * stride;
        if constexpr (sizeof(T) == sizeof(S)) {
          correlate_positions(query, g, begin, count, to, stride);
        } else {
          correlate_positions(query, g, begin, count, sums_, plan_.taps);
          copy_out(sums_, plan_.taps, to, stride, 1, count, plan_.taps);
        }
      }
    }
  }

  // `count` positions of group g, from `begin` on, to taps that lie side by side, `pitch` from one position
  // to the next.
  void correlate_positions(const T* query, int64_t g, int64_t begin, int64_t count, S* to, int64_t pitch) {
    query += g * plan_.problem.channels_per_group * strides_.channel + begin * strides_.space[kWidth];
    const S* key = staged_ + g * plan_.group_pitch + begin * plan_.axis[kWidth].advance;
    for (int64_t j = 0; j < count; ++j) {
      prefetch_.step();
      int64_t row = 0;
      const auto some = [&](auto rows) {
        constexpr int kRows = decltype(rows)::value;
        for (; row + kRows <= rows_.count; row += kRows) correlate_kernel_rows<kRows>(query, key, row, to);
      };
      if constexpr (kRegisters >= 32) some(Count<14>{});
      some(Count<7>{});
      some(Count<5>{});
      some(Count<3>{});
      some(Count<1>{});
      query += strides_.space[kWidth];
      key += plan_.axis[kWidth].advance;
      to += pitch;
    }
  }

  // kRows rows of the kernel, from `row` on, of one position. Each vector runs over into the next row's
  // place, but for the position's last.
  template <int kRows>
  INVOLUTION_INLINE void correlate_kernel_rows(const T* query, const S* key, int64_t row, S* to) const {
    const S* keys[kRows];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) keys[r] = key + rows_.rows[row + r].source;
    V sums[kRows] = {};
    for (int64_t c = 0; c < item_.channels; ++c) {
      const V value = broadcast_edge(query + c * strides_.channel);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) sums[r] += load_as<V>(keys[r] + c * plan_.channel_pitch) * value;
    }
    const int64_t width = plan_.axis[kWidth].kernel;
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r)
      store_as(to + (row + r) * width, sums[r], row + r + 1 == rows_.count ? width : kKernelRow);
  }

  const Plan& plan_;
  const WorkItem& item_;
  const WorkItem* const next_;
  const ActivationStrides& strides_;
  const WeightStrides& weight_strides_;
  S* const staged_;
  S* const sums_;
  SourceRows<T> rows_;
  const T* const query_;
  T* const weights_;
  int64_t waiting_ = 0;  // rows that have not left scratch
  Prefetch prefetch_;
};

}  // namespace involution::cpu::INVOLUTION_CPU_NAMESPACE
