// The shipped kernels of float32 as one object for the host. The generic ones, of all dtypes, are here too.
#include "cuda/kernels_float32_correlation.cu"
#include "cuda/kernels_float32_involution.cu"
#include "cuda/kernels_float32_transpose.cu"
#include "cuda/kernels_generic.cu"
