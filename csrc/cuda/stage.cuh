// Staging: what a block needs of a tensor comes to shared memory, widened and zero-filled, from either
// storage format. This is the only place that knows strides and borders; inner loops test neither.
#pragma once

#include "gather.h"
#include "plan.h"
#include "vector.cuh"

namespace involution {

// The points of a kernel row: a constant, unless rows are taken in pieces.
template <int KW>
__device__ __forceinline__ int points_of_row(const Gather& gather) {
  return kInPieces<KW> ? gather.kernel[kWidth] : KW;
}

// Where a block works: its (batch, group) plane and the first result position of its tile.
struct BlockPosition {
  int64_t batch;
  int64_t group;
  int depth;
  int y;
  int x;
};

// What a block's number stands for, tiles fastest, so that blocks that run together share their input.
template <typename Index>
__device__ __forceinline__ int take(Index& index, int extent) {
  const int coordinate = static_cast<int>(index % extent);
  index /= extent;
  return coordinate;
}

__device__ __forceinline__ BlockPosition locate(unsigned block, const Gather& gather, const Plan& plan,
                                                int groups) {
  BlockPosition at;
  at.x = take(block, plan.tiles_x) * plan.tile_width;
  at.y = take(block, plan.tiles_y) * plan.tile_height;
  at.depth = take(block, gather.result[kDepth]);
  at.group = take(block, groups);
  at.batch = block;
  return at;
}

// The first element of a plane's channel `channel` in depth slice `z`, or null where z lies outside.
template <typename T>
__device__ __forceinline__ const T* slice_of(const T* tensor, const ActivationStrides& strides,
                                             const BlockPosition& at, int channels, int channel, int z,
                                             int depth) {
  if (z < 0 || z >= depth) return nullptr;
  return tensor + at.batch * strides.batch + (at.group * channels + channel) * strides.channel +
         z * strides.space[kDepth];
}

// Visits an n0 x n1 x n2 box, last axis fastest, `threads` elements apart, without a division per step.
class BoxWalk {
 public:
  __device__ __forceinline__ BoxWalk(int n0, int n1, int n2, int thread, int threads)
      : n0_(n0), n1_(n1), n2_(n2) {
    split(thread, i0, i1, i2);
    split(threads, step0_, step1_, step2_);
  }

  __device__ __forceinline__ bool done() const { return i0 >= n0_; }

  __device__ __forceinline__ void advance() {
    i2 += step2_;
    i1 += step1_;
    i0 += step0_;
    if (i2 >= n2_) {
      i2 -= n2_;
      ++i1;
    }
    if (i1 >= n1_) {
      i1 -= n1_;
      ++i0;
    }
  }

  int i0, i1, i2;

 private:
  __device__ __forceinline__ void split(int index, int& a, int& b, int& c) const {
    c = index % n2_;
    b = index / n2_ % n1_;
    a = index / n2_ / n1_;
  }

  int n0_, n1_, n2_, step0_, step1_, step2_;
};

// Where in a row of shared memory a column of a tile lies. With a dilation, columns of one residue lie side
// by side: they are what one window meets, and a run's positions, that far apart, share their windows as
// neighbours do without one.
struct Columns {
  int shift;  // the logarithm of the dilation
  int pitch;  // from one residue's columns to the next's

  __device__ __forceinline__ int place(int column) const {
    return (column & ((1 << shift) - 1)) * pitch + (column >> shift);
  }
};

// The columns of a tile's positions, and those of its halo.
__device__ __forceinline__ Columns position_columns(const Plan& plan) {
  return {plan.phase_shift, plan.tile_width >> plan.phase_shift};
}

__device__ __forceinline__ Columns halo_columns(const Plan& plan) {
  return {plan.phase_shift, plan.phase_pitch};
}

// `channels` planes of a `height` x `width` window of `plane`, the first element at (y0, x0), which may
// lie outside: such positions become zeros. `plane` points to the window's first channel and depth slice,
// or is null where the whole slice lies outside.
template <typename T>
__device__ __forceinline__ void stage_window(Accumulate<T>* tile, int plane_pitch, int row_pitch,
                                             Columns columns, const T* plane,
                                             const ActivationStrides& strides, bool channels_last,
                                             int channels, int y0, int x0, int height, int width, int size_y,
                                             int size_x, int thread, int threads) {
  const int channel_stride = static_cast<int>(strides.channel);
  const int y_stride = static_cast<int>(strides.space[kHeight]);
  const int x_stride = static_cast<int>(strides.space[kWidth]);
  // Neighbouring threads read along the axis that is contiguous in memory.
  BoxWalk walk = channels_last ? BoxWalk(height, width, channels, thread, threads)
                               : BoxWalk(channels, height, width, thread, threads);
  while (!walk.done()) {
    Accumulate<T> values[kStagedAtOnce];
    int places[kStagedAtOnce];
#pragma unroll
    for (int i = 0; i < kStagedAtOnce; ++i) {
      const int c = channels_last ? walk.i2 : walk.i0;
      const int row = channels_last ? walk.i0 : walk.i1;
      const int column = channels_last ? walk.i1 : walk.i2;
      const int y = y0 + row;
      const int x = x0 + column;
      const bool live = !walk.done();
      const bool inside = live && plane != nullptr && y >= 0 && y < size_y && x >= 0 && x < size_x;
      values[i] = inside ? widen(plane[c * channel_stride + y * y_stride + x * x_stride]) : Accumulate<T>(0);
      places[i] = live ? c * plane_pitch + row * row_pitch + columns.place(column) : -1;
      if (live) walk.advance();
    }
#pragma unroll
    for (int i = 0; i < kStagedAtOnce; ++i) {
      if (places[i] >= 0) tile[places[i]] = values[i];
    }
  }
}

// The kernel values of a tile as [kernel point][position], each element loaded once.
//
// In a mirrored sum the value for (point m, position q) is the one stored at kernel point K - 1 - m of
// output position q - padding + m*dilation, and zero where that lies outside.
//
// A thread takes neighbouring positions at every `lanes`-th point, so a contiguous kernel tensor is read in
// whole runs, as vectors where they are aligned.
template <typename T, int KW, bool kMirrored>
__device__ __forceinline__ void stage_weight_runs(Accumulate<T>* points_tile, const Gather& gather,
                                                  const Plan& plan, const BlockPosition& at, const T* weight,
                                                  int run, int lane) {
  const WeightStrides& strides = gather.weight_strides;
  const int rows = gather.kernel[kHeight];
  const int row_points = points_of_row<KW>(gather);
  const int points = gather.kernel[kDepth] * rows * row_points;
  const int point_stride = static_cast<int>(strides.kernel[kWidth]);
  const int row_stride = static_cast<int>(strides.kernel[kHeight]);
  const int slice_stride = static_cast<int>(strides.kernel[kDepth]);
  const int z_stride = static_cast<int>(strides.space[kDepth]);
  const int y_stride = static_cast<int>(strides.space[kHeight]);
  const int x_stride = static_cast<int>(strides.space[kWidth]);
  const int (&size)[3] = kMirrored ? gather.source : gather.result;
  const T* plane = weight + at.batch * strides.batch + at.group * strides.group;

  const int runs_per_row = plan.tile_width / kRun;
  const int column = run % runs_per_row * kRun;
  const int run_y = at.y + run / runs_per_row;
  const int run_x = at.x + column;
#pragma unroll 4
  for (int point = lane; point < points; point += plan.lanes) {
    int z = at.depth;
    int y = run_y;
    int x = run_x;
    int stored_point = point * point_stride;
    if (kMirrored) {
      const int row = point / row_points;
      const int slice = gather.kernel[kDepth] == 1 ? 0 : row / rows;
      const int row_of_slice = row - slice * rows;
      const int point_of_row = point - row * row_points;
      z += slice * gather.dilation[kDepth] - gather.padding[kDepth];
      y += row_of_slice * gather.dilation[kHeight] - gather.padding[kHeight];
      x += point_of_row * gather.dilation[kWidth] - gather.padding[kWidth];
      stored_point = (gather.kernel[kDepth] - 1 - slice) * slice_stride +
                     (rows - 1 - row_of_slice) * row_stride + (row_points - 1 - point_of_row) * point_stride;
    }
    const bool row_inside = z >= 0 && z < size[kDepth] && y >= 0 && y < size[kHeight];
    const T* first = plane + (row_inside ? z * z_stride + y * y_stride + stored_point : 0);
    Accumulate<T> values[kRun];
    if (!kMirrored && plan.weight_vector && row_inside && x + kRun <= size[kWidth]) {
      const auto loaded = load_streaming<T, kRun>(first + x);
#pragma unroll
      for (int p = 0; p < kRun; ++p) values[p] = widen(loaded.value[p]);
    } else {
#pragma unroll
      for (int p = 0; p < kRun; ++p) {
        const bool inside = row_inside && x + p >= 0 && x + p < size[kWidth];
        values[p] = inside ? widen(first[(x + p) * x_stride]) : Accumulate<T>(0);
      }
    }
    Accumulate<T>* places = points_tile + point * plan.points_pitch + run * kRun;
    if (plan.phase_shift == 0) {
      store_vector<Accumulate<T>, kRun>(places, values);
    } else {
#pragma unroll
      for (int p = 0; p < kRun; ++p) {
        places[position_columns(plan).place(column + p) - column] = values[p];
      }
    }
  }
}

// The same of a channels_last kernel tensor that is not mirrored: the points of a position follow each
// other in memory, so neighbouring threads take neighbouring points.
template <typename T, int KW>
__device__ __forceinline__ void stage_weight_points(Accumulate<T>* points_tile, const Gather& gather,
                                                    const Plan& plan, const BlockPosition& at,
                                                    const T* weight, int thread) {
  const WeightStrides& strides = gather.weight_strides;
  const int points = gather.kernel[kDepth] * gather.kernel[kHeight] * points_of_row<KW>(gather);
  const int y_stride = static_cast<int>(strides.space[kHeight]);
  const int x_stride = static_cast<int>(strides.space[kWidth]);
  const T* slice =
      weight + at.batch * strides.batch + at.group * strides.group + at.depth * strides.space[kDepth];
  BoxWalk walk(plan.tile_height, plan.tile_width, points, thread, plan.threads);
  while (!walk.done()) {
    Accumulate<T> values[kStagedAtOnce];
    int places[kStagedAtOnce];
#pragma unroll
    for (int i = 0; i < kStagedAtOnce; ++i) {
      const int y = at.y + walk.i0;
      const int x = at.x + walk.i1;
      const bool live = !walk.done();
      const bool inside = live && y < gather.result[kHeight] && x < gather.result[kWidth];
      values[i] = inside ? widen(slice[y * y_stride + x * x_stride + walk.i2]) : Accumulate<T>(0);
      const int column = position_columns(plan).place(walk.i1);
      places[i] = live ? walk.i2 * plan.points_pitch + walk.i0 * plan.tile_width + column : -1;
      if (live) walk.advance();
    }
#pragma unroll
    for (int i = 0; i < kStagedAtOnce; ++i) {
      if (places[i] >= 0) points_tile[places[i]] = values[i];
    }
  }
}

template <typename T, int KW, bool kMirrored>
__device__ __forceinline__ void stage_weight(Accumulate<T>* points_tile, const Gather& gather,
                                             const Plan& plan, const BlockPosition& at, const T* weight,
                                             int run, int lane) {
  if (!kMirrored && plan.weight_channels_last) {
    stage_weight_points<T, KW>(points_tile, gather, plan, at, weight, lane * plan.runs + run);
  } else {
    stage_weight_runs<T, KW, kMirrored>(points_tile, gather, plan, at, weight, run, lane);
  }
}

}  // namespace involution
