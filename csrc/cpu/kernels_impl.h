// The kernels of one instruction set; included once by each of kernels_*.cpp.
#pragma once

#include "channels.h"
#include "correlation.h"
#include "gather.h"
#include "kernels.h"
#include "quads.h"
#include "scatter.h"
#include "windows.h"

namespace involution::cpu::INVOLUTION_CPU_NAMESPACE {

template <typename T>
INVOLUTION_INLINE void run_item(const Plan& plan, Item& item, const Item* next, const T* a, const T* b,
                                T* out, unsigned char* scratch) {
  switch (plan.form) {
    case Form::kRows:
      if (plan.operation == Operation::kCorrelation) {
        correlate_item(plan, item, next, a, b, out, scratch);
      } else {
        gather_item(plan, item, next, a, b, out, scratch);
      }
      break;
    case Form::kPixels:
      if (plan.pixel_pitch == kLanes<T>) {
        PixelGather<1, T>(plan, item, next, a, b, out, scratch).run();
      } else {
        PixelGather<2, T>(plan, item, next, a, b, out, scratch).run();
      }
      break;
    case Form::kScatter:
      if (plan.pixel_pitch == kLanes<T>) {
        Scatter<1, T>(plan, item, a, b, out, scratch).run();
      } else {
        Scatter<2, T>(plan, item, a, b, out, scratch).run();
      }
      break;
    case Form::kWindows:
      if constexpr (kHasWindows<Sum<T>>) WindowCorrelation<T>(plan, item, next, a, b, out, scratch).run();
      break;
    case Form::kQuads:
      if (plan.quads == 4) {
        QuadCorrelation<4, T>(plan, item, next, a, b, out, scratch).run();
      } else {
        QuadCorrelation<0, T>(plan, item, next, a, b, out, scratch).run();
      }
  }
}

template <typename T>
void run_items(const Plan& plan, const void* a, const void* b, void* out, int64_t begin, int64_t end,
               unsigned char* scratch) {
  Item next = item_at(plan, begin);
  for (int64_t index = begin; index < end; ++index) {
    Item item = next;
    const bool last = index + 1 == end;
    if (!last) next = item_at(plan, index + 1);
    run_item(plan, item, last ? nullptr : &next, static_cast<const T*>(a), static_cast<const T*>(b),
             static_cast<T*>(out), scratch);
  }
}

inline Kernels table(const char* name) {
  return {
      name, kVectorBytes, &run_items<double>, &run_items<float>, &run_items<Float16>, &run_items<BFloat16>};
}

}  // namespace involution::cpu::INVOLUTION_CPU_NAMESPACE
