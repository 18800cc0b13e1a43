// The kernels of bfloat16 tensors.
#include "launch.cuh"

namespace involution {

template cudaError_t launch(Operation, const Problem&, const Plan&, const BFloat16*, const BFloat16*,
                            BFloat16*, cudaStream_t);

}  // namespace involution
