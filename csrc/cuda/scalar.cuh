// The four element types: how they are stored, and the type in which they are multiplied and summed.
//
// float16 and bfloat16 are stored narrow and accumulated in float32; float32 and float64 accumulate in
// themselves. And what is done with whole numbers everywhere.
#pragma once

#include "divisor.h"
#include "machine.cuh"

namespace involution {

template <typename T>
struct AccumulateType {
  using type = float;
};
template <>
struct AccumulateType<double> {
  using type = double;
};
template <typename T>
using Accumulate = typename AccumulateType<T>::type;

__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ double widen(double value) { return value; }
__device__ __forceinline__ void narrow(float value, float* out) { *out = value; }
__device__ __forceinline__ void narrow(double value, double* out) { *out = value; }

template <typename T>
__device__ __forceinline__ T narrowed(Accumulate<T> value) {
  T out;
  narrow(value, &out);
  return out;
}

__device__ __forceinline__ int smaller(int a, int b) { return a < b ? a : b; }

__device__ __forceinline__ int quotient(int value, Divisor divisor) {
  return static_cast<int>(multiply_high(static_cast<uint32_t>(value) * 2, divisor.multiplier));
}

}  // namespace involution
