// How one problem is cut into work items, and where each item's part of the source lies in its scratch.
//
// The three operations read the same geometry. A result position q meets kernel index k at the source
// position
//
//   involution, correlation   q*stride - padding + k*dilation
//   transpose                 (q + padding - k*dilation) / stride, where that is an integer
//
// Along each axis a work item takes a tile of results. The transpose is taken apart into its polyphase
// components: results q and q + stride meet the same kernel indices, and the results of one phase that follow
// each other read source positions that follow each other. So a tile is a multiple of the stride long. The
// other two operations have one phase.
//
// The positions that one kernel index meets in a tile are evenly spaced. Where those of several overlap they
// are staged as one segment, where they lie apart (a large dilation) as several, and the positions of a
// segment have neighbouring slots in the scratch.
#pragma once

#include <cstdint>
#include <vector>

#include "../problem.h"

namespace involution::cpu {

// Kernel index k along an axis: result phase + j*phases of a tile reads the source at position + j*stride (of
// the first tile; the transpose at position + j), which is staged at slot + j*advance.
struct AxisTap {
  int64_t phase;
  int64_t position;
  int64_t slot;
};

struct Segment {
  int64_t position;  // of its first element, in the first tile
  int64_t slot;
  int64_t count;
};

// The elements begin <= i < end of a segment that exist in the source.
struct Inside {
  int64_t begin;
  int64_t end;
};

// `count` kernel indices kernel, kernel + kernel_step, ... each of which reads the slots of the one before
// it, moved by one result.
struct Chain {
  AxisTap first;
  int64_t kernel;
  int64_t kernel_step;
  int64_t count;
};

struct AxisPlan {
  AxisPlan() = default;
  AxisPlan(AxisPlan&&) = default;  // a copy's pointers would be those of the original
  AxisPlan& operator=(AxisPlan&&) = default;

  int64_t source;  // size of the axis
  int64_t result;
  int64_t tile;  // results of an item
  int64_t tiles;
  int64_t phases;
  int64_t step;     // source positions from slot to slot
  int64_t advance;  // slots from result to result of a phase
  int64_t shift;    // source positions from one tile to the next
  int64_t slots;    // elements staged
  int64_t lowest;   // positions of the first tile that have slots, between these two
  int64_t highest;
  std::vector<AxisTap> taps;  // one for each kernel index
  std::vector<Segment> segments;
  std::vector<Chain> chains;
  std::vector<Inside> insides;  // of the segments of every tile

  // The same for the kernels, which use nothing of the standard library.
  const AxisTap* tap;
  const Segment* segment;
  const Chain* chain;
  const Inside* inside;
  int64_t kernel;
  int64_t segment_count;
  int64_t chain_count;
};

// README.md says which serves what.
enum class Algorithm { kWidth, kChannels, kKernelRow };

struct Plan {
  Operation operation;
  Problem problem;
  Algorithm algorithm;
  AxisPlan axis[3];
  int64_t groups;          // of an item: more than one where their weights lie together
  int64_t group_blocks;    // of the problem
  int64_t group_pitch;     // elements from one staged group to the next
  int64_t channels;        // of an item's group
  int64_t channel_blocks;  // of a group
  int64_t channel_pitch;   // elements from one staged channel to the next, if the width is innermost
  int64_t pixel_pitch;     // elements from one staged pixel to the next, if the channels are
  int64_t source_row;      // elements from one staged row of the source to the next
  int64_t ring_rows;       // rows of a plane of the source that are kept
  int64_t row_pitch;       // elements of a row of scratch that holds a tile's width
  int64_t taps;            // of the kernel
  int64_t tap_stride;      // from one weight of a position to the next, where all are evenly spaced; or 0
  bool groups_innermost;   // weights of all groups of a position lie together
  bool few_weights;        // those of a group are one item's, lie side by side, and fit into the cache
  int64_t items;
  int64_t multiply_adds;  // of an item, about

  // Bytes of scratch that a thread needs, and where its parts begin: the staged source, weights (or a
  // correlation's sums), results (or a correlation's query), and lists.
  int64_t scratch_bytes;
  int64_t weight_offset;
  int64_t result_offset;
  int64_t list_offset;

  const ActivationStrides& source_strides() const {
    return operation == Operation::kTranspose ? problem.y : problem.x;
  }
  const ActivationStrides& result_strides() const {
    return operation == Operation::kTranspose ? problem.x : problem.y;
  }
};

// A row of the source that a row of results reads: the offset of its first weight, and of its staged row.
struct RowTap {
  int64_t weight;
  int64_t source;
};

// Taps along a row that share the pixels they read. Tap i reads for result j the weight at
// weight + (i + j)*weight_step + i*tap_step and pixel i + j of those at `source`. The transpose has weights
// for the pixels first <= i + j < last alone.
struct TapRun {
  int64_t weight;
  int64_t tap_step;
  int64_t source;
  int64_t count;
  int64_t first;
  int64_t last;
};

// Nothing may be empty. `element_bytes` is the size of an element in memory; sums have four bytes at least.
// `vector_bytes` is the size of the widest vector.
Plan make_plan(Operation operation, const Problem& problem, int64_t element_bytes, int64_t vector_bytes,
               int64_t threads);

}  // namespace involution::cpu
