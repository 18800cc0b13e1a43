// Involution and its transpose with vectors along the channels, for groups that fill these:
//
//   result[j, c] = sum over taps of weight[tap, j] * source[tap + j, c]
//
// Sums of neighbouring results of a row lie in registers. A pixel of the source is loaded once for all taps
// of a run that read it, and each weight is broadcast from where it lies, whatever its strides. No vector
// crosses the end of a row, however narrow the map.
#pragma once

#include "source_rows.h"
#include "stage_channels.h"

namespace involution::cpu::INVOLUTION_CPU_NAMESPACE {

// How many results have their sums in registers, beside a pixel of the source and a weight.
template <int kVectors>
constexpr int kMostResults = (kRegisters - 1) / kVectors - 1 < 16 ? (kRegisters - 1) / kVectors - 1 : 16;

// Sizes of blocks of results that there is code for: few for double precision and for short vectors.
constexpr int kBlocks[] = {16, 14, 8, 7, 6, 5, 4, 1};
template <typename S, int kVectors>
constexpr bool has_block(int size) {
  constexpr int kMost = kMostResults<kVectors>;
  if (sizeof(S) == 8 || kVectorBytes == 16) return size == 4 || size == 1;
  return size <= kMost && (kMost < 8 || (size != 6 && size != 5));
}

// The size for rows of `length` results: that with the fewest of them, where a block itself costs as much as
// one and a half results.
template <typename S, int kVectors>
int64_t best_block(int64_t length) {
  int64_t best = 1, least = INT64_MAX;
  for (const int block : kBlocks) {
    if (!has_block<S, kVectors>(block) || block > length) continue;
    const int64_t cost = (length + block - 1) / block * (2 * block + 3);
    if (cost < least) {
      best = block;
      least = cost;
    }
  }
  return best;
}

// A row of results of one phase, of some groups, and what it is made of. Result j is at results +
// j*result_step.
template <typename T>
struct ResultRow {
  const RowTap* rows;
  int64_t row_count;
  const TapRun* runs;
  int64_t run_count;
  int64_t length;
  const T* weights;
  int64_t weight_group;  // to the next group's
  int64_t weight_step;   // from result to result
  const Sum<T>* source;
  int64_t source_group;
  int64_t pixel_step;  // from the pixels of a result to the next one's
  Sum<T>* results;
  int64_t result_group;
  int64_t result_step;
  int64_t groups;
  int64_t channels;
  bool prefetches;  // weights that lie `ahead`, or, if that is 0, some blocks ahead in the row
  int64_t ahead;
};

constexpr int64_t kBlocksAhead = 2;

// The sums over a run of taps for blocks of results that begin at begin, begin + kResults, ... below `end`;
// they add to what is there, if `adds`. All groups of a block follow each other: their weights may lie
// together. Where not kAll, the transpose has no weights for some of the pixels.
template <int kTaps, bool kAll, int kResults, int kVectors, typename T>
void sum_blocks(const ResultRow<T>& row, const TapRun& run, bool adds, int64_t begin, int64_t end,
                Prefetch& prefetch) {
  using S = Sum<T>;
  constexpr int L = kLanes<T>;
  const int64_t step = row.weight_step, tap_step = run.tap_step, pixel_step = row.pixel_step;
  const int64_t result_step = row.result_step, channels = row.channels;
  const int64_t ahead = row.ahead != 0 ? row.ahead : kBlocksAhead * kResults * step;
  const bool by_tap = row.prefetches && step == 1, by_result = row.prefetches && step != 1;
  const RowTap* const rows = row.rows;
  for (; begin < end; begin += kResults) {
    // The row's last block begins earlier where they do not come out even.
    const int64_t j = min(begin, row.length - kResults);
    const int64_t first = run.first - j, last = run.last - j;
    const T* weights = row.weights + run.weight + j * step;
    const S* source = row.source + run.source + j * pixel_step;
    S* results = row.results + j * result_step;
    for (int64_t g = 0; g < row.groups; ++g) {
      prefetch.step();
      Vector<S> sums[kResults][kVectors] = {};
      if (adds) {
#pragma GCC unroll 16
        for (int p = 0; p < kResults; ++p) {
#pragma GCC unroll 2
          for (int v = 0; v < kVectors; ++v) {
            const int64_t lanes = channels - v * L;  // of a last block's second vector there may be none
            if (lanes > 0) sums[p][v] = load_some(results + p * result_step + v * L, lanes);
          }
        }
      }
      for (int64_t l = 0; l < row.row_count; ++l) {
        const T* values = weights + rows[l].weight;
        const S* pixels = source + rows[l].source;
        if (by_tap) {  // the results of a tap share lines
#pragma GCC unroll 8
          for (int i = 0; i < kTaps; ++i) prefetch_line(values + ahead + i * (1 + tap_step));
        } else if (by_result) {  // or the taps of a result
#pragma GCC unroll 16
          for (int p = 0; p < kResults; ++p) prefetch_line(values + ahead + p * step);
        }
#pragma GCC unroll 32
        for (int s = 0; s < kResults + kTaps - 1; ++s) {
          if (kAll || (s >= first && s < last)) {
            Vector<S> pixel[kVectors];
#pragma GCC unroll 2
            for (int v = 0; v < kVectors; ++v) pixel[v] = load(pixels + v * L);
#pragma GCC unroll 8
            for (int i = 0; i < kTaps; ++i) {
              if (s - i < 0 || s - i >= kResults) continue;
              const Vector<S> value = broadcast(values + i * tap_step);
#pragma GCC unroll 2
              for (int v = 0; v < kVectors; ++v) sums[s - i][v] += pixel[v] * value;
            }
          }
          pixels += pixel_step;
          values += step;
        }
      }
#pragma GCC unroll 16
      for (int p = 0; p < kResults; ++p) {
        if (adds && j + p < begin) continue;  // is there already
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) {
          const int64_t lanes = channels - v * L;
          if (lanes > 0) store_some(results + p * result_step + v * L, sums[p][v], lanes);
        }
      }
      weights += row.weight_group;
      source += row.source_group;
      results += row.result_group;
    }
  }
}

// All results of the row, for one run of taps.
template <int kResults, int kVectors, typename T>
void sum_run(const ResultRow<T>& row, const TapRun& run, bool adds, Prefetch& prefetch) {
  const auto sum_taps = [&](auto taps, const TapRun& part, bool adds_to) {
    constexpr int kTaps = decltype(taps)::value;
    // Blocks of the middle have weights for all taps.
    const int64_t blocks = (row.length + kResults - 1) / kResults;
    const auto all = [&](int64_t b) {
      const int64_t j = min(b * kResults, row.length - kResults);
      return j >= part.first && j + kResults + kTaps - 1 <= part.last;
    };
    int64_t from = 0, until = blocks;
    while (from < blocks && !all(from)) ++from;
    while (until > from && !all(until - 1)) --until;
    from *= kResults;
    until *= kResults;
    sum_blocks<kTaps, false, kResults, kVectors>(row, part, adds_to, 0, from, prefetch);
    sum_blocks<kTaps, true, kResults, kVectors>(row, part, adds_to, from, until, prefetch);
    sum_blocks<kTaps, false, kResults, kVectors>(row, part, adds_to, until, blocks * kResults, prefetch);
  };
  if (run.count == 7) return sum_taps(Count<7>{}, run, adds);
  if (sizeof(Sum<T>) == 4 && run.count == 4) return sum_taps(Count<4>{}, run, adds);
  if (run.count == 3) return sum_taps(Count<3>{}, run, adds);
  for (int64_t i = 0; i < run.count; ++i) {  // other lengths are worth no code of their own
    const TapRun tap{run.weight + i * (row.weight_step + run.tap_step),
                     0,
                     run.source + i * row.pixel_step,
                     1,
                     run.first - i,
                     run.last - i};
    sum_taps(Count<1>{}, tap, adds || i > 0);
  }
}

// All results of the row, `block` of them at a time.
template <int kVectors, int kIndex = 0, typename T>
void sum_row(const ResultRow<T>& row, int64_t block, Prefetch& prefetch) {
  constexpr int kResults = kBlocks[kIndex];
  if constexpr (has_block<Sum<T>, kVectors>(kResults)) {
    if (block == kResults) {
      if (row.run_count == 0)  // meets no tap, and is zero
        sum_run<kResults, kVectors>(row, TapRun{0, 0, 0, 1, 0, 0}, false, prefetch);
      for (int64_t r = 0; r < row.run_count; ++r)
        sum_run<kResults, kVectors>(row, row.runs[r], r > 0, prefetch);
      return;
    }
  }
  if constexpr (kResults > 1) sum_row<kVectors, kIndex + 1>(row, block, prefetch);
}

template <int kVectors, typename T>
class InvolutionChannels {
 public:
  // `next` is the item that this thread takes afterwards, or null.
  InvolutionChannels(const Plan& plan, const WorkItem& item, const WorkItem* next, const T* source,
                     const T* weights, T* result, unsigned char* scratch)
      : plan_(plan),
        item_(item),
        next_(next),
        width_(plan.axis[kWidth]),
        strides_(plan.result_strides()),
        weight_strides_(plan.problem.w),
        transposed_(plan.operation == Operation::kTranspose),
        in_place_(!kWidens && strides_.channel == 1),
        staged_(reinterpret_cast<S*>(scratch)),
        results_(reinterpret_cast<S*>(scratch + plan.result_offset)),
        rows_(plan, item, source, scratch + plan.list_offset),
        runs_(reinterpret_cast<TapRun*>(rows_.rest())),
        weights_(weights),
        result_(result) {
    stage(nullptr, rows_.zero_row());
    for (int64_t c = 0; c < width_.chain_count; ++c) runs_[c] = run_of(width_.chain[c]);
    prefetch_source(plan, next, source, prefetch_.item);
    if (next != nullptr && plan.few_weights)
      prefetch_.item.add(group_weights(plan, *next, weights), 1, 0, plan.taps * plan.tap_stride);
    prefetch_.item.start(steps() * item.count[kDepth] * item.count[kHeight]);
  }

  void run() {
    const int64_t length = item_.count[kWidth], phases = width_.phases, pitch = plan_.pixel_pitch;
    ResultRow<T> row = describe_rows();
    const int64_t position = row.result_step / phases;
    // Rows that follow each other in memory leave scratch together, for the sake of narrow ones.
    const bool dense = item_.groups == 1 && strides_.space[kHeight] == length * strides_.space[kWidth];
    const int64_t most = dense ? max(1, plan_.row_pitch / length) : 1;
    for (int64_t d = 0; d < item_.count[kDepth]; ++d) {
      int64_t waiting = 0;  // rows that have not left
      for (int64_t h = 0; h < item_.count[kHeight]; ++h) {
        rows_.collect(d, h, [&](const T* from, int64_t to) { stage(from, to); });
        prefetch_row(d, h);
        row.row_count = rows_.count;
        row.ahead = weights_ahead(d, h);
        row.results = results_ + waiting * length * pitch;
        if constexpr (!kWidens) row.results = in_place_ ? result_at(item_, d, h) : row.results;
        row.runs = runs_;
        for (int64_t p = 0; p < min(phases, length); ++p, row.results += position) {
          row.length = (length - p + phases - 1) / phases;
          row.run_count = 0;
          while (row.runs + row.run_count < runs_ + width_.chain_count &&
                 width_.chain[row.runs - runs_ + row.run_count].first.phase == p)
            ++row.run_count;
          sum_row<kVectors>(row, best_block<S, kVectors>(row.length), prefetch_);
          row.runs += row.run_count;
        }
        if (in_place_ || (++waiting < most && h + 1 < item_.count[kHeight])) continue;
        for (int64_t g = 0; g < item_.groups; ++g)
          copy_out(results_ + g * row.result_group, pitch,
                   result_at(item_, d, h + 1 - waiting) + g * group_stride(strides_), strides_.space[kWidth],
                   strides_.channel, waiting * length, item_.channels);
        waiting = 0;
      }
    }
  }

 private:
  using S = Sum<T>;
  static constexpr bool kWidens = sizeof(T) != sizeof(S);

  // What the rows of the item have in common.
  ResultRow<T> describe_rows() const {
    ResultRow<T> row{};
    row.rows = rows_.rows;
    row.weights = group_weights(plan_, item_, weights_);
    row.weight_group = weight_strides_.group;
    row.weight_step = weight_strides_.space[kWidth];
    row.source = staged_;
    row.source_group = plan_.group_pitch;
    row.pixel_step = width_.advance * plan_.pixel_pitch;
    row.groups = item_.groups;
    row.prefetches = !plan_.few_weights;
    if (in_place_) {
      row.channels = item_.channels;
      row.result_group = group_stride(strides_);
      row.result_step = width_.phases * strides_.space[kWidth];
    } else {
      row.channels = plan_.pixel_pitch;
      row.result_group = item_.count[kWidth] * plan_.pixel_pitch;
      row.result_step = width_.phases * plan_.pixel_pitch;
    }
    return row;
  }

  // Steps that a row takes at prefetching, about.
  INVOLUTION_INLINE int64_t steps() const {
    const int64_t block = best_block<S, kVectors>((item_.count[kWidth] + width_.phases - 1) / width_.phases);
    return item_.groups * max(1, width_.chain_count * item_.count[kWidth] / (width_.phases * block));
  }

  INVOLUTION_INLINE int64_t group_stride(const ActivationStrides& strides) const {
    return plan_.problem.channels_per_group * strides.channel;
  }

  INVOLUTION_INLINE T* result_at(const WorkItem& item, int64_t d, int64_t h) const {
    return first_channel(plan_, item, strides_, result_) + tile_offset(item, strides_.space) +
           d * strides_.space[kDepth] + h * strides_.space[kHeight];
  }

  // A row of the source of all groups, or zeros.
  void stage(const T* from, int64_t to) {
    for (int64_t g = 0; g < item_.groups; ++g)
      stage_row_by_channels(plan_, item_,
                            from == nullptr ? from : from + g * group_stride(plan_.source_strides()),
                            staged_ + g * plan_.group_pitch + to);
  }

  TapRun run_of(const Chain& chain) const {
    const int64_t step = chain.kernel_step * weight_strides_.kernel[kWidth];
    const int64_t weight = chain.kernel * weight_strides_.kernel[kWidth];
    const int64_t source = chain.first.slot * plan_.pixel_pitch, stride = weight_strides_.space[kWidth];
    if (!transposed_)
      return {weight + item_.first[kWidth] * stride, step - stride, source, chain.count, 0, INT64_MAX};
    const int64_t position = chain.first.position + item_.tile[kWidth] * width_.shift;
    return {weight + position * stride, step, source, chain.count, -position, width_.source - position};
  }

  // What comes after row (d, h): the rows of the source that are new, and the lines that results go to.
  void prefetch_row(int64_t d, int64_t h) {
    prefetch_.row.clear();
    if (h + 1 < item_.count[kHeight]) {
      rows_.prefetch(d, h + 1, prefetch_.row);
      prefetch_.row.add(result_at(item_, d, h + 1), strides_, item_.count[kWidth], channels_of(plan_, item_));
    } else if (next_ != nullptr) {
      prefetch_.row.add(result_at(*next_, 0, 0), strides_, next_->count[kWidth], channels_of(plan_, *next_));
    }
    prefetch_.row.start(steps());
  }

  // From the weights of a row to those that are prefetched meanwhile: of the next row of its phase, or of the
  // next item's first. Where the taps of a position lie together, so do those of a row, which reads its own
  // ahead; but the transpose reads rows that others read before, and its next row reads one that is new.
  int64_t weights_ahead(int64_t d, int64_t h) const {
    const int64_t row = weight_strides_.space[kHeight], phases = plan_.axis[kHeight].phases;
    if (weight_strides_.space[kWidth] != 1) return transposed_ && plan_.axis[kHeight].source > 1 ? row : 0;
    if (h + phases < item_.count[kHeight] || next_ == nullptr) return row;
    return group_weights(plan_, *next_, weights_) - group_weights(plan_, item_, weights_) - h / phases * row -
           d / plan_.axis[kDepth].phases * weight_strides_.space[kDepth];
  }

  const Plan& plan_;
  const WorkItem& item_;
  const WorkItem* const next_;
  const AxisPlan& width_;
  const ActivationStrides& strides_;
  const WeightStrides& weight_strides_;
  const bool transposed_;
  const bool in_place_;  // results are summed where they belong
  S* const staged_;
  S* const results_;
  SourceRows<T> rows_;
  TapRun* const runs_;
  const T* const weights_;
  T* const result_;
  Prefetch prefetch_;
};

}  // namespace involution::cpu::INVOLUTION_CPU_NAMESPACE
