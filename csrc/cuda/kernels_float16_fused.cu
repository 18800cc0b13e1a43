#include "launch_fused.cuh"

namespace involution {

template cudaError_t launch_fused(const FusedPlan&, const FusedOperands<Float16>&, cudaStream_t);

}  // namespace involution
