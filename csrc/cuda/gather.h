// The two operations that sum over kernel points, seen as one.
//
//   result[c, q] = sum_k weight[k, q] * source[c, q*stride - padding + k*dilation]
//
// is involution as it stands. With stride 1, the transposed operation is the same sum over the mirrored
// kernel: output position o reaches input position q through kernel point k when o = q + padding -
// k*dilation, and k = K - 1 - m gives o = q - (dilation*(K - 1) - padding) + m*dilation. Its kernel value
// for (m, q) is then w[K - 1 - m, o], one of another position's, or zero where o is outside.
//
// Local correlation has the same geometry with the roles turned: for each q and k it sums over c.
#pragma once

#include "../involution.h"

namespace involution {

struct Gather {
  int channels;  // of a group
  int source[3];
  int result[3];
  int kernel[3];
  int stride[3];
  int padding[3];
  int dilation[3];
  bool mirrored;
  ActivationStrides source_strides;
  ActivationStrides result_strides;
  WeightStrides weight_strides;
};

// Of a single point there is nothing to be dilated.
inline int64_t dilation_of(const Problem& problem, int axis) {
  return problem.kernel[axis] == 1 ? 1 : problem.dilation[axis];
}

inline Gather make_gather(Operation operation, const Problem& problem) {
  const bool mirrored = operation == Operation::kTranspose;
  Gather gather{};
  gather.channels = static_cast<int>(problem.channels_per_group);
  gather.mirrored = mirrored;
  for (int axis = 0; axis < 3; ++axis) {
    const int64_t dilation = dilation_of(problem, axis);
    const int64_t reach = dilation * (problem.kernel[axis] - 1);
    gather.source[axis] = static_cast<int>(mirrored ? problem.output[axis] : problem.input[axis]);
    gather.result[axis] = static_cast<int>(mirrored ? problem.input[axis] : problem.output[axis]);
    gather.kernel[axis] = static_cast<int>(problem.kernel[axis]);
    gather.stride[axis] = static_cast<int>(problem.stride[axis]);
    gather.dilation[axis] = static_cast<int>(dilation);
    gather.padding[axis] = static_cast<int>(mirrored ? reach - problem.padding[axis] : problem.padding[axis]);
  }
  gather.source_strides = mirrored ? problem.y : problem.x;
  gather.result_strides = mirrored ? problem.x : problem.y;
  gather.weight_strides = problem.w;
  return gather;
}

}  // namespace involution
