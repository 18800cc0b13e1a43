#pragma once

#include <c10/util/Exception.h>
#include <cuda_runtime_api.h>

#define C10_CUDA_CHECK(expression)                                                      \
  do {                                                                                  \
    const cudaError_t involution_error = expression;                                    \
    TORCH_CHECK(involution_error == cudaSuccess, cudaGetErrorString(involution_error)); \
  } while (0)
