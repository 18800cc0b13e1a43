// The kernels of one instruction set; included once by each of kernels_*.cpp.
#pragma once

#include "channels.h"
#include "correlation.h"
#include "gather.h"
#include "kernels.h"

namespace involution::cpu::INVOLUTION_CPU_NAMESPACE {

template <typename T>
void run_items(const Plan& plan, const void* a, const void* b, void* out, int64_t begin, int64_t end,
               unsigned char* scratch) {
  for (int64_t index = begin; index < end; ++index) {
    Item item = item_at(plan, index);
    if (plan.operation == Operation::kCorrelation) {
      correlate_item(plan, item, static_cast<const T*>(a), static_cast<const T*>(b), static_cast<T*>(out),
                     scratch);
    } else if (plan.channel_lanes) {
      stage_pixels(plan, item, static_cast<const T*>(a), reinterpret_cast<Sum<T>*>(scratch));
      if (plan.pixel_pitch == kLanes<T>) {
        gather_channels_item<1>(plan, item, static_cast<const T*>(b), static_cast<T*>(out), scratch);
      } else {
        gather_channels_item<2>(plan, item, static_cast<const T*>(b), static_cast<T*>(out), scratch);
      }
    } else {
      stage(plan, item, static_cast<const T*>(a), reinterpret_cast<Sum<T>*>(scratch));
      gather_item(plan, item, static_cast<const T*>(b), static_cast<T*>(out), scratch);
    }
  }
}

inline Kernels table(const char* name) {
  return {
      name, kVectorBytes, &run_items<double>, &run_items<float>, &run_items<Float16>, &run_items<BFloat16>};
}

}  // namespace involution::cpu::INVOLUTION_CPU_NAMESPACE
