// What the fused kernels have in common: where a block works, rows of a map on their way into shared memory,
// the epilogue.
#pragma once

#include "fused_plan.h"
#include "scalar.cuh"

namespace involution {

// Where a block works: the grid is packs * strips * chunks * images.
struct FusedPlace {
  int group;
  int first_column;  // of the result, as the following
  int first_row;
  int end_row;
  int steps;  // of a tile's rows
  int64_t image;
};

template <int kGroups>
__device__ __forceinline__ FusedPlace fused_place(const FusedMarch& m, int columns) {
  FusedPlace at;
  unsigned block = blockIdx.x;
  at.group = static_cast<int>(block % static_cast<unsigned>(m.packs)) * kGroups;
  block /= static_cast<unsigned>(m.packs);
  at.first_column = static_cast<int>(block % static_cast<unsigned>(m.strips)) * columns;
  block /= static_cast<unsigned>(m.strips);
  at.first_row = static_cast<int>(block % static_cast<unsigned>(m.chunks)) * m.chunk_rows;
  at.image = block / static_cast<unsigned>(m.chunks);
  const int end = at.first_row + m.chunk_rows;
  at.end_row = end < m.result_height ? end : m.result_height;
  at.steps = (at.end_row - at.first_row + kFusedTileRows - 1) / kFusedTileRows;
  return at;
}

// Rows of a map on their way into a ring in shared memory. A thread copies the same 16 bytes of every step-th
// column of every kRows-th row, as far as these are in the map.
template <int kPieces, int kRows>
class FusedRows {
 public:
  // `columns` from `first_column` of the map on, of which those behind the first `wanted` are zeros.
  __device__ __forceinline__ FusedRows(const void* image, int channels, int first_channel, int first_column,
                                       int columns, int wanted, int width, Spot ring, int ring_rows,
                                       int pitch, int threads)
      : piece(static_cast<int>(threadIdx.x) % kPieces),
        row_(static_cast<int>(threadIdx.x) / kPieces % kRows),
        column_(static_cast<int>(threadIdx.x) / (kPieces * kRows)),
        step_(threads / (kPieces * kRows)),
        columns_(columns),
        ring_(ring),
        ring_rows_(ring_rows),
        pitch_(pitch) {
    begin_ = column_;
    while (first_column + begin_ < 0) begin_ += step_;
    end_ = width - first_column < wanted ? width - first_column : wanted;
    if (piece * 8 >= channels - first_channel) end_ = begin_;
    const auto column_bytes = static_cast<unsigned>(channels) * 2;
    row_bytes_ = static_cast<unsigned>(width) * column_bytes;
    step_bytes_ = static_cast<unsigned>(step_) * column_bytes;
    image_ = static_cast<const unsigned char*>(image) +
             (static_cast<int64_t>(first_column + begin_) * channels + first_channel + piece * 8) * 2;
  }

  // Zeros in what no row of the map has, in all rows of the ring. `place(column)` is where in a row the
  // thread's piece of a column goes.
  template <typename Place>
  __device__ __forceinline__ void clear_outside(const Place& place) const {
#pragma unroll 1
    for (int column = column_; column < columns_; column += step_) {
      if (column >= begin_ && column < end_) continue;
      Spot at = ring_ + row_ * pitch_ + place(column);
#pragma unroll 2
      for (int row = row_; row < ring_rows_; row += kRows, at += kRows * pitch_) {
        store_shared(at, uint4{0, 0, 0, 0});
      }
    }
  }

  // `rows` rows from `first` on, the first of them to row `slot` of the ring.
  template <typename Place>
  __device__ __forceinline__ void bring(int first, int rows, int slot, int height, const Place& place) const {
    if (slot >= ring_rows_) slot -= ring_rows_;
#pragma unroll 1
    for (int r = row_; r < rows; r += kRows) {
      const auto row = static_cast<unsigned>(first + r);
      const int at = slot + r < ring_rows_ ? slot + r : slot + r - ring_rows_;
      const Spot to = ring_ + at * pitch_;
      if (row < static_cast<unsigned>(height)) {
        const unsigned char* from = image_ + row * row_bytes_;
        // Two are written out: of a loop over single ones each would be half as long again.
#pragma unroll 1
        for (int column = begin_; column < end_; column += 2 * step_, from += 2 * step_bytes_) {
          copy_async<16>(to + place(column), from);
          if (column + step_ < end_) copy_async<16>(to + place(column + step_), from + step_bytes_);
        }
      } else {
#pragma unroll 1
        for (int column = begin_; column < end_; column += step_) {
          store_shared(to + place(column), uint4{0, 0, 0, 0});
        }
      }
    }
  }

  // To other channels, or the next image: `bytes` further on in memory.
  __device__ __forceinline__ void advance(int64_t bytes) { image_ += bytes; }

  const int piece;

 private:
  const unsigned char* image_;  // the thread's piece of its first column in the map, of row 0
  const int row_;
  const int column_;
  const int step_;
  const int columns_;
  int begin_;  // columns that are in the map
  int end_;
  unsigned row_bytes_;
  unsigned step_bytes_;
  const Spot ring_;
  const int ring_rows_;
  const int pitch_;
};

// Brings the weights of a block's groups, tap by tap as they lie in memory, and zeros in place of what is
// behind the last of the reduced channels. `place(group, kh, kw, piece)` is where 16 bytes of a tap go.
template <int K, int kGroups, int kPieces, typename T, typename Place>
__device__ __forceinline__ void bring_taps(const FusedMarch& m, int group, const T* weight,
                                           const Place& place) {
  const auto thread = static_cast<unsigned>(threadIdx.x);
  const unsigned piece = thread % kPieces, step = static_cast<unsigned>(blockDim.x) / kPieces;
  const int groups = m.groups - group < kGroups ? m.groups - group : kGroups;
  unsigned tap = thread / kPieces;
  const T* from = weight + (static_cast<int64_t>(group) * (K * K) + tap) * m.reduced + piece * 8;
#pragma unroll 2
  for (; tap < static_cast<unsigned>(groups * K * K); tap += step, from += step * m.reduced) {
    const unsigned row = tap / K, g = tap / (K * K);  // rows of all groups' kernels
    copy_or_clear(place(static_cast<int>(g), static_cast<int>(row - g * K), static_cast<int>(tap - row * K),
                        static_cast<int>(piece)),
                  from, static_cast<int>(piece) * 8 < m.reduced);
  }
}

// Where 16 bytes of column c lie in a row of x with kGroups groups: the eight columns of a matrix, 0-3 and
// 8-11 or 4-7 and 12-15 of a window, are in different banks.
template <int kGroups>
__device__ __forceinline__ int fused_pixel_place(int c, int bytes) {
  static_assert(kGroups == 2 || kGroups == 4, "columns of x are 64 or 128 bytes");
  const auto column = static_cast<unsigned>(c);
  const auto key =
      static_cast<int>(kGroups == 2 ? column / 2 % 2 + column / 8 % 2 * 2 : column % 4 + column / 8 % 2 * 4);
  return c * kGroups * 32 + (bytes ^ key * 16);
}

// Two bits for each of two taps among four columns, for the position with this number: the first two of the
// four, or the last two (multiply_add_sparse). The same for the rows of a tile's upper and lower half.
__device__ __forceinline__ uint32_t fused_places(int position) {
  uint32_t places = 0;
#pragma unroll
  for (int k = 0; k < 4; ++k) places |= (k >= position ? 0x40004u : 0xe000eu) << 4 * k;
  return places;
}

// y * scale + shift of a pair of channels, and zeros for negative values, where these are asked for.
template <int kGroups>
class FusedEpilogue {
 public:
  static constexpr int kBytes = kGroups * 2 * kFusedGroupChannels * 4;

  __device__ __forceinline__ FusedEpilogue(const FusedMarch& m, Spot factors, bool affine)
      : factors_(factors), affine_(affine), relu_(m.relu != 0) {}

  // All threads of the block bring the factors of its groups.
  __device__ __forceinline__ void bring(const FusedMarch& m, int group, const float* scale,
                                        const float* shift) const {
    if (!affine_) return;
#pragma unroll 1
    for (int c = static_cast<int>(threadIdx.x); c < kGroups * kFusedGroupChannels;
         c += static_cast<int>(blockDim.x)) {
      const int channel = group * kFusedGroupChannels + c;
      const bool there = channel < m.channels;
      store_shared(factors_ + c * 4, there ? scale[channel] : 0.f);
      store_shared(factors_ + kToShift + c * 4, there ? shift[channel] : 0.f);
    }
  }

  // `channel` of the block's, and the one behind it.
  template <typename T>
  __device__ __forceinline__ uint32_t rounded(float low, float high, int channel, T) const {
    if (affine_) {
      const Spot at = factors_ + channel * 4;
      low = low * load_shared<float>(at) + load_shared<float>(at + kToShift);
      high = high * load_shared<float>(at + 4) + load_shared<float>(at + kToShift + 4);
    }
    return relu_ ? pack_positive(low, high, T{}) : pack(low, high, T{});
  }

 private:
  static constexpr int kToShift = kGroups * kFusedGroupChannels * 4;

  const Spot factors_;
  const bool affine_;
  const bool relu_;
};

}  // namespace involution
