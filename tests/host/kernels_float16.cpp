// The shipped kernels of float16 as one object for the host.
#include "cuda/kernels_float16_correlation.cu"
#include "cuda/kernels_float16_fused.cu"
#include "cuda/kernels_float16_fused_backward.cu"
#include "cuda/kernels_float16_involution.cu"
#include "cuda/kernels_float16_transpose.cu"
