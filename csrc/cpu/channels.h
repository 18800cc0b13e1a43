// Involution and its transpose with vectors along the channels, for groups that fill these:
//
//   result[j, c] = sum over taps of weight[tap, j] * source[tap + j, c]
//
// A run of neighbouring results has its sums in registers. Taps whose sources lie side by side form a chain:
// a pixel of the source is loaded once for all of its taps that meet it, and each kernel value is broadcast
// from where it lies, whatever its strides. No vector crosses the end of a row, however narrow the map, or a
// line of the cache.
#pragma once

#include "pixels.h"

namespace involution::cpu::INVOLUTION_CPU_NAMESPACE {

constexpr int kRegisters = kVectorBytes == 64 ? 32 : 16;

// How many results have their sums in registers, beside a pixel of the source and a kernel value.
template <int kVectors>
constexpr int kMostResults = (kRegisters - 1) / kVectors - 1 < 16 ? (kRegisters - 1) / kVectors - 1 : 16;

// A chain of taps. Tap i meets, for result j of a row, the kernel value at weight + (i + j)*advance + i*turn
// and the pixel i + j of those at `source`. The transposed operation has kernel values for the pixels first
// <= i + j < last alone, and for the rows of results that read a row of the source that exists: depth and
// height say which one the tile's first reads.
struct Link {
  int64_t weight;
  int64_t turn;
  int64_t source;
  int64_t count;
  int64_t first;
  int64_t last;
  int64_t depth;
  int64_t height;
};

// The links of all rows of results that have the same phase along the height, and of one phase along the
// width.
struct Links {
  int64_t begin;
  int64_t end;
  int64_t all_from, all_to;  // results for which every tap has a kernel value
  int64_t length;            // results of such a row
  int64_t block;             // how many of them are computed together
  int64_t top;               // the largest height of a link
};

static_assert(sizeof(Link) == kLinkBytes && sizeof(Links) == kLinksBytes, "the plan makes room for them");

// A row of results and what it is made of.
template <typename S>
struct LinkedRow {
  const Link* links;
  int64_t count;
  const S* weights;
  int64_t advance;
  int64_t ahead;  // to the kernel values of the next row
  const S* source;
  int64_t depth, height;                // rows of the source from the first row of results to this one
  int64_t source_depth, source_height;  // how many exist
  int64_t top;                          // the highest of the links
  int64_t next;         // to the kernel values of the next position along the height, if there is one
  bool cached = false;  // the kernel values are in the cache
  bool adds = false;    // to what is there already
};

template <int kTaps, bool kAll, int kResults, int kVectors, typename S>
INVOLUTION_INLINE void add_chain(const LinkedRow<S>& row, const Link& link, int64_t j,
                                 Vector<S> (&sums)[kResults][kVectors]) {
  constexpr int L = kLanes<S>;
  const S* weights = row.weights + link.weight + j * row.advance;
  const S* source = row.source + link.source + j * kVectors * L;
  const int64_t advance = row.advance, turn = link.turn;
  if (advance == 1) {  // the same results of the next row
#pragma GCC unroll 8
    for (int i = 0; i < kTaps; ++i) __builtin_prefetch(weights + i * (1 + turn) + row.ahead);
  } else if (!row.cached) {
    // Positions whose kernel values lie together, in a row that no result has met yet, or, of a single row,
    // the next ones: of all values, those that results of rows to come will meet among them.
    const S* unmet = weights + (row.next != 0 ? (row.top + 1 - link.height) * row.next : kResults * advance);
#pragma GCC unroll 16
    for (int p = 0; p < kResults; ++p) __builtin_prefetch(unmet + p * advance, 0, 2);
  }
#pragma GCC unroll 32
  for (int s = 0; s < kResults + kTaps - 1; ++s) {
    if (kAll || (s + j >= link.first && s + j < link.last)) {
      Vector<S> value[kVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) value[v] = load(source + (s * kVectors + v) * L);
#pragma GCC unroll 8
      for (int i = 0; i < kTaps; ++i) {
        if (s - i < 0 || s - i >= kResults) continue;
        const S weight = weights[i * turn];
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) sums[s - i][v] += value[v] * weight;
      }
    }
    weights += advance;
  }
}

// kResults results from j on; result q goes, or is added, to `to` + q*pitch, `channels` of it. The results
// before `begin` are there already.
template <int kResults, int kVectors, bool kAll, typename S, typename R>
void gather_pixels(const LinkedRow<S>& row, int64_t j, int64_t begin, R* to, int64_t pitch,
                   int64_t channels) {
  Vector<S> sums[kResults][kVectors] = {};
  if (row.adds) {
#pragma GCC unroll 16
    for (int p = 0; p < kResults; ++p) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sums[p][v] = load(to + (j + p) * pitch + v * kLanes<S>);
    }
  }
  for (int64_t l = 0; l < row.count; ++l) {
    const Link& link = row.links[l];
    if (link.depth + row.depth < 0 || link.depth + row.depth >= row.source_depth) continue;
    if (link.height + row.height < 0 || link.height + row.height >= row.source_height) continue;
    switch (link.count) {
      case 7:
        add_chain<7, kAll>(row, link, j, sums);
        break;
      case 5:
        add_chain<5, kAll>(row, link, j, sums);
        break;
      case 4:
        add_chain<4, kAll>(row, link, j, sums);
        break;
      case 3:
        add_chain<3, kAll>(row, link, j, sums);
        break;
      case 2:
        add_chain<2, kAll>(row, link, j, sums);
        break;
      default:
        add_chain<1, kAll>(row, link, j, sums);
    }
  }
#pragma GCC unroll 16
  for (int p = 0; p < kResults; ++p) {
    if (row.adds && j + p < begin) continue;
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      const int64_t lanes = channels - v * kLanes<S>;  // of a last block's second vector there may be none
      if (lanes > 0) store_some(to + (j + p) * pitch + v * kLanes<S>, sums[p][v], lanes);
    }
  }
}

// All results of the row in blocks of kResults, of which the last begins earlier where they do not come out
// even, and computes some results again; they are stored, or added to, once.
template <int kResults, int kVectors, typename S, typename R>
void gather_blocks(const LinkedRow<S>& row, const Links& links, R* to, int64_t pitch, int64_t channels) {
  for (int64_t begin = 0; begin < links.length; begin += kResults) {
    const int64_t j = smaller(begin, links.length - kResults);
    if (j >= links.all_from && j + kResults <= links.all_to) {
      gather_pixels<kResults, kVectors, true>(row, j, begin, to, pitch, channels);
    } else {
      gather_pixels<kResults, kVectors, false>(row, j, begin, to, pitch, channels);
    }
  }
}

// Sizes of blocks that there is code for.
constexpr int kBlocks[] = {16, 14, 8, 7, 6, 4, 2, 1};

// The size for rows of `length` results: that with the fewest of them, where a block itself costs as much as
// one and a half results.
template <int kMost>
int64_t best_block(int64_t length) {
  int64_t best = 1, least = INT64_MAX;
  for (const int64_t block : kBlocks) {
    if (block > kMost || block > length) continue;
    const int64_t cost = (length + block - 1) / block * (2 * block + 3);
    if (cost < least) {
      best = block;
      least = cost;
    }
  }
  return best;
}

template <int kVectors, int kIndex = 0, typename S, typename R>
INVOLUTION_INLINE void gather_row(const LinkedRow<S>& row, const Links& links, R* to, int64_t pitch,
                                  int64_t channels) {
  constexpr int kResults = kBlocks[kIndex];
  if constexpr (kResults <= kMostResults<kVectors>) {
    if (links.block == kResults) return gather_blocks<kResults, kVectors>(row, links, to, pitch, channels);
  }
  if constexpr (kResults > 1) gather_row<kVectors, kIndex + 1>(row, links, to, pitch, channels);
}

// Where kernel index k of an axis meets results of a phase: the kernel value of the tile's first one, and the
// position and the slot that it reads.
struct Meeting {
  int64_t weight;
  int64_t position;
  int64_t slot;
};

INVOLUTION_INLINE Meeting meeting(const Plan& plan, const Item& item, const WeightStrides& strides, int axis,
                                  const Run& run, int64_t k, int64_t phase) {
  const AxisPlan& along = plan.axis[axis];
  const int64_t position = run.position + item.tile[axis] * along.shift;
  const int64_t at = plan.operation == Operation::kTranspose ? position : item.first[axis] + phase;
  return {k * strides.kernel[axis] + at * strides.space[axis], position, run.slot};
}

// The links of an item, for rows of all phases.
class LinkList {
 public:
  // Kernel values are found by `strides`.
  LinkList(const Plan& plan, const Item& item, const WeightStrides& strides, unsigned char* scratch)
      : links(reinterpret_cast<Link*>(scratch + plan.tap_offset)),
        lists(reinterpret_cast<Links*>(scratch + plan.stretch_offset)),
        plan_(plan),
        item_(item),
        strides_(strides),
        transposed_(plan.operation == Operation::kTranspose) {}

  // For the results whose depth has a phase; those with phases (h, w) have the list h*phases + w.
  template <int kMost>
  void collect(int64_t phase, int64_t height_phases, int64_t width_phases) {
    const AxisPlan& depth = plan_.axis[kDepth];
    const AxisPlan& height = plan_.axis[kHeight];
    Links* list = lists;
    int64_t count = 0;
    for (int64_t h = 0; h < height_phases; ++h) {
      for (int64_t w = 0; w < width_phases; ++w) {
        const int64_t length =
            (item_.count[kWidth] - w + plan_.axis[kWidth].phases - 1) / plan_.axis[kWidth].phases;
        *list = {count, count, 0, length, length, best_block<kMost>(length), INT64_MIN};
        for (int64_t kd = 0; kd < depth.kernel; ++kd) {
          if (depth.run[kd].phase != phase) continue;
          const Meeting deep = meeting(plan_, item_, strides_, kDepth, depth.run[kd], kd, phase);
          for (int64_t kh = 0; kh < height.kernel; ++kh) {
            if (height.run[kh].phase != h) continue;
            add(deep, meeting(plan_, item_, strides_, kHeight, height.run[kh], kh, h), w, *list);
          }
        }
        count = (list++)->end;
      }
    }
  }

  // For a row of the source by itself, with kernel values `advance` apart from position to position and 1
  // from tap to tap: the list 0.
  template <int kMost>
  void collect_row(int64_t advance) {
    const AxisPlan& width = plan_.axis[kWidth];
    const int64_t length = item_.count[kWidth];
    Links& list = lists[0] = {0, 0, 0, length, length, best_block<kMost>(length), 0};
    for (int64_t c = 0; c < width.chain_count; ++c) {
      const Chain& chain = width.chain[c];
      const int64_t position = chain.first.position + item_.tile[kWidth] * width.shift;
      links[list.end++] = {chain.kernel + position * advance,
                           chain.kernel_step,
                           chain.first.slot * plan_.pixel_pitch,
                           chain.count,
                           -position,
                           width.source - position,
                           0,
                           0};
      list.all_from = larger(list.all_from, -position);
      list.all_to = smaller(list.all_to, width.source - position - chain.count + 1);
    }
  }

  Link* const links;
  Links* const lists;

 private:
  INVOLUTION_INLINE void add(const Meeting& deep, const Meeting& high, int64_t phase, Links& list) {
    const AxisPlan& width = plan_.axis[kWidth];
    const int64_t row = deep.slot * plan_.axis[kHeight].slots + high.slot;
    for (int64_t c = 0; c < width.chain_count; ++c) {
      const Chain& chain = width.chain[c];
      if (chain.first.phase != phase) continue;
      const Meeting wide = meeting(plan_, item_, strides_, kWidth, chain.first, chain.kernel, 0);
      const int64_t step = chain.kernel_step * strides_.kernel[kWidth];
      Link& link = links[list.end++];
      link.weight = deep.weight + high.weight + wide.weight;
      link.source = (row * width.slots + wide.slot) * plan_.pixel_pitch;
      link.count = chain.count;
      if (transposed_) {
        link.turn = step;
        link.first = -wide.position;
        link.last = width.source - wide.position;
        link.depth = deep.position;
        link.height = high.position;
        list.all_from = larger(list.all_from, link.first);
        list.all_to = smaller(list.all_to, link.last - link.count + 1);
        list.top = larger(list.top, high.position);
      } else {
        list.top = 0;
        link.turn = step - strides_.space[kWidth];
        link.first = 0;
        link.last = list.length + link.count - 1;
        link.depth = link.height = 0;
      }
    }
  }

  const Plan& plan_;
  const Item& item_;
  const WeightStrides& strides_;
  const bool transposed_;
};

// The kernel values of a link, in the row of results that follows, will be read: taps `step` apart, each of
// `length` results `advance` apart.
template <typename T>
INVOLUTION_INLINE void expect_values(const T* values, int64_t step, int64_t taps, int64_t advance,
                                     int64_t length) {
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T));
  if (advance == 1) {
    for (int64_t i = 0; i < taps; ++i) {
      for (int64_t j = 0; j < length; j += kLine) __builtin_prefetch(values + i * step + j);
    }
  } else {
    for (int64_t j = 0; j < length; ++j) __builtin_prefetch(values + j * advance);
  }
}

// `count` elements that follow each other, widened; whole vectors are written.
template <typename T>
INVOLUTION_INLINE void widen_row(const T* from, Sum<T>* to, int64_t count) {
  constexpr int L = kLanes<T>;
  if (count < L) return store(to, load_some(from, count));
  // The last vector begins earlier where they do not come out even.
  for (int64_t i = 0; i < count; i += L)
    store(to + smaller(i, count - L), load(from + smaller(i, count - L)));
}

// Kernel values of `count` positions, widened; `points` of each position lie together. `ahead` are those that
// will be widened next.
template <typename T>
INVOLUTION_INLINE void widen_points(const T* from, int64_t stride, int64_t ahead, int64_t count,
                                    int64_t points, Sum<T>* to, int64_t pitch) {
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t k = 0; k < points; k += 64 / static_cast<int64_t>(sizeof(T)))
      __builtin_prefetch(from + i * stride + ahead + k);
    widen_row(from + i * stride, to + i * pitch, points);
  }
}

// The kernel values of a row, widened, as links of their own: tap after tap, result after result.
template <typename T>
INVOLUTION_INLINE void stage_links(const T* weights, const Link* links, const Links& list,
                                   LinkedRow<Sum<T>>& row, int64_t advance, int64_t pitch, Link* staged_links,
                                   Sum<T>* staged) {
  using S = Sum<T>;
  int64_t place = 0, count = 0;
  for (int64_t l = list.begin; l < list.end; ++l) {
    const Link& link = links[l];
    if (link.depth + row.depth < 0 || link.depth + row.depth >= row.source_depth) continue;
    if (link.height + row.height < 0 || link.height + row.height >= row.source_height) continue;
    const int64_t step = advance + link.turn;  // from tap to tap
    const T* values = weights + link.weight;
    expect_values(values + row.ahead, step, link.count, advance, list.length);
    if (advance != 1 && step == 1 && link.first <= 0 && link.last >= list.length + link.count - 1) {
      copy_in(values, 1, advance, staged + place, pitch, link.count, list.length);
    } else {
      for (int64_t i = 0; i < link.count; ++i) {
        const int64_t begin = larger(0, link.first - i), end = smaller(list.length, link.last - i);
        if (begin >= end) continue;
        const T* from = values + i * step + begin * advance;
        S* to = staged + place + i * pitch + begin;
        if (advance == 1) {
          widen_row(from, to, end - begin);
        } else {
          copy_in(from, 0, advance, to, pitch, 1, end - begin);
        }
      }
    }
    staged_links[count] = link;
    staged_links[count].weight = place;
    staged_links[count].turn = pitch - 1;
    ++count;
    place += link.count * pitch;
  }
  row.links = staged_links;
  row.count = count;
  row.weights = staged;
  row.advance = 1;
  row.ahead = 0;
}

// A row of results will be written: a burst of stores that miss the cache would be waited for.
template <typename T>
INVOLUTION_INLINE void expect_results(const T* to, const ActivationStrides& strides, const Item& item) {
  if (strides.space[kWidth] != 1) return;
  for (int64_t c = 0; c < item.channels; ++c) {
    for (int64_t j = 0; j < item.count[kWidth]; j += 64 / static_cast<int64_t>(sizeof(T)))
      __builtin_prefetch(to + c * strides.channel + j, 1);
  }
}

template <int kVectors, typename T>
void gather_channels_item(const Plan& plan, const Item& item, const Item* next_item, const T* all_weights,
                          T* result, Ahead<T>& source_ahead, unsigned char* scratch) {
  using S = Sum<T>;
  constexpr bool kWidens = sizeof(T) != sizeof(S);
  const AxisPlan& depth = plan.axis[kDepth];
  const AxisPlan& height = plan.axis[kHeight];
  const AxisPlan& width = plan.axis[kWidth];
  const ActivationStrides& strides = plan.result_strides();
  const WeightStrides& weight_strides = plan.problem.w;
  const int64_t pitch = plan.pixel_pitch;
  const S* staged = reinterpret_cast<const S*>(scratch);
  S* staged_weights = reinterpret_cast<S*>(scratch + plan.weight_offset);
  S* results = reinterpret_cast<S*>(scratch + plan.result_offset);
  const int64_t channel = item.group * plan.problem.channels_per_group + item.channel;
  const T* weights = group_weights(plan, item, all_weights);
  const T* next = next_item == nullptr ? weights : group_weights(plan, *next_item, all_weights);
  result += item.batch * strides.batch + channel * strides.channel;
  for (int axis = 0; axis < 3; ++axis) result += item.first[axis] * strides.space[axis];
  const bool transposed = plan.operation == Operation::kTranspose;
  const bool in_place = !kWidens && strides.channel == 1;
  // Rows that follow each other in memory leave together, for the sake of narrow ones.
  const bool dense = strides.space[kHeight] == item.count[kWidth] * strides.space[kWidth];
  const int64_t together = dense && item.groups == 1 ? larger(1, plan.row_pitch / item.count[kWidth]) : 1;

  // Narrow kernel values that lie together are widened a row of positions at a time.
  const bool widens_points = kWidens && plan.tap_stride == 1 && !transposed;
  WeightStrides found = weight_strides;
  if (widens_points) {
    found.kernel[kWidth] = 1;
    found.kernel[kHeight] = width.kernel;
    found.kernel[kDepth] = width.kernel * height.kernel;
    found.space[kDepth] = found.space[kHeight] = 0;
    found.space[kWidth] = plan.sums_pitch;
  }
  const T* first_values = weights;
  for (int axis = 0; axis < 3; ++axis) first_values += item.first[axis] * weight_strides.space[axis];
  LinkList list(plan, item, found, scratch);
  const int64_t height_phases = smaller(height.phases, item.count[kHeight]);
  const int64_t width_phases = smaller(width.phases, item.count[kWidth]);
  for (int64_t d = 0; d < item.count[kDepth]; ++d) {
    list.template collect<kMostResults<kVectors>>(d % depth.phases, height_phases, width_phases);
    int64_t waiting = 0;  // rows of results
    for (int64_t h = 0; h < item.count[kHeight]; ++h) {
      const int64_t deep = d / depth.phases, high = h / height.phases;
      const int64_t shift = deep * weight_strides.space[kDepth] + high * weight_strides.space[kHeight];
      const int64_t source = (deep * height.slots + high) * width.slots * pitch;
      const int64_t ahead =
          h + height.phases < item.count[kHeight] ? weight_strides.space[kHeight] : next - weights - shift;
      source_ahead.step();
      S* row_results = results + waiting * item.count[kWidth] * pitch;
      const bool leaves = ++waiting == together || h + 1 == item.count[kHeight];
      for (int64_t g = 0; g < item.groups; ++g) {
        T* to = result + g * plan.problem.channels_per_group * strides.channel + d * strides.space[kDepth] +
                h * strides.space[kHeight];
        if (!in_place) expect_results(to, strides, item);
        for (int64_t phase = 0; phase < width_phases; ++phase) {
          const Links& links = list.lists[h % height.phases * width_phases + phase];
          LinkedRow<S> row{list.links + links.begin,
                           links.end - links.begin,
                           nullptr,
                           found.space[kWidth],
                           ahead,
                           staged + g * plan.group_pitch + source,
                           deep,
                           high,
                           transposed ? depth.source : INT64_MAX,
                           transposed ? height.source : INT64_MAX,
                           links.top,
                           found.space[kHeight],
                           widens_points};
          const T* values = weights + g * weight_strides.group + shift;
          if (widens_points) {
            widen_points(first_values + g * weight_strides.group + shift, weight_strides.space[kWidth],
                         weight_strides.space[kHeight], item.count[kWidth], plan.points, staged_weights,
                         plan.sums_pitch);
            row.weights = staged_weights - item.first[kWidth] * plan.sums_pitch;
          } else if constexpr (kWidens) {
            stage_links(values, list.links, links, row, weight_strides.space[kWidth], plan.row_pitch,
                        list.links + plan.points, staged_weights);
          } else {
            row.weights = values;
          }
          if (in_place) {
            if constexpr (!kWidens) {
              gather_row<kVectors>(row, links, to + phase * strides.space[kWidth],
                                   width.phases * strides.space[kWidth], item.channels);
            }
          } else {
            gather_row<kVectors>(row, links, row_results + phase * pitch, width.phases * pitch, pitch);
          }
        }
        if (!in_place && leaves) {
          copy_out(results, pitch, to - (waiting - 1) * strides.space[kHeight], strides.space[kWidth],
                   strides.channel, waiting * item.count[kWidth], item.channels);
        }
      }
      if (leaves) waiting = 0;
    }
  }
}

}  // namespace involution::cpu::INVOLUTION_CPU_NAMESPACE
