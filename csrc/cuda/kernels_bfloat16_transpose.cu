#include "launch_march.cuh"

namespace involution {

template cudaError_t launch_march<BFloat16, Operation::kTranspose>(const Plan&, const BFloat16*,
                                                                   const BFloat16*, BFloat16*, cudaStream_t);

}  // namespace involution
