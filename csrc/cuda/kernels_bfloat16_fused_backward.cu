#include "launch_fused_backward.cuh"

namespace involution {

template cudaError_t launch_fused_backward(const FusedBackwardPlan&, const FusedBackwardOperands<BFloat16>&,
                                           cudaStream_t);

}  // namespace involution
