#include "launch_march.cuh"

namespace involution {

template cudaError_t launch_march<float, Operation::kTranspose>(const Plan&, const float*, const float*,
                                                                float*, cudaStream_t);

}  // namespace involution
