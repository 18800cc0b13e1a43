// The kernels of float64 tensors.
#include "launch.cuh"

namespace involution {

template cudaError_t launch(Operation, const Problem&, const Plan&, const double*, const double*, double*,
                            cudaStream_t);

}  // namespace involution
