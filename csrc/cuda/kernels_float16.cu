// The kernels of float16 tensors.
#include "launch.cuh"

namespace involution {

template cudaError_t launch(Operation, const Problem&, const Plan&, const Float16*, const Float16*, Float16*,
                            cudaStream_t);

}  // namespace involution
