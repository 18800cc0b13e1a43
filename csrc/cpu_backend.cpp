#include "cpu_backend.h"

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

  void run(Operation operation, const Problem& problem, const at::Tensor& a, const at::Tensor& b,
           at::Tensor& out) {
    const cpu::RunItems run_items = kernel_of(out.scalar_type());
    const cpu::Plan plan =
        cpu::make_plan(operation, problem, out.element_size(), kernels().vector_bytes, at::get_num_threads());
    const void* a_data = a.const_data_ptr();
    const void* b_data = b.const_data_ptr();
    void* out_data = out.mutable_data_ptr();
    const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, plan.multiply_adds));
    at::parallel_for(0, plan.items, grain, [&](int64_t begin, int64_t end) {
      const std::unique_ptr<unsigned char, FreeScratch> scratch(static_cast<unsigned char*>(
          ::operator new(static_cast<size_t>(plan.scratch_bytes), kScratchAlignment)));
      run_items(plan, a_data, b_data, out_data, begin, end, scratch.get());
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

}  // namespace

at::Tensor involution_cpu(const at::Tensor& input, const at::Tensor& weight, at::IntArrayRef stride,
                          at::IntArrayRef padding, at::IntArrayRef dilation) {
  return Operators<CpuBackend>::involution(input, weight, stride, padding, dilation);
}

at::Tensor involution_transpose_cpu(const at::Tensor& input, const at::Tensor& weight,
                                    at::IntArrayRef output_size, at::IntArrayRef stride,
                                    at::IntArrayRef padding, at::IntArrayRef dilation) {
  return Operators<CpuBackend>::involution_transpose(input, weight, output_size, stride, padding, dilation);
}

at::Tensor local_correlation_cpu(const at::Tensor& query, const at::Tensor& key, at::IntArrayRef kernel_size,
                                 int64_t groups, at::IntArrayRef stride, at::IntArrayRef padding,
                                 at::IntArrayRef dilation) {
  return Operators<CpuBackend>::local_correlation(query, key, kernel_size, groups, stride, padding, dilation);
}

std::string cpu_capability() { return kernels().name; }

bool cpu_parallel() {
#ifdef INTRA_OP_PARALLEL
  return true;
#else
  return false;
#endif
}

}  // namespace involution
