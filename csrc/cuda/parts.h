// A problem as the kernels take it: whole, or the transposed operation with a stride in parts without one.
//
// An output position o reaches input position q through kernel point k when q = o*stride - padding + k. With
// q = stride*j + r and r + padding = stride*m + t, 0 <= t < stride, that is k = t + stride*k' with k' = j + m
// - o: the input positions of one residue r meet the kernel points of one residue t alone, and for these the
// operation has stride 1 and padding m. So each combination of residues, one for each axis, is a part of its
// own over views of the same tensors. Together the parts write every input position once.
#pragma once

#include "../involution.h"

namespace involution {

constexpr int kMostParts = 8;

// A problem and, in elements, where the first of each tensor lies from the whole problem's.
struct Part {
  Problem problem;
  int64_t x;
  int64_t w;
  int64_t y;
};

struct Parts {
  int count;
  Part part[kMostParts];
};

namespace parts_detail {

// Every residue has a kernel point, so that no position is left over for which there is nothing to sum.
inline bool has_parts(Operation operation, const Problem& p) {
  int64_t count = 1;
  for (int axis = 0; axis < 3; ++axis) {
    const int64_t stride = p.stride[axis];
    if (stride > 1 && (p.dilation[axis] != 1 || p.kernel[axis] < stride)) return false;
    if (stride > kMostParts) return false;
    count *= stride;
  }
  return operation == Operation::kTranspose && count > 1 && count <= kMostParts;
}

inline int64_t floor_divide(int64_t value, int64_t divisor) {
  return (value >= 0 ? value : value - divisor + 1) / divisor;
}

// The positions of residue `r` along one axis; false where there are none.
inline bool take_residue(Part& part, int axis, int64_t r) {
  Problem& p = part.problem;
  const int64_t stride = p.stride[axis];
  if (p.input[axis] <= r) return false;
  const int64_t m = floor_divide(r + p.padding[axis], stride);
  const int64_t t = r + p.padding[axis] - stride * m;
  part.x += r * p.x.space[axis];
  part.w += t * p.w.kernel[axis];
  p.x.space[axis] *= stride;
  p.w.kernel[axis] *= stride;
  p.input[axis] = (p.input[axis] - r + stride - 1) / stride;
  p.kernel[axis] = (p.kernel[axis] - t + stride - 1) / stride;
  p.padding[axis] = m;
  p.stride[axis] = 1;
  return true;
}

}  // namespace parts_detail

inline Parts parts_of(Operation operation, const Problem& problem) {
  using namespace parts_detail;
  Parts parts{};
  const Part whole{problem, 0, 0, 0};
  if (!has_parts(operation, problem)) {
    parts.part[parts.count++] = whole;
    return parts;
  }
  for (int64_t z = 0; z < problem.stride[kDepth]; ++z) {
    for (int64_t y = 0; y < problem.stride[kHeight]; ++y) {
      for (int64_t x = 0; x < problem.stride[kWidth]; ++x) {
        Part part = whole;
        if (take_residue(part, kDepth, z) && take_residue(part, kHeight, y) &&
            take_residue(part, kWidth, x)) {
          parts.part[parts.count++] = part;
        }
      }
    }
  }
  return parts;
}

}  // namespace involution
