// The shipped kernels of all dtypes as one object for the host.
#include "cuda/kernels_bfloat16.cu"
#include "cuda/kernels_float16.cu"
#include "cuda/kernels_float32.cu"
#include "cuda/kernels_float64.cu"
