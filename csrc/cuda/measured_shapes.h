// The shapes of blocks that were the fastest of many on an H100 (benchmarks.tune): RedNet's maps at batch 32,
// its stem, and a detector's map. make_plan takes the nearest.
#pragma once

#include "plan.h"

namespace involution {

struct MeasuredShape {
  Operation operation;
  bool half;           // float16 and bfloat16; else float32
  bool channels_last;  // the source
  int kernel;          // width
  int stride;          // along the width
  int width;           // of the result
  Shape shape;         // pack, runs, rows, chunks, stages, producers, parts
};

constexpr MeasuredShape kMeasuredShapes[] = {
    // clang-format off
    {Operation::kCorrelation, false, false, 3, 1, 112, {16, 8, 2, 0, 2, 4, 1}},  // 52%
    {Operation::kCorrelation, false, false, 7, 1, 14, {16, 4, 2, 0, 3, 3, 7}},  // 47%
    {Operation::kCorrelation, false, false, 7, 1, 28, {64, 8, 1, 0, 3, 6, 7}},  // 48%
    {Operation::kCorrelation, false, false, 7, 1, 336, {64, 4, 1, 0, 3, 6, 7}},  // 51%
    {Operation::kCorrelation, false, false, 7, 1, 56, {64, 4, 1, 0, 3, 6, 7}},  // 53%
    {Operation::kCorrelation, false, false, 7, 1, 7, {64, 1, 7, 0, 2, 3, 4}},  // 50%
    {Operation::kCorrelation, false, false, 7, 2, 14, {32, 4, 2, 0, 3, 6, 7}},  // 45%
    {Operation::kCorrelation, false, false, 7, 2, 28, {16, 8, 2, 0, 2, 6, 7}},  // 49%
    {Operation::kCorrelation, false, false, 7, 2, 7, {32, 4, 7, 0, 2, 3, 7}},  // 41%
    {Operation::kCorrelation, false, true, 3, 1, 112, {32, 8, 2, 0, 2, 4, 7}},  // 83%
    {Operation::kCorrelation, false, true, 7, 1, 14, {64, 8, 1, 0, 3, 4, 7}},  // 68%
    {Operation::kCorrelation, false, true, 7, 1, 28, {64, 4, 1, 0, 3, 4, 7}},  // 68%
    {Operation::kCorrelation, false, true, 7, 1, 336, {64, 4, 1, 0, 3, 4, 7}},  // 74%
    {Operation::kCorrelation, false, true, 7, 1, 56, {64, 2, 1, 0, 3, 4, 7}},  // 76%
    {Operation::kCorrelation, false, true, 7, 1, 7, {64, 1, 7, 0, 2, 4, 4}},  // 63%
    {Operation::kCorrelation, false, true, 7, 2, 14, {64, 1, 2, 0, 3, 4, 7}},  // 71%
    {Operation::kCorrelation, false, true, 7, 2, 28, {64, 1, 2, 0, 3, 4, 7}},  // 72%
    {Operation::kCorrelation, false, true, 7, 2, 7, {64, 1, 2, 0, 3, 4, 7}},  // 76%
    {Operation::kCorrelation, true, false, 3, 1, 112, {64, 7, 7, 0, 3, 6, 1}},  // 42%
    {Operation::kCorrelation, true, false, 7, 1, 14, {128, 2, 2, 0, 4, 6, 1}},  // 39%
    {Operation::kCorrelation, true, false, 7, 1, 28, {64, 7, 2, 0, 3, 6, 1}},  // 48%
    {Operation::kCorrelation, true, false, 7, 1, 336, {64, 6, 1, 0, 3, 6, 1}},  // 62%
    {Operation::kCorrelation, true, false, 7, 1, 56, {64, 7, 1, 0, 4, 6, 1}},  // 59%
    {Operation::kCorrelation, true, false, 7, 1, 7, {128, 1, 7, 0, 2, 6, 1}},  // 27%
    {Operation::kCorrelation, true, false, 7, 2, 14, {32, 7, 14, 0, 2, 4, 1}},  // 45%
    {Operation::kCorrelation, true, false, 7, 2, 28, {32, 7, 1, 0, 3, 6, 1}},  // 47%
    {Operation::kCorrelation, true, false, 7, 2, 7, {128, 7, 7, 0, 2, 4, 1}},  // 39%
    {Operation::kCorrelation, true, true, 3, 1, 112, {64, 4, 1, 0, 3, 6, 1}},  // 32%
    {Operation::kCorrelation, true, true, 7, 1, 14, {64, 7, 1, 0, 4, 6, 1}},  // 60%
    {Operation::kCorrelation, true, true, 7, 1, 28, {128, 2, 2, 0, 4, 6, 1}},  // 58%
    {Operation::kCorrelation, true, true, 7, 1, 336, {128, 3, 1, 0, 3, 6, 1}},  // 72%
    {Operation::kCorrelation, true, true, 7, 1, 56, {64, 7, 1, 0, 4, 6, 1}},  // 61%
    {Operation::kCorrelation, true, true, 7, 1, 7, {128, 1, 7, 0, 4, 6, 1}},  // 51%
    {Operation::kCorrelation, true, true, 7, 2, 14, {64, 7, 1, 0, 4, 6, 1}},  // 69%
    {Operation::kCorrelation, true, true, 7, 2, 28, {64, 2, 1, 0, 4, 6, 1}},  // 61%
    {Operation::kCorrelation, true, true, 7, 2, 7, {128, 1, 7, 0, 3, 6, 1}},  // 61%
    {Operation::kInvolution, false, false, 3, 1, 112, {16, 8, 2, 0, 3, 4, 1}},  // 63%
    {Operation::kInvolution, false, false, 7, 1, 14, {64, 2, 2, 0, 2, 6, 1}},  // 43%
    {Operation::kInvolution, false, false, 7, 1, 28, {32, 4, 2, 0, 2, 4, 1}},  // 54%
    {Operation::kInvolution, false, false, 7, 1, 336, {16, 8, 1, 0, 2, 4, 1}},  // 69%
    {Operation::kInvolution, false, false, 7, 1, 56, {16, 8, 2, 0, 2, 4, 1}},  // 66%
    {Operation::kInvolution, false, false, 7, 1, 7, {64, 2, 7, 0, 2, 4, 1}},  // 57%
    {Operation::kInvolution, false, false, 7, 2, 14, {32, 2, 2, 0, 2, 6, 1}},  // 42%
    {Operation::kInvolution, false, false, 7, 2, 28, {16, 8, 2, 0, 2, 6, 1}},  // 49%
    {Operation::kInvolution, false, false, 7, 2, 7, {64, 2, 7, 0, 2, 6, 1}},  // 40%
    {Operation::kInvolution, false, true, 3, 1, 112, {32, 8, 2, 0, 2, 4, 1}},  // 82%
    {Operation::kInvolution, false, true, 7, 1, 14, {64, 2, 2, 0, 2, 4, 1}},  // 58%
    {Operation::kInvolution, false, true, 7, 1, 28, {64, 2, 2, 0, 2, 4, 1}},  // 69%
    {Operation::kInvolution, false, true, 7, 1, 336, {64, 2, 2, 0, 2, 4, 1}},  // 85%
    {Operation::kInvolution, false, true, 7, 1, 56, {128, 2, 2, 0, 2, 4, 1}},  // 78%
    {Operation::kInvolution, false, true, 7, 1, 7, {128, 2, 7, 0, 2, 4, 1}},  // 62%
    {Operation::kInvolution, false, true, 7, 2, 14, {64, 2, 1, 0, 2, 6, 1}},  // 66%
    {Operation::kInvolution, false, true, 7, 2, 28, {64, 1, 2, 0, 2, 4, 1}},  // 67%
    {Operation::kInvolution, false, true, 7, 2, 7, {64, 8, 2, 0, 2, 4, 1}},  // 62%
    {Operation::kInvolution, true, false, 3, 1, 112, {64, 7, 7, 0, 3, 6, 1}},  // 42%
    {Operation::kInvolution, true, false, 7, 1, 14, {64, 2, 14, 0, 2, 6, 1}},  // 54%
    {Operation::kInvolution, true, false, 7, 1, 28, {64, 2, 1, 0, 3, 6, 1}},  // 43%
    {Operation::kInvolution, true, false, 7, 1, 336, {64, 7, 1, 0, 3, 6, 1}},  // 69%
    {Operation::kInvolution, true, false, 7, 1, 56, {64, 7, 1, 0, 3, 6, 1}},  // 62%
    {Operation::kInvolution, true, false, 7, 1, 7, {128, 1, 7, 0, 2, 3, 1}},  // 32%
    {Operation::kInvolution, true, false, 7, 2, 14, {32, 2, 14, 0, 3, 4, 1}},  // 56%
    {Operation::kInvolution, true, false, 7, 2, 28, {64, 2, 1, 0, 3, 6, 1}},  // 45%
    {Operation::kInvolution, true, false, 7, 2, 7, {128, 5, 7, 0, 2, 4, 1}},  // 47%
    {Operation::kInvolution, true, true, 3, 1, 112, {64, 4, 1, 0, 3, 4, 1}},  // 31%
    {Operation::kInvolution, true, true, 7, 1, 14, {64, 4, 1, 0, 3, 6, 1}},  // 63%
    {Operation::kInvolution, true, true, 7, 1, 28, {64, 2, 1, 0, 4, 6, 1}},  // 56%
    {Operation::kInvolution, true, true, 7, 1, 336, {64, 3, 1, 0, 3, 4, 1}},  // 84%
    {Operation::kInvolution, true, true, 7, 1, 56, {64, 7, 1, 0, 3, 6, 1}},  // 71%
    {Operation::kInvolution, true, true, 7, 1, 7, {128, 7, 7, 0, 3, 4, 1}},  // 52%
    {Operation::kInvolution, true, true, 7, 2, 14, {64, 7, 1, 0, 4, 6, 1}},  // 72%
    {Operation::kInvolution, true, true, 7, 2, 28, {64, 2, 1, 0, 4, 6, 1}},  // 64%
    {Operation::kInvolution, true, true, 7, 2, 7, {128, 6, 7, 0, 2, 4, 1}},  // 60%
    {Operation::kTranspose, false, false, 3, 1, 112, {32, 8, 2, 0, 3, 4, 1}},  // 59%
    {Operation::kTranspose, false, false, 7, 1, 14, {32, 4, 1, 0, 3, 4, 2}},  // 33%
    {Operation::kTranspose, false, false, 7, 1, 28, {32, 4, 7, 0, 3, 3, 7}},  // 41%
    {Operation::kTranspose, false, false, 7, 1, 336, {16, 8, 1, 0, 3, 3, 7}},  // 53%
    {Operation::kTranspose, false, false, 7, 1, 56, {16, 8, 1, 0, 3, 3, 4}},  // 48%
    {Operation::kTranspose, false, false, 7, 1, 7, {32, 4, 1, 0, 3, 3, 7}},  // 29%
    {Operation::kTranspose, false, false, 7, 2, 14, {32, 8, 1, 0, 3, 3, 7}},  // 40%
    {Operation::kTranspose, false, false, 7, 2, 28, {32, 2, 1, 0, 3, 4, 7}},  // 47%
    {Operation::kTranspose, false, false, 7, 2, 56, {32, 4, 4, 0, 3, 3, 7}},  // 65%
    {Operation::kTranspose, false, true, 3, 1, 112, {32, 8, 1, 0, 3, 4, 7}},  // 81%
    {Operation::kTranspose, false, true, 7, 1, 14, {64, 1, 7, 0, 3, 4, 7}},  // 44%
    {Operation::kTranspose, false, true, 7, 1, 28, {64, 4, 7, 0, 3, 6, 4}},  // 55%
    {Operation::kTranspose, false, true, 7, 1, 336, {64, 4, 1, 0, 3, 3, 7}},  // 50%
    {Operation::kTranspose, false, true, 7, 1, 56, {64, 1, 7, 0, 3, 4, 4}},  // 46%
    {Operation::kTranspose, false, true, 7, 1, 7, {64, 1, 7, 0, 3, 4, 4}},  // 47%
    {Operation::kTranspose, false, true, 7, 2, 14, {64, 2, 2, 0, 3, 4, 1}},  // 65%
    {Operation::kTranspose, false, true, 7, 2, 28, {64, 1, 7, 0, 3, 4, 4}},  // 59%
    {Operation::kTranspose, false, true, 7, 2, 56, {32, 4, 1, 0, 3, 3, 7}},  // 63%
    {Operation::kTranspose, true, false, 3, 1, 112, {64, 4, 4, 0, 3, 4, 1}},  // 30%
    {Operation::kTranspose, true, false, 7, 1, 14, {64, 2, 4, 0, 2, 6, 1}},  // 37%
    {Operation::kTranspose, true, false, 7, 1, 28, {64, 2, 1, 0, 3, 6, 1}},  // 30%
    {Operation::kTranspose, true, false, 7, 1, 336, {64, 7, 1, 0, 3, 6, 1}},  // 49%
    {Operation::kTranspose, true, false, 7, 1, 56, {128, 7, 2, 0, 3, 6, 1}},  // 55%
    {Operation::kTranspose, true, false, 7, 1, 7, {32, 4, 14, 0, 2, 4, 1}},  // 28%
    {Operation::kTranspose, true, false, 7, 2, 14, {128, 7, 7, 0, 2, 6, 1}},  // 26%
    {Operation::kTranspose, true, false, 7, 2, 28, {32, 2, 4, 0, 3, 6, 1}},  // 48%
    {Operation::kTranspose, true, false, 7, 2, 56, {64, 1, 1, 0, 4, 6, 1}},  // 29%
    {Operation::kTranspose, true, true, 3, 1, 112, {64, 4, 4, 0, 3, 4, 1}},  // 34%
    {Operation::kTranspose, true, true, 7, 1, 14, {64, 2, 1, 0, 3, 6, 1}},  // 38%
    {Operation::kTranspose, true, true, 7, 1, 28, {64, 2, 2, 0, 3, 6, 1}},  // 44%
    {Operation::kTranspose, true, true, 7, 1, 336, {64, 3, 1, 0, 3, 4, 1}},  // 60%
    {Operation::kTranspose, true, true, 7, 1, 56, {128, 7, 1, 0, 3, 6, 1}},  // 50%
    {Operation::kTranspose, true, true, 7, 1, 7, {64, 1, 2, 0, 3, 4, 1}},  // 36%
    {Operation::kTranspose, true, true, 7, 2, 14, {128, 1, 7, 0, 3, 6, 1}},  // 44%
    {Operation::kTranspose, true, true, 7, 2, 28, {128, 5, 2, 0, 3, 4, 1}},  // 49%
    {Operation::kTranspose, true, true, 7, 2, 56, {128, 3, 2, 0, 3, 4, 1}},  // 47%
    // clang-format on
};

}  // namespace involution
