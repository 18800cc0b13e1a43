// Sums of neighbouring results of a row in registers, with vectors along the channels:
//
//   result[j, c] = sum over taps of weight[tap, j] * source[tap + j, c]
//
// A pixel of the source is loaded once for all taps of a chain that meet it, and each kernel value is
// broadcast from where it lies, whatever its strides. No vector crosses the end of a row, however narrow the
// map, or a line of the cache.
#pragma once

#include "fetch.h"
#include "links.h"

namespace involution::cpu::INVOLUTION_CPU_NAMESPACE {

// How many results have their sums in registers, beside a pixel of the source and a kernel value.
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

// Kernel values that a chain fetches for results to come.
enum class Expected {
  kNone,
  kRuns,      // of each tap, where neighbouring results have theirs side by side
  kPositions  // of each result, where the taps do
};

// How far ahead a row fetches the kernel values of its positions, in blocks.
constexpr int64_t kBlocksAhead = 2;

// A row of results of one phase, of some groups, and what it is made of.
template <typename S>
struct LinkedRow {
  const RowLink* rows;
  const TapChain* chains;
  Phase phase;
  const Target* targets;
  int64_t target_count;
  const S* weights;
  int64_t weight_group;  // to the next group's
  int64_t advance;       // from result to result
  const S* source;
  int64_t source_group;
  int64_t groups;
  Expected expected;
  int64_t ahead;  // from kernel values to those that are fetched
  bool adds;      // to what is there already
};

// Where a row's results are: result j at `first` + j*pitch, `channels` of it, and `group` further for the
// next group.
template <typename R>
struct RowResults {
  R* first;
  int64_t group;
  int64_t pitch;
  int64_t channels;
};

// The sums over a chain for blocks of results that begin at begin, begin + kResults, ... below `end`; the
// row's last begins earlier where they do not come out even. All groups of a block follow each other: their
// kernel values may lie together.
template <int kTaps, bool kAll, int kResults, int kVectors, typename S, typename R>
void sum_blocks(const LinkedRow<S>& row, const TapChain& chain, bool adds, int64_t begin, int64_t end,
                const RowResults<R>& results, Fetches& fetches) {
  constexpr int L = kLanes<S>;
  const int64_t advance = row.advance, turn = chain.turn, ahead = row.ahead;
  const int64_t pitch = results.pitch, channels = results.channels;
  const Expected expected = row.expected;
  const RowLink* const rows = row.rows;
  for (; begin < end; begin += kResults) {
    const int64_t j = smaller(begin, row.phase.length - kResults);
    const int64_t first = chain.first - j, last = chain.last - j;
    const S* weights = row.weights + chain.weight + j * advance;
    const S* source = row.source + chain.source + j * kVectors * L;
    R* group = results.first + j * pitch;
    for (int64_t g = 0; g < row.groups; ++g) {
      fetches.step();
      for (int64_t t = 0; t < row.target_count; ++t) {
        const Target& target = row.targets[t];
        R* to = group + target.to;
        Vector<S> sums[kResults][kVectors] = {};
        if (adds) {
#pragma GCC unroll 16
          for (int p = 0; p < kResults; ++p) {
#pragma GCC unroll 2
            for (int v = 0; v < kVectors; ++v) {
              const int64_t lanes = channels - v * L;  // of a last block's second vector there may be none
              if (lanes > 0) sums[p][v] = load_some(to + p * pitch + v * L, lanes);
            }
          }
        }
        for (int64_t l = target.begin; l < target.end; ++l) {
          const S* values = weights + rows[l].weight;
          const S* pixels = source + rows[l].source;
          if (expected == Expected::kRuns) {
#pragma GCC unroll 8
            for (int i = 0; i < kTaps; ++i) expect_line(values + ahead + i * (1 + turn));
          } else if (expected == Expected::kPositions) {
#pragma GCC unroll 16
            for (int p = 0; p < kResults; ++p) expect_line(values + ahead + p * advance);
          }
#pragma GCC unroll 32
          for (int s = 0; s < kResults + kTaps - 1; ++s) {
            if (kAll || (s >= first && s < last)) {
              Vector<S> pixel[kVectors];
#pragma GCC unroll 2
              for (int v = 0; v < kVectors; ++v) pixel[v] = load(pixels + (s * kVectors + v) * L);
#pragma GCC unroll 8
              for (int i = 0; i < kTaps; ++i) {
                if (s - i < 0 || s - i >= kResults) continue;
                const S value = values[i * turn];
#pragma GCC unroll 2
                for (int v = 0; v < kVectors; ++v) sums[s - i][v] += pixel[v] * value;
              }
            }
            values += advance;
          }
        }
#pragma GCC unroll 16
        for (int p = 0; p < kResults; ++p) {
          if (adds && j + p < begin) continue;  // is there already
#pragma GCC unroll 2
          for (int v = 0; v < kVectors; ++v) {
            const int64_t lanes = channels - v * L;
            if (lanes > 0) store_some(to + p * pitch + v * L, sums[p][v], lanes);
          }
        }
      }
      weights += row.weight_group;
      source += row.source_group;
      group += results.group;
    }
  }
}

template <int kTaps, int kResults, int kVectors, typename S, typename R>
INVOLUTION_INLINE void sum_taps(const LinkedRow<S>& row, const TapChain& chain, bool adds,
                                const RowResults<R>& results, Fetches& fetches) {
  // Blocks of the middle have kernel values for all taps.
  const int64_t length = row.phase.length, blocks = (length + kResults - 1) / kResults;
  const auto all = [&](int64_t b) {
    const int64_t j = smaller(b * kResults, length - kResults);
    return j >= chain.first && j + kResults + kTaps - 1 <= chain.last;
  };
  int64_t from = 0, until = blocks;
  while (from < blocks && !all(from)) ++from;
  while (until > from && !all(until - 1)) --until;
  from *= kResults;
  until *= kResults;
  sum_blocks<kTaps, false, kResults, kVectors>(row, chain, adds, 0, from, results, fetches);
  sum_blocks<kTaps, true, kResults, kVectors>(row, chain, adds, from, until, results, fetches);
  sum_blocks<kTaps, false, kResults, kVectors>(row, chain, adds, until, blocks * kResults, results, fetches);
}

template <int kResults, int kVectors, typename S, typename R>
void sum_chain(const LinkedRow<S>& row, const TapChain& chain, bool adds, const RowResults<R>& results,
               Fetches& fetches) {
  if (chain.count == 7) return sum_taps<7, kResults, kVectors>(row, chain, adds, results, fetches);
  if constexpr (sizeof(S) == 4) {
    if (chain.count == 4) return sum_taps<4, kResults, kVectors>(row, chain, adds, results, fetches);
  }
  if (chain.count == 3) return sum_taps<3, kResults, kVectors>(row, chain, adds, results, fetches);
  // Other lengths are worth no code of their own.
  for (int64_t i = 0; i < chain.count; ++i) {
    const TapChain tap = chain.tap(i, row.advance, kVectors * kLanes<S>);
    sum_taps<1, kResults, kVectors>(row, tap, adds || i > 0, results, fetches);
  }
}

// All results of the row. What is fetched meanwhile takes a step with every block of every chain and group.
template <int kVectors, int kIndex = 0, typename S, typename R>
void sum_row(const LinkedRow<S>& row, const RowResults<R>& results, Fetches& fetches) {
  constexpr int kResults = kBlocks[kIndex];
  if constexpr (has_block<S, kVectors>(kResults)) {
    if (row.phase.block == kResults) {
      if (row.phase.begin == row.phase.end && !row.adds)  // meets no tap, and is zero
        sum_chain<kResults, kVectors>(row, TapChain{0, 0, 0, 1, 0, 0}, false, results, fetches);
      for (int64_t c = row.phase.begin; c < row.phase.end; ++c)
        sum_chain<kResults, kVectors>(row, row.chains[c], row.adds || c > row.phase.begin, results, fetches);
      return;
    }
  }
  if constexpr (kResults > 1) sum_row<kVectors, kIndex + 1>(row, results, fetches);
}

}  // namespace involution::cpu::INVOLUTION_CPU_NAMESPACE
