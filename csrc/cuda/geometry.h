// A problem as the kernels take it: whole, or in parts that are problems of their own over views of the same
// tensors, which together write every position of the result once.
//
// Dilation. With stride 1 an output position of residue r by the dilation d meets input positions of one
// residue t alone: o = d*j + r and x = d*i + t, t = (r - padding) mod d, give i = j + k - padding' with
// padding' = (padding
// + t - r) / d. So each residue along each axis is a problem without a dilation, whose neighbours lie d
// apart.
//
// Sequences. With a height of 1 throughout, the rows of a batch are the rows of one map, and a kernel that
// marches down rows has rows to march down.
#pragma once

#include "../problem.h"

namespace involution {

constexpr int kMostParts = 16;

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

namespace geometry_detail {

inline bool is_dilated(const Problem& p, int axis) { return p.kernel[axis] > 1 && p.dilation[axis] > 1; }

// The positions of residue `r` along one axis of stride 1.
inline void take_residue(Part& part, int axis, int64_t r) {
  Problem& p = part.problem;
  const int64_t d = p.dilation[axis];
  const int64_t t = ((r - p.padding[axis]) % d + d) % d;
  part.x += t * p.x.space[axis];
  part.w += r * p.w.space[axis];
  part.y += r * p.y.space[axis];
  p.input[axis] = (p.input[axis] - t + d - 1) / d;
  p.output[axis] = (p.output[axis] - r + d - 1) / d;
  p.padding[axis] = (p.padding[axis] + t - r) / d;
  p.x.space[axis] *= d;
  p.w.space[axis] *= d;
  p.y.space[axis] *= d;
  p.dilation[axis] = 1;
}

inline Problem with_batch_as_height(Problem p) {
  const int axis = kHeight;
  if (p.input[axis] != 1 || p.output[axis] != 1 || p.kernel[axis] != 1 || p.padding[axis] != 0) return p;
  p.input[axis] = p.output[axis] = p.batch;
  p.x.space[axis] = p.x.batch;
  p.y.space[axis] = p.y.batch;
  p.w.space[axis] = p.w.batch;
  p.stride[axis] = 1;
  p.padding[axis] = 0;
  p.batch = 1;
  return p;
}

}  // namespace geometry_detail

inline Parts parts_of(const Problem& problem) {
  using namespace geometry_detail;
  Parts parts{};
  Part whole{with_batch_as_height(problem), 0, 0, 0};
  Problem& p = whole.problem;
  for (int axis = 0; axis < 3; ++axis) {
    if (p.kernel[axis] == 1) p.dilation[axis] = 1;  // of a single point there is nothing to be dilated
  }
  int64_t residues[3] = {1, 1, 1};
  bool split = true;
  for (const int axis : {kHeight, kWidth}) {
    if (!is_dilated(p, axis)) continue;
    residues[axis] = p.dilation[axis];
    // Each residue has a position in both frames, so that none is left without a part to write it.
    split =
        split && p.stride[axis] == 1 && p.input[axis] >= residues[axis] && p.output[axis] >= residues[axis];
  }
  if (!split || residues[kHeight] * residues[kWidth] > kMostParts) {
    parts.part[parts.count++] = whole;
    return parts;
  }
  for (int64_t y = 0; y < residues[kHeight]; ++y) {
    for (int64_t x = 0; x < residues[kWidth]; ++x) {
      Part part = whole;
      if (residues[kHeight] > 1) take_residue(part, kHeight, y);
      if (residues[kWidth] > 1) take_residue(part, kWidth, x);
      parts.part[parts.count++] = part;
    }
  }
  return parts;
}

}  // namespace involution
