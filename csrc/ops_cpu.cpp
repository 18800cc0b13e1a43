// The three operators on CPU tensors: plan, and work items shared among torch's threads.
#include <ATen/Parallel.h>

#include <algorithm>
#include <memory>
#include <new>

#include "cpu/capability.h"
#include "operators.h"

namespace involution {

namespace {

// Below this many multiply-adds a second thread costs more than it brings.
constexpr int64_t kGrain = 1 << 17;
constexpr std::align_val_t kScratchAlignment{64};

struct FreeScratch {
  void operator()(unsigned char* scratch) const { ::operator delete(scratch, kScratchAlignment); }
};

const cpu::Kernels& kernels() {
  const cpu::Choice& choice = cpu::chosen_kernels();
  TORCH_CHECK_VALUE(choice.kernels != nullptr, "The environment variable INVOLUTION_CPU_CAPABILITY ",
                    choice.error, ", but is '", std::getenv("INVOLUTION_CPU_CAPABILITY"), "'.");
  return *choice.kernels;
}

class CpuBackend {
 public:
  explicit CpuBackend(c10::Device) {}

  void run(Operation operation, const Problem& problem, const at::Tensor& first, const at::Tensor& second,
           const at::Tensor& result) {
    const cpu::RunItems run_items = kernel_of(result.scalar_type());
    const cpu::Plan plan = cpu::make_plan(operation, problem, result.element_size(), kernels().vector_bytes,
                                          at::get_num_threads());
    const void* first_data = first.const_data_ptr();
    const void* second_data = second.const_data_ptr();
    void* result_data = result.mutable_data_ptr();
    const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, plan.multiply_adds));
    at::parallel_for(0, plan.items, grain, [&](int64_t begin, int64_t end) {
      const std::unique_ptr<unsigned char, FreeScratch> scratch(static_cast<unsigned char*>(
          ::operator new(static_cast<size_t>(plan.scratch_bytes), kScratchAlignment)));
      run_items(plan, first_data, second_data, result_data, begin, end, scratch.get());
    });
  }

 private:
  static cpu::RunItems kernel_of(at::ScalarType dtype) {
    switch (dtype) {
      case at::kDouble:
        return kernels().float64;
      case at::kFloat:
        return kernels().float32;
      case at::kHalf:
        return kernels().float16;
      case at::kBFloat16:
        return kernels().bfloat16;
      default:
        refuse_dtype(dtype);
    }
  }
};

// The instruction set that the kernels use here: "avx512", "avx2" or "default".
std::string cpu_capability() { return kernels().name; }

// Whether work items are shared among torch's threads; not where the compiler had no OpenMP.
bool cpu_parallel() {
#ifdef INTRA_OP_PARALLEL
  return true;
#else
  return false;
#endif
}

}  // namespace

TORCH_LIBRARY_IMPL(involution, CPU, library) { register_operators<CpuBackend>(library); }

TORCH_LIBRARY_FRAGMENT(involution, library) {
  library.def("cpu_capability() -> str", &cpu_capability);
  library.def("cpu_parallel() -> bool", &cpu_parallel);
}

}  // namespace involution
