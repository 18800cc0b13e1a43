// Involution and its transpose with vectors along the width, for groups of few channels:
//
//   result[c, j] = sum over taps of weight[tap, j] * source[c, tap + j]
//
// The weights of a row of results are copied to scratch, zero where the transpose has none, so that the loop
// over taps knows no borders. Sums of some channels by some vectors lie in registers: each vector of weights
// is loaded once for all of these channels.
#pragma once

#include "source_rows.h"
#include "stage_width.h"

namespace involution::cpu::INVOLUTION_CPU_NAMESPACE {

// Results j, ..., in kVectors vectors, of kChannels channels. Tap t has the weights at weights + t*pitch and
// the source at source + offsets[t].
template <int kChannels, int kVectors, typename S>
INVOLUTION_INLINE void sum_taps(const S* weights, const int64_t* offsets, int64_t taps, const S* source,
                                int64_t source_pitch, S* results, int64_t pitch) {
  constexpr int L = kLanes<S>;
  Vector<S> sums[kChannels][kVectors] = {};
  for (int64_t t = 0; t < taps; ++t, weights += pitch) {
    Vector<S> weight[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) weight[v] = load(weights + v * L);
#pragma GCC unroll 8
    for (int c = 0; c < kChannels; ++c) {
      const S* from = source + offsets[t] + c * source_pitch;
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sums[c][v] += weight[v] * load(from + v * L);
    }
  }
#pragma GCC unroll 8
  for (int c = 0; c < kChannels; ++c) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) store(results + c * pitch + v * L, sums[c][v]);
  }
}

template <typename T>
class InvolutionWidth {
 public:
  // `next` is the item that this thread takes afterwards, or null.
  InvolutionWidth(const Plan& plan, const WorkItem& item, const WorkItem* next, const T* source,
                  const T* weights, T* result, unsigned char* scratch)
      : plan_(plan),
        item_(item),
        width_(plan.axis[kWidth]),
        weight_strides_(plan.problem.w),
        strides_(plan.result_strides()),
        transposed_(plan.operation == Operation::kTranspose),
        staged_(reinterpret_cast<S*>(scratch)),
        staged_weights_(reinterpret_cast<S*>(scratch + plan.weight_offset)),
        results_(reinterpret_cast<S*>(scratch + plan.result_offset)),
        rows_(plan, item, source, scratch + plan.list_offset),
        offsets_(reinterpret_cast<int64_t*>(rows_.rest())),
        weights_(group_weights(plan, item, weights)),
        result_(first_channel(plan, item, strides_, result) + tile_offset(item, strides_.space)) {
    stage_row_by_width<T>(plan, item, nullptr, staged_ + rows_.zero_row());
    prefetch_source(plan, next, source, prefetch_.item);
    prefetch_.item.start(item.count[kDepth] * item.count[kHeight]);
  }

  void run() {
    const int64_t phases = min(width_.phases, item_.count[kWidth]);
    for (int64_t d = 0; d < item_.count[kDepth]; ++d) {
      for (int64_t h = 0; h < item_.count[kHeight]; ++h) {
        prefetch_.step();
        rows_.collect(
            d, h, [&](const T* from, int64_t to) { stage_row_by_width(plan_, item_, from, staged_ + to); });
        T* to = result_ + d * strides_.space[kDepth] + h * strides_.space[kHeight];
        for (int64_t p = 0; p < phases; ++p) {
          const int64_t length = (item_.count[kWidth] - p + width_.phases - 1) / width_.phases;
          const int64_t taps = stage_weights(p, length);
          // Groups of more channels than this have vectors along these.
          constexpr int kMost = 3 * kLanes<S> / 4;
          int64_t channel = 0;
          if constexpr (kMost >= 8) channel = sum_channels<8>(channel, taps, length);
          channel = sum_channels<4>(channel, taps, length);
          sum_channels<1>(channel, taps, length);
          copy_out(results_, plan_.row_pitch, to + p * strides_.space[kWidth], strides_.channel,
                   strides_.space[kWidth] * width_.phases, item_.channels, length);
        }
      }
    }
  }

 private:
  using S = Sum<T>;

  // The channels from `channel` on, kChannels at a time while there are so many; returns the next one.
  template <int kChannels>
  int64_t sum_channels(int64_t channel, int64_t taps, int64_t length) {
    constexpr int L = kLanes<S>, kVectors = kRegisters / 2 / kChannels < 4 ? kRegisters / 2 / kChannels : 4;
    const int64_t pitch = plan_.row_pitch;
    for (; channel + kChannels <= item_.channels; channel += kChannels) {
      const S* source = staged_ + channel * plan_.channel_pitch;
      S* results = results_ + channel * pitch;
      int64_t j = 0;
      for (; j + (kVectors - 1) * L < length; j += kVectors * L)
        sum_taps<kChannels, kVectors>(staged_weights_ + j, offsets_, taps, source + j, plan_.channel_pitch,
                                      results + j, pitch);
      for (; j < length; j += L)
        sum_taps<kChannels, 1>(staged_weights_ + j, offsets_, taps, source + j, plan_.channel_pitch,
                               results + j, pitch);
    }
    return channel;
  }

  // Lists the taps of a row's results of phase p, and copies their weights; returns how many taps there are.
  int64_t stage_weights(int64_t p, int64_t length) {
    const int64_t pitch = plan_.row_pitch, stride = weight_strides_.space[kWidth];
    const int64_t step = weight_strides_.kernel[kWidth];
    int64_t taps = 0;
    for (int64_t l = 0; l < rows_.count; ++l) {
      const T* row = weights_ + rows_.rows[l].weight;
      if (!transposed_)  // the taps of a row at once: they may lie side by side
        copy_in(row + item_.first[kWidth] * stride, step, stride, staged_weights_ + taps * pitch, pitch,
                width_.kernel, length);
      for (int64_t k = 0; k < width_.kernel; ++k) {
        const AxisTap& tap = width_.tap[k];
        if (tap.phase != p) continue;
        if (transposed_) {
          S* to = staged_weights_ + taps * pitch;
          const int64_t position = tap.position + item_.tile[kWidth] * width_.shift;
          const int64_t first = max(0, -position), last = min(length, width_.source - position);
          zero(to, pitch, pitch);
          if (first < last)
            copy_in(row + k * step + (position + first) * stride, 0, stride, to + first, pitch, 1,
                    last - first);
        }
        offsets_[taps++] = rows_.rows[l].source + tap.slot;
      }
    }
    return taps;
  }

  const Plan& plan_;
  const WorkItem& item_;
  const AxisPlan& width_;
  const WeightStrides& weight_strides_;
  const ActivationStrides& strides_;
  const bool transposed_;
  S* const staged_;
  S* const staged_weights_;
  S* const results_;
  SourceRows<T> rows_;
  int64_t* const offsets_;
  const T* const weights_;
  T* const result_;
  Prefetch prefetch_;
};

}  // namespace involution::cpu::INVOLUTION_CPU_NAMESPACE
