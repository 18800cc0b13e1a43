#include "launch_march.cuh"

namespace involution {

template cudaError_t launch_march<Float16, Operation::kTranspose>(const Plan&, const Float16*, const Float16*,
                                                                  Float16*, cudaStream_t);

}  // namespace involution
