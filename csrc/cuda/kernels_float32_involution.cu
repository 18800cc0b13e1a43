#include "launch_march.cuh"

namespace involution {

template cudaError_t launch_march<float, Operation::kInvolution>(const Plan&, const float*, const float*,
                                                                 float*, cudaStream_t);

}  // namespace involution
