// The shipped kernels of bfloat16 as one object for the host.
#include "cuda/kernels_bfloat16_correlation.cu"
#include "cuda/kernels_bfloat16_fused.cu"
#include "cuda/kernels_bfloat16_fused_backward.cu"
#include "cuda/kernels_bfloat16_involution.cu"
#include "cuda/kernels_bfloat16_transpose.cu"
