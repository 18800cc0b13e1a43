// The banded kernels: float16 and bfloat16 on tensor cores, accumulated in float32.
//
// Along one row of the kernel, what 16 neighbouring positions of a row do is a product with a banded matrix:
// row p of A holds the KW kernel values of position p, in columns p to p + KW - 1 of the source positions
// that the run meets. Involution, and mirrored the transposed operation, are
//
//   result (16 positions x 16 channels) += A (16 x columns) * X (columns x 16 channels)
//
// and local correlation keeps the band of Y (16 positions x channels) * X (channels x columns). A warp owns
// two runs. A's patch in shared memory is zeroed once; each row of the kernel overwrites the band alone,
// whose places never move. Products with the zeros beside the band add nothing, unless the source holds a NaN
// or an infinity there: these reach all 16 positions of a run that meets them, and none is ever lost.
#pragma once

#include "band.cuh"

namespace involution {

template <typename T, int KW, bool kPixels, bool kMirrored>
__global__ void __launch_bounds__(kBandMostThreads, band_blocks(kMirrored))
    banded_gather_kernel(const Gather gather, const Plan plan, int groups, const T* __restrict__ source,
                         const T* __restrict__ weight, T* __restrict__ result) {
  using Layout = BandLayout<kPixels>;
  constexpr int kPixelPitch = kBandChannels + 8;  // from a position to the next
  static_assert(kBandRun - 1 + 7 * !kPixels + KW <= Layout::kColumns, "the band fits into its patch");
  const int lane = static_cast<int>(threadIdx.x);
  const int warp = static_cast<int>(threadIdx.y);
  const int thread = warp * 32 + lane;
  const BlockPosition at = locate(blockIdx.x, gather, plan, groups);
  const int rows = gather.kernel[kHeight];
  T* patches = reinterpret_cast<T*>(dynamic_shared_memory()) + warp * kBandRunsOfWarp * Layout::kPatch;
  T* halo = reinterpret_cast<T*>(dynamic_shared_memory()) + plan.runs * Layout::kPatch;

  const int runs_per_row = plan.tile_width / kBandRun;
  const int own_run = warp * kBandRunsOfWarp + lane / kBandRun;
  const int own_position = lane % kBandRun;
  BandValues<T, KW, kMirrored> band_values(gather, at, weight, at.y + own_run / runs_per_row,
                                           at.x + own_run % runs_per_row * kBandRun + own_position);
  T* band = patches + lane / kBandRun * Layout::kPatch + own_position * (Layout::kPitch + 1) +
            (kPixels ? 0 : plan.band_phase);

  // The rows of 16 bytes whose addresses this lane gives to ldmatrix. Of A, matrices 0 to 3 are rows 0-7 and
  // 8-15 of columns 0-7, then of columns 8-15; of X, columns 0-7 and 8-15 of channels 0-7, then of channels
  // 8-15, so that the registers that a product takes follow each other.
  const int matrix = lane / 8;
  const T* a_row = patches + (matrix % 2 * 8 + lane % 8) * Layout::kPitch + matrix / 2 * 8;
  const int x_row = kPixels ? (matrix % 2 * 8 + lane % 8) * kPixelPitch + matrix / 2 * 8
                            : (matrix / 2 * 8 + lane % 8) * plan.plane_pitch + matrix % 2 * 8;
  // Of columns 16 to 23 of pixels there are two matrices only: channels 0-7 and 8-15.
  const int x_rest_row = (16 + lane % 8) * kPixelPitch + matrix % 2 * 8 - x_row;
  const T* x_rows[kBandRunsOfWarp];
#pragma unroll
  for (int r = 0; r < kBandRunsOfWarp; ++r) {
    const int run = warp * kBandRunsOfWarp + r;
    x_rows[r] = halo + x_row + run / runs_per_row * gather.stride[kHeight] * plan.halo_pitch +
                run % runs_per_row * kBandRun * (kPixels ? kPixelPitch : 1);
  }
  const int row_step = gather.dilation[kHeight] * plan.halo_pitch;

  for (int channel = 0; channel < gather.channels; channel += kBandChannels) {
    const int live = min(kBandChannels, gather.channels - channel);
    float sums[kBandRunsOfWarp][2][4] = {};
    for (int i = lane; i < kBandRunsOfWarp * Layout::kPatch / 8; i += 32) as_octet(patches)[i] = Octet<T>{};

    for (int slice = 0; slice < gather.kernel[kDepth]; ++slice) {
      const int z =
          at.depth * gather.stride[kDepth] - gather.padding[kDepth] + slice * gather.dilation[kDepth];
      band_values.start(slice);
      __syncthreads();  // the previous tile has been read
      stage_octets<T, kPixels>(
          halo, kPixels ? kPixelPitch : plan.plane_pitch, plan.halo_pitch,
          slice_of(source, gather.source_strides, at, gather.channels, channel, z, gather.source[kDepth]),
          gather.source_strides, plan.source_vector, kBandChannels, live,
          at.y * gather.stride[kHeight] - gather.padding[kHeight],
          at.x - gather.padding[kWidth] - plan.band_phase, plan.halo_height, plan.halo_width,
          gather.source[kHeight], gather.source[kWidth], thread, plan.threads);
      band_values.load();
      wait_for_copies();
      __syncthreads();

#pragma unroll 1  // unrolled, the loop copies registers
      for (int row = 0; row < rows; ++row) {
        band_values.store(band);
        if (row + 1 < rows) band_values.load();
        __syncwarp();
#pragma unroll
        for (int r = 0; r < kBandRunsOfWarp; ++r) {
          uint32_t a[4], x[4];
          load_matrices<4, false>(a, a_row + r * Layout::kPatch);
          load_matrices<4, kPixels>(x, x_rows[r]);
          multiply_add(sums[r][0], a, x[0], x[1], T{});
          multiply_add(sums[r][1], a, x[2], x[3], T{});
          if constexpr (kPixels) {  // columns 16 to 23
            uint32_t a_rest[2], x_rest[2];
            load_matrices<2, false>(a_rest, a_row + r * Layout::kPatch + 16);
            load_matrices<2, true>(x_rest, x_rows[r] + x_rest_row);
            multiply_add(sums[r][0], a_rest, x_rest[0], T{});
            multiply_add(sums[r][1], a_rest, x_rest[1], T{});
          } else {  // columns 16 to 31
            load_matrices<4, false>(a, a_row + r * Layout::kPatch + 16);
            load_matrices<4, false>(x, x_rows[r] + 16);
            multiply_add(sums[r][0], a, x[0], x[1], T{});
            multiply_add(sums[r][1], a, x[2], x[3], T{});
          }
          x_rows[r] += row_step;
        }
        __syncwarp();  // the patch has been read
      }
#pragma unroll
      for (int r = 0; r < kBandRunsOfWarp; ++r) x_rows[r] -= rows * row_step;
    }

#pragma unroll
    for (int r = 0; r < kBandRunsOfWarp; ++r) {
      const int run = warp * kBandRunsOfWarp + r;
      const int y = at.y + run / runs_per_row;
      const int x = at.x + run % runs_per_row * kBandRun;
      const ActivationStrides& strides = gather.result_strides;
      T* first = result + at.batch * strides.batch +
                 (at.group * gather.channels + channel) * strides.channel + at.depth * strides.space[kDepth] +
                 y * strides.space[kHeight] + x * strides.space[kWidth];
      store_run(patches + r * Layout::kPatch, sums[r], first, strides, plan.result_channels_last,
                plan.result_vector, live, y < gather.result[kHeight] ? gather.result[kWidth] - x : 0);
    }
    __syncwarp();  // before the patches are zeroed again
  }
}

// sums += Y (16 positions x 16 channels) * X (16 channels x columns), tile by tile of 8 columns. `beyond`
// leads from the rows of X's columns 0 to 15 to those of the columns after.
template <typename T, bool kPixels>
__device__ __forceinline__ void correlate(float (&sums)[BandLayout<kPixels>::kColumns / 8][4],
                                          const uint32_t (&y)[4], const T* x_row, int beyond) {
  uint32_t x[4];
  load_matrices<4, !kPixels>(x, x_row);
  multiply_add(sums[0], y, x[0], x[1], T{});
  multiply_add(sums[1], y, x[2], x[3], T{});
  if constexpr (kPixels) {
    uint32_t x_rest[2];
    load_matrices<2, false>(x_rest, x_row + beyond);
    multiply_add(sums[2], y, x_rest[0], x_rest[1], T{});
  } else {
    load_matrices<4, true>(x, x_row + beyond);
    multiply_add(sums[2], y, x[0], x[1], T{});
    multiply_add(sums[3], y, x[2], x[3], T{});
  }
}

// Local correlation: the band of Y * X is one row of the kernel of a run, whole when it leaves the registers,
// so that rows have nothing to carry but Y. All channels are staged at once; kOneStage says that they are 16.
template <typename T, int KW, bool kPixels, bool kOneStage>
__global__ void __launch_bounds__(kBandMostThreads, band_blocks(false))
    banded_correlation_kernel(const Gather gather, const Plan plan, int groups, const T* __restrict__ query,
                              const T* __restrict__ key, T* __restrict__ weight) {
  using Layout = BandLayout<kPixels>;
  constexpr int kTiles = Layout::kColumns / 8;
  const int staged = kOneStage ? kBandChannels : plan.channels_staged;
  // From a position of pixels to the next, or from a channel of planes.
  const int x_pitch = kPixels ? staged + 8 : plan.plane_pitch;
  const int y_pitch = kPixels ? staged + 8 : plan.points_pitch;
  const int lane = static_cast<int>(threadIdx.x);
  const int warp = static_cast<int>(threadIdx.y);
  const int thread = warp * 32 + lane;
  unsigned block = blockIdx.x;
  const int slice = take(block, gather.kernel[kDepth]);
  const BlockPosition at = locate(block, gather, plan, groups);
  const int z = at.depth * gather.stride[kDepth] - gather.padding[kDepth] + slice * gather.dilation[kDepth];

  T* patches = reinterpret_cast<T*>(dynamic_shared_memory()) + warp * kBandRunsOfWarp * Layout::kPatch;
  T* query_tile = reinterpret_cast<T*>(dynamic_shared_memory()) + plan.runs * Layout::kPatch;
  const int positions = plan.tile_height * plan.tile_width;
  T* halo = query_tile + (kPixels ? positions : staged) * y_pitch;
  stage_octets<T, kPixels>(
      query_tile, y_pitch, kPixels ? plan.tile_width * y_pitch : plan.tile_width,
      slice_of(query, gather.result_strides, at, gather.channels, 0, at.depth, gather.result[kDepth]),
      gather.result_strides, plan.result_vector, staged, gather.channels, at.y, at.x, plan.tile_height,
      plan.tile_width, gather.result[kHeight], gather.result[kWidth], thread, plan.threads);
  stage_octets<T, kPixels>(
      halo, x_pitch, plan.halo_pitch,
      slice_of(key, gather.source_strides, at, gather.channels, 0, z, gather.source[kDepth]),
      gather.source_strides, plan.source_vector, staged, gather.channels,
      at.y * gather.stride[kHeight] - gather.padding[kHeight],
      at.x - gather.padding[kWidth] - plan.band_phase, plan.halo_height, plan.halo_width,
      gather.source[kHeight], gather.source[kWidth], thread, plan.threads);
  wait_for_copies();
  __syncthreads();

  // Of Y, matrices 0 to 3 are positions 0-7 and 8-15 of channels 0-7, then of channels 8-15; of X, columns
  // 0-7 of channels 0-7 and 8-15, then columns 8-15.
  const int matrix = lane / 8;
  const int y_row = kPixels ? (matrix % 2 * 8 + lane % 8) * y_pitch + matrix / 2 * 8
                            : (matrix / 2 * 8 + lane % 8) * y_pitch + matrix % 2 * 8;
  const int x_row = kPixels ? (matrix / 2 * 8 + lane % 8) * x_pitch + matrix % 2 * 8
                            : (matrix % 2 * 8 + lane % 8) * x_pitch + matrix / 2 * 8;
  const int y_step = kPixels ? kBandChannels : kBandChannels * y_pitch;
  const int x_step = kPixels ? kBandChannels : kBandChannels * x_pitch;
  const int beyond = kPixels ? 16 * x_pitch : 16;  // to column 16 of X
  const int row_step = gather.dilation[kHeight] * plan.halo_pitch;
  const int runs_per_row = plan.tile_width / kBandRun;
  const T* y_rows[kBandRunsOfWarp];
  const T* x_rows[kBandRunsOfWarp];
  uint32_t y[kBandRunsOfWarp][4];
#pragma unroll
  for (int r = 0; r < kBandRunsOfWarp; ++r) {
    const int run = warp * kBandRunsOfWarp + r;
    y_rows[r] = query_tile + y_row + run * kBandRun * (kPixels ? y_pitch : 1);
    x_rows[r] = halo + x_row + run / runs_per_row * gather.stride[kHeight] * plan.halo_pitch +
                run % runs_per_row * kBandRun * (kPixels ? x_pitch : 1);
    load_matrices<4, !kPixels>(y[r], y_rows[r]);
  }

  // A lane writes the kernel values of its own position.
  const int own_run = warp * kBandRunsOfWarp + lane / kBandRun;
  const int own_y = at.y + own_run / runs_per_row;
  const int own_x = at.x + own_run % runs_per_row * kBandRun + lane % kBandRun;
  const bool own_lives = own_y < gather.result[kHeight] && own_x < gather.result[kWidth];
  const T* band = patches + lane / kBandRun * Layout::kPatch + lane % kBandRun * (Layout::kPitch + 1) +
                  (kPixels ? 0 : plan.band_phase);
  const WeightStrides& strides = gather.weight_strides;
  T* own_weight = weight + at.batch * strides.batch + at.group * strides.group +
                  slice * strides.kernel[kDepth] + at.depth * strides.space[kDepth] +
                  own_y * strides.space[kHeight] + own_x * strides.space[kWidth];
  int offsets[KW];
#pragma unroll
  for (int kw = 0; kw < KW; ++kw) {
    offsets[kw] = kw * static_cast<int>(strides.kernel[kWidth]);
    if (kw > 0) keep_in_register(offsets[kw]);
  }
  const int weight_step = static_cast<int>(strides.kernel[kHeight]);
  int row_offset = 0;
  T* sums_of_lane = patches + lane / 4 * Layout::kPitch + lane % 4 * 2;

  for (int rows_left = gather.kernel[kHeight]; rows_left > 0; --rows_left) {
    float sums[kBandRunsOfWarp][kTiles][4] = {};
#pragma unroll
    for (int r = 0; r < kBandRunsOfWarp; ++r) correlate<T, kPixels>(sums[r], y[r], x_rows[r], beyond);
    // Y of the first 16 channels has stayed in registers, that of others comes again.
#pragma unroll 1
    for (int stage = 1; stage < staged / kBandChannels; ++stage) {
#pragma unroll
      for (int r = 0; r < kBandRunsOfWarp; ++r) {
        uint32_t y_of_stage[4];
        load_matrices<4, !kPixels>(y_of_stage, y_rows[r] + stage * y_step);
        correlate<T, kPixels>(sums[r], y_of_stage, x_rows[r] + stage * x_step, beyond);
      }
    }
    // The band of positions 0 to 7 ends before the last tile, that of positions 8 to 15 begins after the
    // first.
    constexpr int kReach = (7 * !kPixels + 7 + KW - 1) / 8;
#pragma unroll
    for (int r = 0; r < kBandRunsOfWarp; ++r) {
      x_rows[r] += row_step;
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        T* to = sums_of_lane + r * Layout::kPatch + tile * 8;
        if (tile <= kReach) store_vector<T, 2>(to, sums[r][tile]);
        if (tile > 0) store_vector<T, 2>(to + 8 * Layout::kPitch, sums[r][tile] + 2);
      }
    }
    __syncwarp();
    if (own_lives) {
      T* row = element(own_weight, row_offset);
#pragma unroll
      for (int kw = 0; kw < KW; ++kw) *element(row, offsets[kw]) = band[kw];
    }
    row_offset += weight_step;
    __syncwarp();  // the band has been read
  }
}

}  // namespace involution
