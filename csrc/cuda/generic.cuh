// The generic kernels: any kernel size, stride, dilation and strides of storage, with 64-bit offsets.
//
// They serve what the marching kernels do not fit. A kernel value is still loaded once for several channels.
// Long sums are made of short ones, a row of the kernel or 64 channels each, which keeps their error small.
#pragma once

#include "../problem.h"
#include "scalar.cuh"

namespace involution {

constexpr int kGenericThreads = 256;
constexpr int kGenericChannels = 4;  // sums of a thread
constexpr int kGenericPiece = 64;    // channels of a piece of a sum

// One position of a frame, and the plane and channels that a thread works on.
struct GenericPosition {
  int64_t batch;
  int64_t group;
  int64_t chunk;  // of kGenericChannels channels, or the kernel point
  int64_t space[3];
};

// Positions fastest, then the chunks of a group, then groups and batch.
__device__ __forceinline__ GenericPosition generic_position(int64_t index, const int64_t (&size)[3],
                                                            int64_t chunks, int64_t groups) {
  GenericPosition at;
#pragma unroll
  for (int axis = 2; axis >= 0; --axis) {
    at.space[axis] = index % size[axis];
    index /= size[axis];
  }
  at.chunk = index % chunks;
  index /= chunks;
  at.group = index % groups;
  at.batch = index / groups;
  return at;
}

__device__ __forceinline__ int64_t offset_of(const ActivationStrides& strides, int64_t batch, int64_t channel,
                                             const int64_t (&space)[3]) {
  return batch * strides.batch + channel * strides.channel + space[0] * strides.space[0] +
         space[1] * strides.space[1] + space[2] * strides.space[2];
}

__device__ __forceinline__ int64_t offset_of(const WeightStrides& strides, int64_t batch, int64_t group,
                                             const int64_t (&kernel)[3], const int64_t (&space)[3]) {
  return batch * strides.batch + group * strides.group + kernel[0] * strides.kernel[0] +
         kernel[1] * strides.kernel[1] + kernel[2] * strides.kernel[2] + space[0] * strides.space[0] +
         space[1] * strides.space[1] + space[2] * strides.space[2];
}

// The input position that kernel point k of output position o reads, and whether it exists.
__device__ __forceinline__ bool input_position(const Problem& p, const int64_t (&o)[3], const int64_t (&k)[3],
                                               int64_t (&position)[3]) {
  bool inside = true;
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) {
    position[axis] = o[axis] * p.stride[axis] - p.padding[axis] + k[axis] * p.dilation[axis];
    inside = inside && position[axis] >= 0 && position[axis] < p.input[axis];
  }
  return inside;
}

// The output position whose kernel point k reads input position i, and whether it exists.
__device__ __forceinline__ bool output_position(const Problem& p, const int64_t (&i)[3],
                                                const int64_t (&k)[3], int64_t (&position)[3]) {
  bool exists = true;
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) {
    const int64_t reached = i[axis] + p.padding[axis] - k[axis] * p.dilation[axis];
    position[axis] = reached / p.stride[axis];
    exists = exists && reached >= 0 && reached % p.stride[axis] == 0 && position[axis] < p.output[axis];
  }
  return exists;
}

// Involution and its transpose: a thread sums kGenericChannels channels of one position.
template <typename T, bool kTransposed>
__global__ void __launch_bounds__(kGenericThreads, 2)
    generic_gather_kernel(const Problem p, const T* __restrict__ source, const T* __restrict__ weight,
                          T* __restrict__ result) {
  using Sum = Accumulate<T>;
  const int64_t chunks = (p.channels_per_group + kGenericChannels - 1) / kGenericChannels;
  const int64_t (&size)[3] = kTransposed ? p.input : p.output;
  const ActivationStrides& source_strides = kTransposed ? p.y : p.x;
  const ActivationStrides& result_strides = kTransposed ? p.x : p.y;
  const int64_t total = p.batch * p.groups * chunks * size[0] * size[1] * size[2];
  const int64_t step = static_cast<int64_t>(gridDim.x) * kGenericThreads;

  for (int64_t index = static_cast<int64_t>(blockIdx.x) * kGenericThreads + threadIdx.x; index < total;
       index += step) {
    const GenericPosition at = generic_position(index, size, chunks, p.groups);
    const int64_t channel = at.group * p.channels_per_group + at.chunk * kGenericChannels;
    const int64_t left = p.channels_per_group - at.chunk * kGenericChannels;
    const int channels = static_cast<int>(left < kGenericChannels ? left : kGenericChannels);
    Sum sums[kGenericChannels] = {};

    int64_t k[3];
    for (k[0] = 0; k[0] < p.kernel[0]; ++k[0]) {
      for (k[1] = 0; k[1] < p.kernel[1]; ++k[1]) {
        Sum row[kGenericChannels] = {};
        for (k[2] = 0; k[2] < p.kernel[2]; ++k[2]) {
          int64_t other[3];
          const bool exists =
              kTransposed ? output_position(p, at.space, k, other) : input_position(p, at.space, k, other);
          // An output position that does not exist contributes nothing; a zero of the padding takes part.
          if (kTransposed && !exists) continue;
          const int64_t (&reached)[3] = other;
          const int64_t (&output)[3] = kTransposed ? reached : at.space;
          const Sum value = widen(weight[offset_of(p.w, at.batch, at.group, k, output)]);
          const int64_t first = exists ? offset_of(source_strides, at.batch, channel, other) : 0;
#pragma unroll
          for (int c = 0; c < kGenericChannels; ++c) {
            if (c >= channels) break;
            row[c] += value * (exists ? widen(source[first + c * source_strides.channel]) : Sum(0));
          }
        }
#pragma unroll
        for (int c = 0; c < kGenericChannels; ++c) sums[c] += row[c];
      }
    }
    const int64_t first = offset_of(result_strides, at.batch, channel, at.space);
#pragma unroll
    for (int c = 0; c < kGenericChannels; ++c) {
      if (c < channels) result[first + c * result_strides.channel] = narrowed<T>(sums[c]);
    }
  }
}

// Local correlation: a thread sums the channels of one kernel point of one output position.
template <typename T>
__global__ void __launch_bounds__(kGenericThreads, 2)
    generic_correlation_kernel(const Problem p, const T* __restrict__ query, const T* __restrict__ key,
                               T* __restrict__ weight) {
  using Sum = Accumulate<T>;
  const int64_t points = p.kernel[0] * p.kernel[1] * p.kernel[2];
  const int64_t total = p.batch * p.groups * points * p.output[0] * p.output[1] * p.output[2];
  const int64_t step = static_cast<int64_t>(gridDim.x) * kGenericThreads;

  for (int64_t index = static_cast<int64_t>(blockIdx.x) * kGenericThreads + threadIdx.x; index < total;
       index += step) {
    const GenericPosition at = generic_position(index, p.output, points, p.groups);
    const int64_t row = at.chunk / p.kernel[2];
    const int64_t k[3] = {row / p.kernel[1], row % p.kernel[1], at.chunk % p.kernel[2]};
    const int64_t channel = at.group * p.channels_per_group;
    int64_t input[3];
    const bool inside = input_position(p, at.space, k, input);
    const T* query_first = query + offset_of(p.y, at.batch, channel, at.space);
    const T* key_first = key + (inside ? offset_of(p.x, at.batch, channel, input) : 0);
    Sum sum = 0;
    for (int64_t c = 0; c < p.channels_per_group;) {
      Sum piece = 0;
      for (int i = 0; i < kGenericPiece && c < p.channels_per_group; ++i, ++c) {
        piece += widen(query_first[c * p.y.channel]) * (inside ? widen(key_first[c * p.x.channel]) : Sum(0));
      }
      sum += piece;
    }
    weight[offset_of(p.w, at.batch, at.group, k, at.space)] = narrowed<T>(sum);
  }
}

}  // namespace involution
