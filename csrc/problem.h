// The maths of involution: its three operations, and the description of a problem.
//
// Involution (Li et al., CVPR 2021, section 3) makes its kernel from the input at every position and
// shares it across the channels of a group. With input x, kernel tensor w and a tensor y shaped like
// the output, all that this library computes is a partial contraction of one trilinear form:
//
//   T(x, w, y) = sum over b, g, c in g, k, o of
//                y[b, c, o] * w[b, g, k, o] * x[b, c, o*stride - padding + k*dilation]
//
//   involution            y = dT/dy   (B, C, *Out)        from x and w
//   involution_transpose  x = dT/dx   (B, C, *In)         from y and w
//   local_correlation     w = dT/dw   (B, G, *K, *Out)    from y and x
//
// o runs over output positions, k over kernel points (row-major, cross-correlation orientation), and
// positions of x outside the input count as zeros that take part in the product. T is linear in each
// argument, so the gradient of each operation is made of the other two, to any order.
//
// One and two dimensions are three with leading axes of size 1. No torch header is needed here.
#pragma once

#include <cstdint>

namespace involution {

enum class Operation { kInvolution, kTranspose, kCorrelation };

// Axes of the spatial triples below.
enum Axis { kDepth = 0, kHeight = 1, kWidth = 2 };

// Element strides of an activation, (B, C, D, H, W). A group's channels follow each other, so the
// stride of a group is channel * channels_per_group.
struct ActivationStrides {
  int64_t batch;
  int64_t channel;
  int64_t space[3];
};

// Element strides of a kernel tensor, (B, G, KD, KH, KW, OD, OH, OW).
struct WeightStrides {
  int64_t batch;
  int64_t group;
  int64_t kernel[3];
  int64_t space[3];
};

// Sizes and strides, all in elements. `input` is the frame of x and `output` the frame of y and w; they
// are independent, so an asymmetric padding is `padding` in front and whatever `output` asks for behind.
struct Problem {
  int64_t batch;
  int64_t groups;
  int64_t channels_per_group;
  int64_t input[3];
  int64_t output[3];
  int64_t kernel[3];
  int64_t stride[3];
  int64_t padding[3];
  int64_t dilation[3];
  ActivationStrides x;
  ActivationStrides y;
  WeightStrides w;
};

}  // namespace involution
