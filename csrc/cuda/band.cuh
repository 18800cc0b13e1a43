// The parts of the banded kernels: 16-bit tiles in shared memory, and the band of kernel values.
#pragma once

#include "copy_async.cuh"
#include "mma.cuh"
#include "stage.cuh"

namespace involution {

// How a tile of 16-bit elements lies in shared memory: as planes, [channel][row][column], or as pixels,
// [row][column][channel]. It follows the source's format, so that both are staged 16 bytes at a time.
template <bool kPixels>
struct BandLayout {
  static constexpr int kColumns = kPixels ? kBandColumnsOfPixels : kBandColumnsOfPlanes;
  static constexpr int kPitch = band_pitch(kColumns);  // of a patch
  static constexpr int kPatch = kBandRun * kPitch;     // elements of the patch of a run
};

// A whole 16-byte access.
template <typename T>
using Octet = Vector<T, 8>;

template <typename T>
__device__ __forceinline__ const Octet<T>* as_octet(const T* from) {
  return reinterpret_cast<const Octet<T>*>(from);
}

template <typename T>
__device__ __forceinline__ Octet<T>* as_octet(T* to) {
  return reinterpret_cast<Octet<T>*>(to);
}

// `channels` channels, of which the first `live` exist, of a `height` x `width` window of `plane`, like
// stage_window, but in the tensor's own type; wait_for_copies() has to follow. `width` is a multiple of 8,
// and so is x0 where `vector` is set.
template <typename T, bool kPixels>
__device__ __forceinline__ void stage_octets(T* tile, int plane_pitch, int row_pitch, const T* plane,
                                             const ActivationStrides& strides, bool vector, int channels,
                                             int live, int y0, int x0, int height, int width, int size_y,
                                             int size_x, int thread, int threads) {
  const int channel_stride = static_cast<int>(strides.channel);
  const int y_stride = static_cast<int>(strides.space[kHeight]);
  const int x_stride = static_cast<int>(strides.space[kWidth]);
  BoxWalk walk = kPixels ? BoxWalk(height, width, channels / 8, thread, threads)
                         : BoxWalk(channels, height, width / 8, thread, threads);
  for (; !walk.done(); walk.advance()) {
    const int c = kPixels ? walk.i2 * 8 : walk.i0;
    const int row = kPixels ? walk.i0 : walk.i1;
    const int column = kPixels ? walk.i1 : walk.i2 * 8;
    const int y = y0 + row;
    const int x = x0 + column;
    const bool row_inside = plane != nullptr && c < live && y >= 0 && y < size_y;
    const T* first = plane + (row_inside ? c * channel_stride + y * y_stride + x * x_stride : 0);
    T* place = tile + (kPixels ? row * row_pitch + column * plane_pitch + c
                               : c * plane_pitch + row * row_pitch + column);
    if (vector) {  // an octet is then inside as a whole, or not at all
      const bool inside = row_inside && x >= 0 && x < size_x;
      copy_async(place, inside ? first : plane, inside);
    } else {
      Octet<T> octet{};
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int xi = kPixels ? x : x + i;
        if (row_inside && xi >= 0 && xi < size_x) {
          octet.value[i] = *element(first, i * (kPixels ? channel_stride : x_stride));
        }
      }
      *as_octet(place) = octet;
    }
  }
}

// The kernel values of one lane's position, a row of the kernel at a time.
//
// In a mirrored sum they are other positions' (gather.h), and zero where those lie outside. Some value is
// loaded all the same, and masked when it comes to the band, so that nothing waits for a load before that.
template <typename T, int KW, bool kMirrored>
class BandValues {
 public:
  __device__ __forceinline__ BandValues(const Gather& gather, const BlockPosition& at, const T* weight, int y,
                                        int x)
      : gather_(gather), depth_(at.depth), y_(y) {
    const WeightStrides& strides = gather.weight_strides;
    const int point_stride = static_cast<int>(strides.kernel[kWidth]);
    const int x_stride = static_cast<int>(strides.space[kWidth]);
    plane_ = weight + at.batch * strides.batch + at.group * strides.group;
    if (!kMirrored) {
      // Positions beyond the border take the last one's: their results are not stored.
      plane_ += at.depth * static_cast<int>(strides.space[kDepth]) +
                min(y, gather.result[kHeight] - 1) * static_cast<int>(strides.space[kHeight]) +
                min(x, gather.result[kWidth] - 1) * static_cast<int>(strides.space[kWidth]);
    }
#pragma unroll
    for (int m = 0; m < KW; ++m) {
      const int other = x - gather.padding[kWidth] + m;
      const bool inside = other >= 0 && other < gather.source[kWidth];
      masks_[m] = inside ? 0xffff : 0;
      offsets_[m] =
          kMirrored ? (inside ? other : 0) * x_stride + (KW - 1 - m) * point_stride : m * point_stride;
      if (kMirrored || m > 0) keep_in_register(offsets_[m]);
    }
  }

  // Goes to a slice of the kernel.
  __device__ __forceinline__ void start(int slice) {
    const WeightStrides& strides = gather_.weight_strides;
    if (!kMirrored) {
      row_offset_ = slice * static_cast<unsigned>(strides.kernel[kDepth]);
      row_step_ = static_cast<unsigned>(strides.kernel[kHeight]);
      return;
    }
    // Unsigned, because positions outside may lead anywhere; they are not followed.
    const int z = depth_ + slice * gather_.dilation[kDepth] - gather_.padding[kDepth];
    rows_inside_ = z >= 0 && z < gather_.source[kDepth] ? gather_.source[kHeight] : 0;
    reached_ = y_ - gather_.padding[kHeight];
    row_offset_ = static_cast<unsigned>(z) * static_cast<unsigned>(strides.space[kDepth]) +
                  reached_ * static_cast<unsigned>(strides.space[kHeight]) +
                  (gather_.kernel[kDepth] - 1 - slice) * static_cast<unsigned>(strides.kernel[kDepth]) +
                  (gather_.kernel[kHeight] - 1) * static_cast<unsigned>(strides.kernel[kHeight]);
    row_step_ = gather_.dilation[kHeight] * static_cast<unsigned>(strides.space[kHeight]) -
                static_cast<unsigned>(strides.kernel[kHeight]);
  }

  // Begins to load the next row.
  __device__ __forceinline__ void load() {
    const bool inside = !kMirrored || reached_ < rows_inside_;
    if (kMirrored) {
      row_mask_ = inside ? 0xffff : 0;
      reached_ += gather_.dilation[kHeight];
    }
    const T* row = element(plane_, inside ? static_cast<int>(row_offset_) : 0);
    row_offset_ += row_step_;
#pragma unroll
    for (int m = 0; m < KW; ++m) values_[m] = element(row, offsets_[m])->bits;
  }

  // Writes what was loaded over the band.
  __device__ __forceinline__ void store(T* band) const {
#pragma unroll
    for (int m = 0; m < KW; ++m) {
      const unsigned bits = kMirrored ? values_[m] & masks_[m] & row_mask_ : values_[m];
      band[m].bits = static_cast<uint16_t>(bits);
    }
  }

 private:
  const Gather& gather_;
  const T* plane_;
  int depth_;
  int y_;
  unsigned row_offset_;  // of the row to load next, from plane_
  unsigned row_step_;
  unsigned reached_;  // mirrored: the row of the source that it is for
  unsigned rows_inside_;
  unsigned row_mask_;
  unsigned masks_[KW];
  int offsets_[KW];
  unsigned values_[KW];
};

// 16 x 16 sums of a run to the result: `sums[n]` has channels 8*n to 8*n + 7 of its 16 positions. They are
// arranged in `patch`, and leave it 16 bytes at a time where they may.
template <typename T>
__device__ __forceinline__ void store_run(T* patch, const float (&sums)[2][4], T* result,
                                          const ActivationStrides& strides, bool pixels, bool vector,
                                          int channels, int positions) {
  constexpr int kPitch = 24;  // an odd number of octets
  static_assert(kPitch <= BandLayout<true>::kPitch, "the sums of a run fit into its patch");
  const int lane = static_cast<int>(threadIdx.x);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int channel = i / 4 * 8 + lane % 4 * 2 + i % 2;
    const int position = lane / 4 + i / 2 % 2 * 8;
    narrow(sums[i / 4][i % 4], patch + (pixels ? position * kPitch + channel : channel * kPitch + position));
  }
  __syncwarp();
  const int outer = lane / 2;
  const int inner = lane % 2 * 8;
  const int channel = pixels ? inner : outer;
  const int position = pixels ? outer : inner;
  if (channel >= channels || position >= positions) return;
  const Octet<T> octet = *as_octet(static_cast<const T*>(patch + outer * kPitch + inner));
  const int channel_stride = static_cast<int>(strides.channel);
  const int x_stride = static_cast<int>(strides.space[kWidth]);
  T* first = result + channel * channel_stride + position * x_stride;
  if (vector) {
    *as_octet(first) = octet;
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (pixels || position + i < positions)
        first[i * (pixels ? channel_stride : x_stride)] = octet.value[i];
    }
  }
}

}  // namespace involution
