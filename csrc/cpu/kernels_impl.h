// The kernels of one instruction set; included once by each of kernels_*.cpp.
#pragma once

#include "correlation_kernel_row.h"
#include "correlation_width.h"
#include "involution_channels.h"
#include "involution_width.h"
#include "kernels.h"

namespace involution::cpu::INVOLUTION_CPU_NAMESPACE {

template <typename T>
void run_items(const Plan& plan, const void* first_data, const void* second_data, void* result_data,
               int64_t begin, int64_t end, unsigned char* scratch) {
  const T* const first = static_cast<const T*>(first_data);
  const T* const second = static_cast<const T*>(second_data);
  T* const result = static_cast<T*>(result_data);
  WorkItem next = work_item_at(plan, begin);
  for (int64_t index = begin; index < end; ++index) {
    const WorkItem item = next;
    const WorkItem* const follower = index + 1 < end ? &next : nullptr;
    if (follower != nullptr) next = work_item_at(plan, index + 1);
    if (plan.algorithm == Algorithm::kKernelRow) {
      if constexpr (kHasKernelRow<Sum<T>>)
        CorrelationKernelRow<T>(plan, item, follower, first, second, result, scratch).run();
    } else if (plan.operation == Operation::kCorrelation) {
      CorrelationWidth<T>(plan, item, follower, first, second, result, scratch).run();
    } else if (plan.algorithm == Algorithm::kWidth) {
      InvolutionWidth<T>(plan, item, follower, first, second, result, scratch).run();
    } else if (plan.pixel_pitch == kLanes<T>) {
      InvolutionChannels<1, T>(plan, item, follower, first, second, result, scratch).run();
    } else {
      InvolutionChannels<2, T>(plan, item, follower, first, second, result, scratch).run();
    }
  }
}

inline Kernels table(const char* name) {
  return {
      name, kVectorBytes, &run_items<double>, &run_items<float>, &run_items<Float16>, &run_items<BFloat16>};
}

}  // namespace involution::cpu::INVOLUTION_CPU_NAMESPACE
