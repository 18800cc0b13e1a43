// The kernels of float32 tensors.
#include "launch.cuh"

namespace involution {

template cudaError_t launch(Operation, const Problem&, const Plan&, const float*, const float*, float*,
                            cudaStream_t);

}  // namespace involution
