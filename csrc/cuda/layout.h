// How a problem is laid out for the march: rows in shared memory, rings, warps and blocks, for one shape of a
// block.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "../integer_math.h"
#include "plan.h"

namespace involution {

constexpr int64_t kLargestSize = int64_t{1} << 29;  // of an axis, so that positions fit into 32 bits
constexpr int kMostSlices = 32;                     // of a kernel
constexpr int kMostTransposedRows = 7;              // whose sums a warp of the band kernels keeps

// Rows that lie an odd number of 16 bytes apart are in different banks, eight at a time; so are, for single
// elements of every fourth row, those an odd number of 4 bytes apart.
inline int odd_pieces(int64_t bytes, int piece = 16) {
  return static_cast<int>((ceil_div(bytes, piece) | 1) * piece);
}

// The widest access, of 16 bytes at most, that divides all of these.
inline int widest(std::initializer_list<int64_t> bytes) {
  int64_t bits = 16;
  for (const int64_t value : bytes) bits |= value < 0 ? -value : value;
  return static_cast<int>(bits & -bits);
}

// A stride that is met, in bytes: that of an axis of one element is not.
inline int64_t met(int64_t stride, int64_t size, int element_size) {
  return size > 1 ? stride * element_size : 0;
}

// A tensor that is laid over the frame of an activation.
struct Activation {
  ActivationStrides strides;
  const int64_t* frame;
  int alignment;
  bool channels_last;  // pixels can be copied by 16 bytes
};

// Lays out one problem in one shape.
class Layout {
 public:
  Layout(Operation operation, const Problem& p, int element_size, OperandAlignment alignment)
      : operation_(operation),
        p_(p),
        size_(element_size),
        half_(element_size == 2),
        transposed_(operation == Operation::kTranspose),
        stride_(static_cast<int>(p.stride[kWidth])),
        reach_(static_cast<int>((p.kernel[kWidth] - 1) / p.stride[kWidth])),
        x_(activation(p.x, p.input, alignment.x)),
        y_(activation(p.y, p.output, alignment.y)),
        weight_alignment_(alignment.w) {}

  // Why no fast kernel takes the problem; null if one may.
  const char* why_generic() const {
    if (size_ == 8) return "float64 has no other kernels";
    const int64_t kw = p_.kernel[kWidth];
    if (kw != 3 && kw != 5 && kw != 7 && (half_ || kw != 9)) {
      return half_ ? "the kernel's width is not 3, 5 or 7" : "the kernel's width is not 3, 5, 7 or 9";
    }
    if (p_.stride[kWidth] > 2) return "the stride along the width is above 2";
    if (p_.dilation[kHeight] > 1 || p_.dilation[kWidth] > 1) {
      return "the dilation comes with a stride, exceeds the map, or makes too many parts";
    }
    if (p_.channels_per_group % (half_ ? 8 : 4) != 0) {
      return half_ ? "the channels of a group are not a multiple of 8"
                   : "the channels of a group are not a multiple of 4";
    }
    if (p_.kernel[kDepth] > kMostSlices) return "the kernel has more than 32 slices";
    if (transposed_ && half_ && std::max(p_.kernel[kHeight], p_.stride[kHeight]) > kMostTransposedRows) {
      return "the transposed kernel or its stride is higher than 7 rows";
    }
    for (int axis = 0; axis < 3; ++axis) {
      const int64_t most =
          std::max({p_.input[axis], p_.output[axis], p_.padding[axis], p_.kernel[axis] * p_.dilation[axis]});
      if (most > kLargestSize || p_.output[axis] * p_.stride[axis] > kLargestSize)
        return "an axis is too long";
    }
    const WeightStrides& w = p_.w;
    const bool points = follows(w.kernel[kHeight], p_.kernel[kHeight], p_.kernel[kWidth]) &&
                        follows(w.kernel[kDepth], p_.kernel[kDepth], p_.kernel[kHeight] * p_.kernel[kWidth]);
    if (!points) return "the points of the kernel tensor are not at one stride";
    return nullptr;
  }

  bool square() const {
    if (!half_ || p_.kernel[kHeight] != p_.kernel[kWidth] || p_.channels_per_group % 16 != 0) return false;
    if (transposed_) return p_.stride[kHeight] == stride_;
    return operation_ == Operation::kInvolution || p_.channels_per_group == 16;
  }

  bool source_channels_last() const { return source().channels_last; }

  // Columns of the result that a run covers.
  int run_columns() const { return (half_ ? 8 : 7) * (transposed_ ? stride_ : 1); }

  // False where `shape` does not exist or does not fit; `plan` is then unfinished.
  bool lay_out(const Shape& shape, const DeviceLimits& limits, Plan* plan) const;

 private:
  Activation activation(const ActivationStrides& s, const int64_t (&frame)[3], int alignment) const {
    const int widest_pixel = widest({met(s.batch, p_.batch, size_), met(s.space[0], frame[0], size_),
                                     met(s.space[1], frame[1], size_), met(s.space[2], frame[2], size_),
                                     alignment, p_.channels_per_group * size_});
    return {s, frame, alignment, s.channel == 1 && widest_pixel == 16};
  }

  const Activation& source() const { return transposed_ ? y_ : x_; }

  bool follows(int64_t stride, int64_t size, int64_t points) const {
    return size == 1 || stride == p_.w.kernel[kWidth] * points;
  }

  int pack_of(int wanted) const;
  void lay_out_activation(const Activation& tensor, bool as_pixels, int pack, int columns, int64_t origin,
                          int64_t step, Stream* stream, ActivationPitch* pitch) const;
  bool lay_out_weight(int groups, int columns, int64_t origin, int64_t step, Stream* stream,
                      WeightPitch* pitch) const;
  bool merge_rows(int rows, int64_t row, int64_t segment, int64_t others, int alignment, Stream* stream,
                  int* segment_pitch, int* row_pitch) const;
  int choose_phase(const Activation& tensor, int64_t origin, int64_t step, int most) const;
  int choose_chunks(const Plan& plan, const DeviceLimits& limits) const;
  bool share_out(const DeviceLimits& limits, int64_t shared_bytes, int most_warps, March* march) const;
  // Of a thread, at most.
  int registers() const { return !half_ && operation_ == Operation::kCorrelation ? 128 : 96; }
  bool prepare_divisors(March* march) const;

  Operation operation_;
  const Problem& p_;
  int size_;
  bool half_;
  bool transposed_;
  int stride_;
  int reach_;
  Activation x_;
  Activation y_;
  int weight_alignment_;
};

}  // namespace involution
