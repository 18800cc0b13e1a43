// What the fused kernels have in common: where a block works, rows of a map on their way into shared memory,
// the epilogue.
#pragma once

#include <type_traits>

#include "fused_plan.h"
#include "scalar.cuh"

namespace involution {

// Where a block works: the grid is packs * strips, chunks, images.
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
  const int strip = quotient(static_cast<int>(blockIdx.x), m.by_packs);
  at.group = (static_cast<int>(blockIdx.x) - strip * m.packs) * kGroups;
  at.first_column = strip * columns;
  at.first_row = static_cast<int>(blockIdx.y) * m.chunk_rows;
  at.image = blockIdx.z;
  const int end = at.first_row + m.chunk_rows;
  at.end_row = end < m.result_height ? end : m.result_height;
  at.steps = (at.end_row - at.first_row + kFusedTileRows - 1) / kFusedTileRows;
  return at;
}

// Rows of a map on their way into a ring in shared memory, and zeros in place of what is outside the map. A
// lane of a warp copies the same piece of 16 bytes of every column that is its own. Warps that copy rows
// together take turns, of so many columns as a warp copies at once.
//
// `Columns` says how a column lies in a row: its kPieces pieces by at(column, piece). A row has as many
// columns as fill a multiple of a turn.
template <typename Columns>
class FusedRows {
  static constexpr int kTurn = 32 / Columns::kPieces;  // columns that a warp copies at once

 public:
  // `columns` from `first_column` of the map on, of which those behind the first `wanted` are zeros.
  __device__ __forceinline__ FusedRows(const void* image, int channels, int first_channel, int first_column,
                                       int columns, int wanted, int width, Spot ring, int ring_rows,
                                       int pitch)
      : piece(static_cast<int>(threadIdx.x) % Columns::kPieces),
        column_(static_cast<int>(threadIdx.x) % 32 / Columns::kPieces),
        columns_((columns + kTurn - 1) / kTurn * kTurn),
        begin_(first_column < 0 ? -first_column : 0),
        column_bytes_(static_cast<unsigned>(channels) * 2),
        row_bytes_(static_cast<unsigned>(width) * column_bytes_),
        ring_(ring),
        ring_rows_(ring_rows),
        pitch_(pitch) {
    const int end = smaller(width - first_column, wanted);
    count_ = piece * 8 < channels - first_channel ? static_cast<unsigned>(end - begin_) : 0;
    image_ = static_cast<const unsigned char*>(image) +
             (static_cast<int64_t>(first_column) * channels + first_channel + piece * 8) * 2;
  }

  // `rows` rows from `first` on, the first of them to row `slot` of the ring, kAtOnce at once: they are a
  // multiple of that. The warp is one of so many.
  template <int kAtOnce>
  __device__ __forceinline__ void bring(int first, int rows, int slot, int height, int warp,
                                        int warps) const {
    if (slot >= ring_rows_) slot -= ring_rows_;
    int turn = warp * kTurn;
#pragma unroll 1
    for (int r = 0; r < rows; r += kAtOnce, turn -= columns_) {
      if (turn >= columns_) continue;
      Spot to[kAtOnce];
      const unsigned char* from[kAtOnce];
      unsigned count[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const auto row = static_cast<unsigned>(first + r + i);
        const int at = slot + r + i;
        to[i] = ring_ + (at < ring_rows_ ? at : at - ring_rows_) * pitch_;
        from[i] = image_ + row * row_bytes_;
        count[i] = row < static_cast<unsigned>(height) ? count_ : 0;
      }
#pragma unroll 1
      for (; turn < columns_; turn += warps * kTurn) {
        const int column = turn + column_, place = Columns::at(column, piece);
        const unsigned offset = static_cast<unsigned>(column) * column_bytes_;
        const auto in_map = static_cast<unsigned>(column - begin_);
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) copy_or_clear(to[i] + place, from[i] + offset, in_map < count[i]);
      }
    }
  }

  // To other channels, or the next image: `bytes` further on in memory.
  __device__ __forceinline__ void advance(int64_t bytes) { image_ += bytes; }

  const int piece;

 private:
  const unsigned char* image_;  // the lane's piece of its first column, of row 0
  const int column_;
  const int columns_;
  const int begin_;  // columns that are in the map,
  unsigned count_;   // as far as the lane's piece is
  const unsigned column_bytes_;
  const unsigned row_bytes_;
  const Spot ring_;
  const int ring_rows_;
  const int pitch_;
};

// What the warps of a block do that copy: bring(step) starts what a step needs and the one before it did not,
// a step ahead. What the first step needs is there.
template <typename Bring>
__device__ __forceinline__ void bring_steps(int steps, const Bring& bring) {
#pragma unroll 1
  for (int step = 1; step < steps; ++step) {
    meet();
    bring(step);
    commit_copies();
    wait_for_copies<0>();
  }
  meet();
}

// Brings the weights of a block's groups as they lie in memory, `reduced` channels a tap of which `left` are
// there, and zeros in place of the others. Kernel rows are 8 taps, and kRows, the first of them after
// kInFront of zeros: place(g, row, kw, piece) is where 16 bytes of a tap go. So many threads as copy a kernel
// row at once stay with their taps of it, and take the groups in turns.
template <int K, int kInFront, int kRows, int kPieces, typename T, typename Place>
__device__ __forceinline__ void bring_taps(const T* weight, int reduced, int left, int group, int groups,
                                           unsigned thread, unsigned threads, const Place& place) {
  constexpr unsigned kThreads = 8 * kPieces;
  const auto team = static_cast<int>(thread / kThreads), teams = static_cast<int>(threads / kThreads);
  const auto kw = static_cast<int>(thread / kPieces % 8), piece = static_cast<int>(thread % kPieces);
  const bool there = kw < K && piece * 8 < left;
  const T* of_group = weight + (static_cast<int64_t>(group + team) * (K * K) + kw) * reduced + piece * 8;
#pragma unroll 1
  for (int g = team; g < (team < teams ? groups : 0); g += teams, of_group += teams * (K * K) * reduced) {
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      const int kh = row - kInFront;
      copy_or_clear(place(g, row, kw, piece), of_group + kh * K * reduced, there && kh >= 0 && kh < K);
    }
  }
}

// Calls put(i, bias) for tap i%8 of kernel row i/8 of a block's groups. Two are loaded at once: a load takes
// as long as hundreds of instructions.
template <int K, typename T, typename Put>
__device__ __forceinline__ void bring_biases(int group, int groups, const T* bias, const Put& put) {
  const auto threads = static_cast<int>(blockDim.x);
  const int count = groups * 8 * K;
  const auto load = [&](int i) {
    const bool there = bias != nullptr && i < count && i % 8 < K;
    return there ? bias[static_cast<int64_t>(group * K + i / 8) * K + i % 8] : T{};
  };
#pragma unroll 1
  for (auto i = static_cast<int>(threadIdx.x); i < count; i += 2 * threads) {
    const T first = load(i), second = load(i + threads);
    put(i, first);
    if (i + threads < count) put(i + threads, second);
  }
}

// Columns of x with kGroups groups: the eight of a matrix, 0-3 and 8-11 or 4-7 and 12-15 of a window, are in
// different banks.
template <int kGroups>
struct FusedPixels {
  static constexpr int kPieces = kGroups * 2;
  static_assert(kGroups == 2 || kGroups == 4, "columns of x are 64 or 128 bytes");

  static __device__ __forceinline__ int at(int c, int piece) {
    const auto column = static_cast<unsigned>(c);
    const auto key = static_cast<int>(kGroups == 2 ? column / 2 % 2 + column / 8 % 2 * 2
                                                   : column % 4 + column / 8 % 2 * 4);
    return c * kGroups * 32 + (piece ^ key) * 16;
  }
};

// Columns of the features, in different banks where eight are neighbours.
template <int kSteps>
struct FusedFeatures {
  static constexpr int kPieces = kSteps * 2;

  static __device__ __forceinline__ int at(int column, int piece) {
    return column * (kSteps * 32 + 16) + piece * 16;
  }
};

// Two bits for each of two taps among four columns, for the position with this number: the first two of the
// four, or the last two (multiply_add_sparse). The same for the rows of a tile's upper and lower half.
__device__ __forceinline__ uint32_t fused_places(int position) {
  uint32_t places = 0;
#pragma unroll
  for (int k = 0; k < 4; ++k) places |= (k >= position ? 0x40004u : 0xe000eu) << 4 * k;
  return places;
}

// y * scale + shift of a pair of channels, and zeros for negative values, where these are asked for.
template <typename T, int kGroups>
class FusedEpilogue {
 public:
  static constexpr int kBytes = kGroups * 2 * kFusedGroupChannels * 4;

  __device__ __forceinline__ FusedEpilogue(const FusedMarch& m, Spot factors, bool affine)
      : factors_(factors), affine_(affine), least_(m.relu != 0 ? 0 : infinity(T{}) | 0x80008000u) {}

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

  // What a lane has to do with the channels that it has results of: `channel` of the block's, the one behind
  // it, and the two that are 8 further on.
  struct Factors {
    float2 scale[2];
    float2 shift[2];
  };
  __device__ __forceinline__ Factors factors(int channel) const {
    Factors f{};
    if (!affine_) return f;
#pragma unroll
    for (int octet = 0; octet < 2; ++octet) {
      const Spot at = factors_ + (channel + octet * 8) * 4;
      f.scale[octet] = load_shared<float2>(at), f.shift[octet] = load_shared<float2>(at + kToShift);
    }
    return f;
  }

  // Of the two channels of an octet.
  __device__ __forceinline__ uint32_t rounded(float low, float high, const Factors& f, int octet) const {
    if (affine_) {
      low = low * f.scale[octet].x + f.shift[octet].x;
      high = high * f.scale[octet].y + f.shift[octet].y;
    }
    return larger(pack(low, high, T{}), least_, T{});
  }

 private:
  static __device__ __forceinline__ uint32_t infinity(Float16) { return 0x7c007c00; }
  static __device__ __forceinline__ uint32_t infinity(BFloat16) { return 0x7f807f80; }

  static constexpr int kToShift = kGroups * kFusedGroupChannels * 4;

  const Spot factors_;
  const bool affine_;
  const uint32_t least_;  // that a result may be: zero, or minus infinity
};

}  // namespace involution
