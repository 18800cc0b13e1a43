// What a plan is. plan.h makes one.
#pragma once

#include <cstdint>

namespace involution {

// Alignment in bytes of each tensor's first element.
struct OperandAlignment {
  int x;
  int w;
  int y;
};

enum class PlanKind {
  kGeneric,  // generic.cuh: everything
  kTiled,    // tiled.cuh: FMA
  kBanded,   // banded.cuh: tensor cores, 16-bit types
};

struct Plan {
  PlanKind kind;
  const char* reason;  // why nothing more special is taken, or "banded"

  // The tile: result positions of a block, and how its threads share them.
  int tile_height;
  int tile_width;     // a multiple of the run
  int runs;           // tiled: threads along the tile, each owns kRun neighbouring positions of a row;
                      // banded: runs of kBandRun positions, kBandRunsOfWarp of them to a warp
  int lanes;          // tiled: threads that share a run: channel lanes, or for local correlation kernel rows,
                      // in pieces of kPiece points where they are not of width 3, 5 or 7
  int lane_channels;  // tiled, but local correlation: channels of a lane
  int channels_staged;  // channels whose tiles are in shared memory at a time

  // Shared memory, in elements: accumulators where tiled, 16-bit ones where banded.
  int halo_height;
  int halo_width;
  int halo_pitch;    // from a row of the halo to the next
  int phase_shift;   // tiled: the logarithm of the dilation along the width
  int phase_pitch;   // tiled: from the columns of one residue by the dilation to those of the next
  int plane_pitch;   // from a channel to the next; banded and channels_last: from a position to the next
  int points_pitch;  // tiled: from a kernel point's tile to the next; correlation: a channel's of y
  int band_phase;    // banded: the band's first column in row 0 of its patch

  // Which accesses may be as wide as a run, or 16 bytes where banded, and along which axis neighbouring
  // threads read.
  bool source_channels_last;
  bool weight_channels_last;
  bool result_channels_last;
  bool source_vector;  // banded
  bool weight_vector;  // tiled
  bool result_vector;  // banded: of y in local correlation, which is read

  int tiles_y;
  int tiles_x;
  int row_groups;  // tiled local correlation: groups of `lanes` kernel rows, or pieces, along the height
  int64_t blocks;
  int threads;
  int64_t shared_bytes;
};

}  // namespace involution
