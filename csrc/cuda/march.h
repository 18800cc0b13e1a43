// What a marching kernel is launched with: plain numbers, made on the host by plan.cpp.
//
// A block owns a pack of channels, a strip of columns and a chunk of rows of one image (one slice of a
// volume), and marches down the rows. The rows of two operands flow through rings in shared memory, brought
// some steps ahead by warps that do nothing else: each brings one operand, or takes the results away, which
// leave through a double row of their own, a step late. The other warps compute. All meet once a step.
//
//   operation             a step is        source rows       second rows       result rows
//   involution            rows of y        x                 w                 y
//   involution_transpose  a row of y, w    y                 w                 x, `stride` of them
//   local_correlation     a row of y       x                 y                 w
//
// All sizes in shared memory and all strides are bytes.
#pragma once

#include <cstdint>

#include "divisor.h"

namespace involution {

// Threads of a block, at most. 640 are 14 warps that compute (7 runs of 64 channels) and 6 that copy, with 96
// registers each; the 49 sums of a thread of the float32 correlation need more.
constexpr int kBandThreads = 640;
constexpr int kFmaThreads = 640;
constexpr int kFmaCorrelationThreads = 512;

constexpr int kBandRun = 8;
constexpr int kFmaRun = 7;                  // RedNet's maps are 7, 14, 28 and 56 wide
constexpr int kFmaRunBytes = kFmaRun * 16;  // of a thread's sums

// The rows of one tensor on their way between global and shared memory. A row is `segments` segments of
// `pieces` pieces, and a piece is copied at once. Of a channels_last tensor a segment is a pixel (or the
// kernel values of a position, or those of some neighbouring positions), of a contiguous one a channel (or a
// kernel point), so that columns are either segments or pieces.
struct Stream {
  int segments;
  int pieces;
  int piece_bytes;    // 16, 8, 4; or 2, which pass through registers
  int piece_columns;  // 0: the columns are the segments
  int map_segments;   // where the columns are segments: those of a whole row of the map
  int merged_rows;    // that are one
  int whole;          // the segments are pieces of a whole map
  int phased;         // segments may begin 8 bytes behind a multiple of 16, and so they do in shared memory
  int piece_stride;   // in global memory
  int column_stride;  // the same of columns, or segments where it has several
  int segment_pitch;  // in shared memory, as the following
  int piece_pitch;
  int slice_pitch;
  int row_pitch;
  int rows;    // of the ring
  int ring;    // all of them
  int base;    // of the ring
  int slices;  // of a row: what the kernel reaches in depth
  int first;   // rows of the source that the first step needs, and of each stream every later one
  int next;
  int column_origin;     // the first strip's first column, or segment where it has several; may be negative
  int column_step;       // from strip to strip
  int warps;             // that copy it
  int step;              // segments from one of a thread that copies to its next,
  int step_pitch;        // the same in bytes of shared memory,
  uint32_t step_stride;  // and of global memory, in which rows have less than 2 GiB
  Divisor by_pieces;
  Divisor by_step;
  Divisor by_packs_of_stride;
  int64_t segment_stride;  // in global memory, as the following
  int64_t row_stride;
  int64_t next_stride;  // to the next row that is not one with it
  int64_t depth_stride;
  int64_t batch_stride;
  int64_t pack_stride;          // from as many packs as share a group to the next
  int64_t kernel_slice_stride;  // of a kernel tensor whose slices are taken one from each depth
};

// Where the elements of a row lie in shared memory.
struct ActivationPitch {
  int column;
  int channel;
  int row;  // of a step
};

struct WeightPitch {
  int column;
  int row;  // of a step
  int point;
  int kernel_row;
  int kernel_slice;
  int group;
};

struct March {
  int input[3];
  int output[3];
  int kernel[3];
  int stride[3];
  int padding[3];
  int depth_dilation;
  int flat;  // an image: one slice of everything
  int group_channels;

  int packs;  // a grid is packs * strips, chunks * slices of the result, images
  int strips;
  int chunks;
  int slices;
  int pack_channels;
  int chunk_rows;
  int step_rows;  // rows of y in a step
  int warp_rows;  // band kernels: of these, as many at a time, each by other warps
  int runs;       // that a strip is made of
  int phase;      // columns of the source that are staged in front of the first window
  int weight_phase;
  int residue;    // transposed: of the padding by the stride along the width
  int stages;     // steps in flight
  int consumers;  // warps that compute
  int producers;  // warps that copy
  int cleared;    // the rings are zeros before the first copy: pieces are narrow, and zeros one by one many
  int warps_of_run;           // band kernels: that share a run's units, or groups, of channels
  bool result_channels_last;  // of an activation
  int parts;                  // consumers that share the kernel rows of a sum
  int halo;                   // rows of the source that only the first step needs
  int team;                   // threads that share a row of the source, which teams take in turns:
  int halo_teams;             // so many at these rows,
  int source_teams;           // and so many at the others
  int sums_base;              // where these meet
  int sets;                   // fma transposed: of threads, one for each row of x that sums are kept of
  int sets_bias;              // a multiple of these, no less than the padding

  int row_bias;  // a multiple of the rows' stride, no less than the kernel's height
  int row_bias_quotient;

  Divisor by_team;
  Divisor by_packs;
  Divisor by_chunks;
  Divisor by_step_rows;
  Divisor by_row_stride;
  Divisor by_depth_stride;
  Divisor by_runs;
  Divisor by_group_channels;
  Divisor by_warps_of_run;
  Divisor by_quads;  // fma: of channels, or for the correlation groups
  Divisor by_parts;
  Divisor by_sets;
  Divisor by_kernel_rows;
  Divisor by_group_bytes;  // of kernel values
  Divisor by_row_bytes;    // of a kernel row of them

  Stream source;
  Stream second;
  Stream result;
  ActivationPitch source_pitch;
  ActivationPitch other_pitch;  // of the query of a correlation; else of the result
  WeightPitch weight_pitch;
};

}  // namespace involution
