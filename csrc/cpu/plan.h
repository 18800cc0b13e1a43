// How one problem is cut into items of work, and where each item's part of the source lies in its scratch.
//
// The three operations read the same geometry. A result position q meets kernel index k at the source
// position
//
//   involution, correlation   q*stride - padding + k*dilation
//   transpose                 (q + padding - k*dilation) / stride, where that is an integer
//
// Along each axis an item takes a tile of results. The transposed operation has `stride` phases: results q
// and q + stride meet the same kernel indices, and the results of one phase that follow each other read
// source positions that follow each other; so a tile is a multiple of the stride long. The other two have one
// phase, and steps of `stride` between the positions. Either way, the positions that one kernel index meets
// in a tile are an evenly spaced run. Overlapping runs are staged as one segment, runs that lie apart (a
// large dilation) as several, and in the scratch the elements of a segment follow each other: a vector of
// results always reads neighbours, whatever the stride and the dilation.
#pragma once

#include <cstdint>
#include <vector>

#include "../involution.h"

namespace involution::cpu {

// The run of source positions that kernel index k meets: result phase + j*phases of a tile reads position +
// j*step (of the first tile), which is found at slot + j.
struct Run {
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

// `count` kernel indices kernel, kernel + kernel_step, ... whose runs begin at neighbouring slots.
struct Chain {
  Run first;
  int64_t kernel;
  int64_t kernel_step;
  int64_t count;
};

// Sizes of what links.h keeps of a row of the source, of a chain and of the chains of a phase, in scratch.
constexpr int64_t kRowLinkBytes = 16;
constexpr int64_t kTapChainBytes = 48;
constexpr int64_t kPhaseBytes = 32;
constexpr int64_t kTargetBytes = 24;

struct AxisPlan {
  AxisPlan() = default;
  AxisPlan(AxisPlan&&) = default;  // a copy's pointers would be those of the original
  AxisPlan& operator=(AxisPlan&&) = default;

  int64_t source;  // size of the axis
  int64_t result;
  int64_t tile;  // results of an item
  int64_t tiles;
  int64_t phases;
  int64_t step;           // source positions from slot to slot
  int64_t advance;        // slots from result to result of a phase
  int64_t shift;          // source positions from one tile to the next
  int64_t slots;          // elements staged
  std::vector<Run> runs;  // one for each kernel index
  std::vector<Segment> segments;
  std::vector<Chain> chains;
  int64_t lowest, highest;        // positions of the first tile that have slots
  std::vector<int64_t> slots_of;  // of the positions from there on; -1 where there is none
  std::vector<Inside> insides;    // of the segments of every tile

  // The same for the kernels, which use nothing of the standard library.
  const Run* run;
  const Segment* segment;
  const Chain* chain;
  const int64_t* slot_of;
  const Inside* inside;
  int64_t kernel;
  int64_t segment_count;
  int64_t chain_count;
};

// The kernels. Vectors lie along the width, or along the channels of a position.
enum class Form {
  kRows,     // along the width: gather.h, correlation.h
  kPixels,   // along the channels: channels.h
  kScatter,  // along the channels, for the transposed operation: scatter.h
  kWindows,  // along the width of the kernel, for the correlation: windows.h
  kQuads     // a few channels of several positions, for the correlation: quads.h
};

struct Plan {
  Operation operation;
  Problem problem;
  Form form;
  AxisPlan axis[3];
  int64_t groups;          // of an item: more than one where their kernel values lie together
  int64_t group_blocks;    // of the problem
  int64_t group_pitch;     // elements from one staged group to the next
  int64_t channels;        // staged at a time
  int64_t channel_blocks;  // of a group; items of their own, but for the correlation, which sums over them
  int64_t channel_pitch;   // elements from one staged channel to the next
  int64_t pixel_pitch;     // or from one pixel to the next
  int64_t quads;           // of a pixel
  int64_t sums_pitch;      // elements of a position's kernel points in scratch that has them side by side
  int64_t values_pitch;    // elements of a position's part of a kernel row there
  int64_t rows_summed;     // of results at a time, if they are scattered
  int64_t rows_sharing;    // of results whose windows overlap, or of the source that are scattered
  int64_t rolling;         // rows of a plane of the source that are kept, if they are staged as they are met
  int64_t row_pitch;       // elements of a row of scratch that holds a tile's width
  int64_t points;          // of the kernel
  int64_t tap_stride;  // from one kernel value of a position to the next, where all are evenly spaced; or 0
  int64_t paired;   // kernel row k of a row of results reads what row k - paired of the next reads; 0: none
  bool few_values;  // an item has all kernel values of a group, side by side, and they are few
  bool groups_innermost;  // kernel values of all groups of a position lie together
  int64_t query_extent;   // elements of a correlation's query from its first to its last in memory
  int64_t items;
  int64_t multiply_adds;  // of an item, about

  // Bytes of scratch that a thread needs, and where its parts begin.
  int64_t scratch_bytes;
  int64_t weight_offset;
  int64_t result_offset;
  int64_t tap_offset;
  int64_t stretch_offset;

  const ActivationStrides& source_strides() const {
    return operation == Operation::kTranspose ? problem.y : problem.x;
  }
  const ActivationStrides& result_strides() const {
    return operation == Operation::kTranspose ? problem.x : problem.y;
  }
};

// One kernel point of a row of results, or of two that follow each other: the element offsets of their first
// kernel values and, in the scratch, of the first channel's source value, which the two have in common.
// Kernel values exist for the results first <= j < last of a row.
struct Tap {
  int64_t weight[2];
  int64_t source;
  int64_t first;
  int64_t last;
};

// Taps that follow each other and belong to the same rows: 1 the first, 2 the second, 3 both.
struct Stretch {
  int64_t rows;
  int64_t count;
};

// Nothing may be empty. `element_bytes` is the size of an element in memory; sums have four bytes at least.
// `vector_bytes` is the size of the widest vector.
Plan make_plan(Operation operation, const Problem& problem, int64_t element_bytes, int64_t vector_bytes,
               int64_t threads);

}  // namespace involution::cpu
