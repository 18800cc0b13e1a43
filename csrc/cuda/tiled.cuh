// The tiled kernels: every kernel element is loaded from global memory once and used for every channel of
// its group, the halo of the input sits in shared memory, and a thread owns a run of neighbouring positions
// whose inputs overlap. No atomics: each result is the sum of one thread, always in the same order.
#pragma once

#include "stage.cuh"

namespace involution {

// The inputs that a run shares for one row of the kernel: a whole number of runs.
template <int KW, int S>
constexpr int kWindow = ((kRun - 1) * S + KW + kRun - 1) / kRun * kRun;

// The positions of a thread's run: kRun columns of a row of the tile, as far apart as the kernel is dilated.
struct RunPositions {
  __device__ __forceinline__ RunPositions(const Plan& plan, int run) : step(1 << plan.phase_shift) {
    const int runs_per_row = plan.tile_width / kRun;
    const int phase_width = plan.tile_width >> plan.phase_shift;
    const int place = run % runs_per_row * kRun;
    phase = place / phase_width;
    index = place - phase * phase_width;
    row = run / runs_per_row;
  }

  __device__ __forceinline__ int first_column() const { return index * step + phase; }

  // How many there are in a row that ends `left` columns behind the first one.
  __device__ __forceinline__ int count(int left) const { return (left + step - 1) / step; }

  // The first window's place in a row of the halo.
  __device__ __forceinline__ int window(const Plan& plan, int stride) const {
    return phase * plan.phase_pitch + index * stride;
  }

  int step;
  int phase;  // the residue of its columns by the step
  int index;  // of the first among the columns of this residue
  int row;
};

// Up to kLaneChannels channels x kRun positions of sums to the result, in its own format.
template <typename T>
__device__ __forceinline__ void store_sums(T* result, const Accumulate<T> (&sums)[kLaneChannels][kRun],
                                           const ActivationStrides& strides, bool vector, int channels,
                                           int positions, int step) {
  const int channel_stride = static_cast<int>(strides.channel);
  const int x_stride = static_cast<int>(strides.space[kWidth]) * step;
#pragma unroll
  for (int c = 0; c < kLaneChannels; ++c) {
    if (c >= channels) break;
    T* row = result + c * channel_stride;
    if (vector && positions >= kRun) {
      store_vector<T, kRun>(row, sums[c]);
    } else {
#pragma unroll
      for (int p = 0; p < kRun; ++p) {
        if (p < positions) row[p * x_stride] = narrowed<T>(sums[c][p]);
      }
    }
  }
}

// `count` neighbouring points of a kernel row, at most KW, the first `channels` channels: sums[c][p] +=
// sum_kw values[kw][p] * window[c][p*S + kw]. Inlined with constants, it has no branch for each.
template <typename Sum, int KW, int S>
__device__ __forceinline__ void gather_points(Sum (&sums)[kLaneChannels][kRun], int count, const Sum* points,
                                              int points_pitch, const Sum* window_row, int plane_pitch,
                                              int channels) {
  Sum values[KW][kRun];
#pragma unroll
  for (int kw = 0; kw < KW; ++kw) {
    if (kw < count) load_shared(values[kw], points + kw * points_pitch);
  }
#pragma unroll
  for (int c = 0; c < kLaneChannels; ++c) {
    if (c >= channels) break;
    Sum window[kWindow<KW, S>];
    load_shared(window, window_row + c * plane_pitch);
    if constexpr (kInPieces<KW>) {
      // A piece is summed by itself: one sum over all points of a long row would lose digits.
      Sum piece[kRun];
#pragma unroll
      for (int p = 0; p < kRun; ++p) piece[p] = values[0][p] * window[p * S];
#pragma unroll
      for (int kw = 1; kw < KW; ++kw) {
        if (kw >= count) break;
#pragma unroll
        for (int p = 0; p < kRun; ++p) piece[p] += values[kw][p] * window[p * S + kw];
      }
#pragma unroll
      for (int p = 0; p < kRun; ++p) sums[c][p] += piece[p];
    } else {
#pragma unroll
      for (int kw = 0; kw < KW; ++kw) {
#pragma unroll
        for (int p = 0; p < kRun; ++p) sums[c][p] += values[kw][p] * window[p * S + kw];
      }
    }
  }
}

// `rows` rows of the kernel, each of `width` points.
template <typename Sum, int KW, int S>
__device__ __forceinline__ void gather_rows(Sum (&sums)[kLaneChannels][kRun], int rows, int width,
                                            const Sum* points, int points_pitch, const Sum* window_row,
                                            int row_step, int plane_pitch, int channels) {
  for (int row = 0; row < rows; ++row) {
    if constexpr (kInPieces<KW>) {
      const Sum* window = window_row;
      int left = width;
      for (; left >= KW; left -= KW) {
        gather_points<Sum, KW, S>(sums, KW, points, points_pitch, window, plane_pitch, channels);
        points += KW * points_pitch;
        window += KW;
      }
      if (left > 0) {
        gather_points<Sum, KW, S>(sums, left, points, points_pitch, window, plane_pitch, channels);
        points += left * points_pitch;
      }
    } else {
      gather_points<Sum, KW, S>(sums, KW, points, points_pitch, window_row, plane_pitch, channels);
      points += KW * points_pitch;
    }
    window_row += row_step;
  }
}

// Involution, and mirrored the transposed operation: result[c, q] = sum_k weight[k, q] * source[c, at(q, k)].
template <typename T, int KW, int S, bool kMirrored>
__global__ void __launch_bounds__(most_threads(sizeof(T)), 1)
    gather_tile_kernel(const Gather gather, const Plan plan, int groups, const T* __restrict__ source,
                       const T* __restrict__ weight, T* __restrict__ result) {
  using Sum = Accumulate<T>;
  const int run = threadIdx.x;
  const int lane = threadIdx.y;
  const int thread = lane * plan.runs + run;
  const BlockPosition at = locate(blockIdx.x, gather, plan, groups);
  const int rows = gather.kernel[kHeight];
  const int slices = gather.kernel[kDepth];
  const int width = points_of_row<KW>(gather);

  Sum* points_tile = reinterpret_cast<Sum*>(dynamic_shared_memory());
  Sum* halo = points_tile + slices * rows * width * plan.points_pitch;
  stage_weight<T, KW, kMirrored>(points_tile, gather, plan, at, weight, run, lane);

  const RunPositions own(plan, run);
  const int row_step = gather.dilation[kHeight] * plan.halo_pitch;
  const int first_channel = lane * plan.lane_channels;
  const Sum* window_origin = halo + first_channel * plan.plane_pitch +
                             own.row * gather.stride[kHeight] * plan.halo_pitch + own.window(plan, S);

  for (int channel = 0; channel < gather.channels; channel += plan.channels_staged) {
    const int staged = min(plan.channels_staged, gather.channels - channel);
    const int live_channels = min(plan.lane_channels, staged - first_channel);
    Sum sums[kLaneChannels][kRun] = {};

    for (int slice = 0; slice < slices; ++slice) {
      const int z =
          at.depth * gather.stride[kDepth] - gather.padding[kDepth] + slice * gather.dilation[kDepth];
      __syncthreads();  // the previous tile has been read
      stage_window<T>(
          halo, plan.plane_pitch, plan.halo_pitch, halo_columns(plan),
          slice_of(source, gather.source_strides, at, gather.channels, channel, z, gather.source[kDepth]),
          gather.source_strides, plan.source_channels_last, staged,
          at.y * gather.stride[kHeight] - gather.padding[kHeight], at.x * S - gather.padding[kWidth],
          plan.halo_height, plan.halo_width, gather.source[kHeight], gather.source[kWidth], thread,
          plan.threads);
      __syncthreads();

      const Sum* values_row = points_tile + slice * rows * width * plan.points_pitch + run * kRun;
      // Stride 2 and pieces have no registers left for a second loop.
      if (S == 1 && !kInPieces<KW> && live_channels == kLaneChannels) {
        gather_rows<Sum, KW, S>(sums, rows, width, values_row, plan.points_pitch, window_origin, row_step,
                                plan.plane_pitch, kLaneChannels);
      } else {
        gather_rows<Sum, KW, S>(sums, rows, width, values_row, plan.points_pitch, window_origin, row_step,
                                plan.plane_pitch, live_channels);
      }
    }

    const int y = at.y + own.row;
    const int x = at.x + own.first_column();
    if (y < gather.result[kHeight] && x < gather.result[kWidth] && live_channels > 0) {
      const ActivationStrides& strides = gather.result_strides;
      T* first = result + at.batch * strides.batch +
                 (at.group * gather.channels + channel + first_channel) * strides.channel +
                 at.depth * strides.space[kDepth] + y * strides.space[kHeight] + x * strides.space[kWidth];
      store_sums<T>(first, sums, strides, plan.result_vector, live_channels,
                    own.count(gather.result[kWidth] - x), own.step);
    }
  }
}

// Local correlation: weight[k, q] = sum_c query[c, q] * key[c, at(q, k)]. A thread owns a run of positions
// and one row of the kernel, or a piece of one: KW x kRun sums that stay in registers while the channels pass
// by, so nothing is reduced across threads. What a piece has beyond the row's end is summed, but not kept.
template <typename T, int KW, int S>
__global__ void __launch_bounds__(most_threads(sizeof(T)), 1)
    correlation_tile_kernel(const Gather gather, const Plan plan, int groups, const T* __restrict__ query,
                            const T* __restrict__ key, T* __restrict__ weight) {
  using Sum = Accumulate<T>;
  const int run = threadIdx.x;
  const int lane = threadIdx.y;
  const int thread = lane * plan.runs + run;
  unsigned block = blockIdx.x;
  const int pieces = kInPieces<KW> ? (gather.kernel[kWidth] + KW - 1) / KW : 1;
  const int first_piece = take(block, plan.row_groups) * plan.lanes;
  const int first_row = first_piece / pieces;
  const int row = (first_piece + lane) / pieces;
  const int first_point = (first_piece + lane) % pieces * KW;
  const int slice = take(block, gather.kernel[kDepth]);
  const BlockPosition at = locate(block, gather, plan, groups);

  Sum* query_tile = reinterpret_cast<Sum*>(dynamic_shared_memory());
  Sum* halo = query_tile + plan.channels_staged * plan.points_pitch;

  const RunPositions own(plan, run);
  const int z = at.depth * gather.stride[kDepth] - gather.padding[kDepth] + slice * gather.dilation[kDepth];
  Sum sums[KW][kRun] = {};

  for (int channel = 0; channel < gather.channels; channel += plan.channels_staged) {
    const int staged = min(plan.channels_staged, gather.channels - channel);
    __syncthreads();  // the previous tiles have been read
    stage_window<T>(
        query_tile, plan.points_pitch, plan.tile_width, position_columns(plan),
        slice_of(query, gather.result_strides, at, gather.channels, channel, at.depth, gather.result[kDepth]),
        gather.result_strides, plan.result_channels_last, staged, at.y, at.x, plan.tile_height,
        plan.tile_width, gather.result[kHeight], gather.result[kWidth], thread, plan.threads);
    stage_window<T>(
        halo, plan.plane_pitch, plan.halo_pitch, halo_columns(plan),
        slice_of(key, gather.source_strides, at, gather.channels, channel, z, gather.source[kDepth]),
        gather.source_strides, plan.source_channels_last, staged,
        at.y * gather.stride[kHeight] - gather.padding[kHeight] + first_row * gather.dilation[kHeight],
        at.x * S - gather.padding[kWidth], plan.halo_height, plan.halo_width, gather.source[kHeight],
        gather.source[kWidth], thread, plan.threads);
    __syncthreads();

    const Sum* window_row =
        halo +
        (own.row * gather.stride[kHeight] + (row - first_row) * gather.dilation[kHeight]) * plan.halo_pitch +
        own.window(plan, S) + first_point;
    const Sum* query_run = query_tile + run * kRun;
#pragma unroll 8  // the loop and the addresses are then below a fifth of the instructions
    for (int c = 0; c < staged; ++c) {
      Sum values[kRun];
      Sum window[kWindow<KW, S>];
      load_shared(values, query_run + c * plan.points_pitch);
      load_shared(window, window_row + c * plan.plane_pitch);
#pragma unroll
      for (int kw = 0; kw < KW; ++kw) {
#pragma unroll
        for (int p = 0; p < kRun; ++p) sums[kw][p] += values[p] * window[p * S + kw];
      }
    }
  }

  const int y = at.y + own.row;
  const int x = at.x + own.first_column();
  if (row >= gather.kernel[kHeight] || y >= gather.result[kHeight] || x >= gather.result[kWidth]) return;
  const WeightStrides& strides = gather.weight_strides;
  T* first = weight + at.batch * strides.batch + at.group * strides.group + slice * strides.kernel[kDepth] +
             row * strides.kernel[kHeight] + first_point * strides.kernel[kWidth] +
             at.depth * strides.space[kDepth] + y * strides.space[kHeight] + x * strides.space[kWidth];
  const int positions = own.count(gather.result[kWidth] - x);
  const int point_stride = static_cast<int>(strides.kernel[kWidth]);
  const int x_stride = static_cast<int>(strides.space[kWidth]) * own.step;
#pragma unroll
  for (int kw = 0; kw < KW; ++kw) {
    if (kInPieces<KW> && first_point + kw >= gather.kernel[kWidth]) break;
    if (plan.weight_vector && positions >= kRun) {
      store_vector<T, kRun>(first + kw * point_stride, sums[kw]);
    } else {
#pragma unroll
      for (int p = 0; p < kRun; ++p) {
        if (p < positions) first[kw * point_stride + p * x_stride] = narrowed<T>(sums[kw][p]);
      }
    }
  }
}

}  // namespace involution
