// The shapes of blocks that were the fastest of many on an H100 (benchmarks.tune): RedNet's maps at batch 32,
// its stem, and a detector's map and regions. make_plan takes the nearest.
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
  int64_t planes;      // images times channels
  Shape shape;         // pack, runs, rows, chunks, stages, producers, parts
};

constexpr MeasuredShape kMeasuredShapes[] = {
    // clang-format off
    {Operation::kCorrelation, false, false, 3, 1, 112, 1024, {16, 8, 2, 0, 2, 4, 2}},  // 58%
    {Operation::kCorrelation, false, false, 7, 1, 14, 131072, {16, 4, 2, 0, 3, 3, 7}},  // 42%
    {Operation::kCorrelation, false, false, 7, 1, 14, 8192, {16, 4, 2, 0, 3, 3, 7}},  // 47%
    {Operation::kCorrelation, false, false, 7, 1, 28, 4096, {64, 8, 1, 0, 3, 6, 7}},  // 49%
    {Operation::kCorrelation, false, false, 7, 1, 336, 512, {64, 4, 1, 0, 3, 6, 7}},  // 55%
    {Operation::kCorrelation, false, false, 7, 1, 56, 2048, {64, 4, 1, 0, 3, 6, 7}},  // 56%
    {Operation::kCorrelation, false, false, 7, 1, 7, 16384, {64, 1, 7, 0, 2, 3, 4}},  // 45%
    {Operation::kCorrelation, false, false, 7, 2, 14, 8192, {32, 4, 2, 0, 3, 6, 7}},  // 44%
    {Operation::kCorrelation, false, false, 7, 2, 28, 4096, {16, 8, 2, 0, 2, 6, 7}},  // 55%
    {Operation::kCorrelation, false, false, 7, 2, 7, 16384, {32, 4, 7, 0, 2, 3, 7}},  // 37%
    {Operation::kCorrelation, false, true, 3, 1, 112, 1024, {32, 8, 2, 0, 2, 3, 4}},  // 84%
    {Operation::kCorrelation, false, true, 7, 1, 14, 131072, {64, 8, 1, 0, 3, 4, 7}},  // 80%
    {Operation::kCorrelation, false, true, 7, 1, 14, 8192, {64, 8, 1, 0, 3, 4, 7}},  // 72%
    {Operation::kCorrelation, false, true, 7, 1, 28, 4096, {64, 4, 1, 0, 3, 6, 7}},  // 75%
    {Operation::kCorrelation, false, true, 7, 1, 336, 512, {64, 4, 1, 0, 3, 6, 7}},  // 86%
    {Operation::kCorrelation, false, true, 7, 1, 56, 2048, {64, 2, 1, 0, 3, 4, 7}},  // 83%
    {Operation::kCorrelation, false, true, 7, 1, 7, 16384, {128, 1, 7, 0, 3, 4, 4}},  // 63%
    {Operation::kCorrelation, false, true, 7, 2, 14, 8192, {64, 4, 2, 0, 3, 6, 7}},  // 83%
    {Operation::kCorrelation, false, true, 7, 2, 28, 4096, {64, 4, 2, 0, 3, 6, 7}},  // 86%
    {Operation::kCorrelation, false, true, 7, 2, 7, 16384, {64, 1, 2, 0, 3, 4, 7}},  // 78%
    {Operation::kCorrelation, true, false, 3, 1, 112, 1024, {64, 7, 7, 0, 3, 6, 1}},  // 46%
    {Operation::kCorrelation, true, false, 7, 1, 14, 131072, {128, 2, 2, 0, 4, 4, 1}},  // 32%
    {Operation::kCorrelation, true, false, 7, 1, 14, 8192, {128, 2, 2, 0, 4, 4, 1}},  // 40%
    {Operation::kCorrelation, true, false, 7, 1, 28, 4096, {64, 7, 2, 0, 4, 6, 1}},  // 51%
    {Operation::kCorrelation, true, false, 7, 1, 336, 512, {64, 6, 1, 0, 3, 6, 1}},  // 69%
    {Operation::kCorrelation, true, false, 7, 1, 56, 2048, {64, 7, 1, 0, 3, 4, 1}},  // 59%
    {Operation::kCorrelation, true, false, 7, 1, 7, 16384, {128, 1, 7, 0, 2, 2, 1}},  // 23%
    {Operation::kCorrelation, true, false, 7, 2, 14, 8192, {32, 2, 14, 0, 4, 6, 1}},  // 44%
    {Operation::kCorrelation, true, false, 7, 2, 28, 4096, {64, 7, 1, 0, 4, 6, 1}},  // 49%
    {Operation::kCorrelation, true, false, 7, 2, 7, 16384, {128, 7, 7, 0, 2, 4, 1}},  // 35%
    {Operation::kCorrelation, true, true, 3, 1, 112, 1024, {64, 7, 4, 0, 3, 4, 1}},  // 50%
    {Operation::kCorrelation, true, true, 7, 1, 14, 131072, {128, 3, 1, 0, 4, 4, 1}},  // 82%
    {Operation::kCorrelation, true, true, 7, 1, 14, 8192, {128, 2, 1, 0, 4, 2, 1}},  // 68%
    {Operation::kCorrelation, true, true, 7, 1, 28, 4096, {128, 2, 2, 0, 4, 6, 1}},  // 64%
    {Operation::kCorrelation, true, true, 7, 1, 336, 512, {128, 4, 1, 0, 4, 4, 1}},  // 87%
    {Operation::kCorrelation, true, true, 7, 1, 56, 2048, {128, 7, 1, 0, 3, 6, 1}},  // 71%
    {Operation::kCorrelation, true, true, 7, 1, 7, 16384, {128, 1, 7, 0, 3, 2, 1}},  // 51%
    {Operation::kCorrelation, true, true, 7, 2, 14, 8192, {128, 7, 1, 0, 4, 6, 1}},  // 73%
    {Operation::kCorrelation, true, true, 7, 2, 28, 4096, {128, 2, 1, 0, 4, 4, 1}},  // 66%
    {Operation::kCorrelation, true, true, 7, 2, 7, 16384, {128, 1, 7, 0, 3, 6, 1}},  // 58%
    {Operation::kInvolution, false, false, 3, 1, 112, 1024, {16, 8, 2, 0, 3, 4, 1}},  // 72%
    {Operation::kInvolution, false, false, 7, 1, 14, 131072, {64, 8, 2, 0, 2, 4, 1}},  // 55%
    {Operation::kInvolution, false, false, 7, 1, 14, 8192, {64, 8, 2, 0, 2, 4, 1}},  // 44%
    {Operation::kInvolution, false, false, 7, 1, 28, 4096, {32, 4, 2, 0, 2, 4, 1}},  // 54%
    {Operation::kInvolution, false, false, 7, 1, 336, 512, {16, 8, 2, 0, 2, 4, 1}},  // 76%
    {Operation::kInvolution, false, false, 7, 1, 56, 2048, {16, 8, 2, 0, 2, 4, 1}},  // 71%
    {Operation::kInvolution, false, false, 7, 1, 7, 16384, {64, 1, 7, 0, 3, 4, 1}},  // 52%
    {Operation::kInvolution, false, false, 7, 2, 14, 8192, {16, 8, 2, 0, 2, 3, 2}},  // 46%
    {Operation::kInvolution, false, false, 7, 2, 28, 4096, {16, 8, 2, 0, 2, 4, 2}},  // 56%
    {Operation::kInvolution, false, false, 7, 2, 7, 16384, {32, 1, 2, 0, 2, 4, 1}},  // 36%
    {Operation::kInvolution, false, true, 3, 1, 112, 1024, {32, 8, 2, 0, 2, 4, 1}},  // 83%
    {Operation::kInvolution, false, true, 7, 1, 14, 131072, {64, 2, 2, 0, 2, 4, 1}},  // 77%
    {Operation::kInvolution, false, true, 7, 1, 14, 8192, {128, 8, 2, 0, 2, 4, 1}},  // 57%
    {Operation::kInvolution, false, true, 7, 1, 28, 4096, {128, 2, 2, 0, 2, 4, 1}},  // 69%
    {Operation::kInvolution, false, true, 7, 1, 336, 512, {64, 2, 2, 0, 2, 4, 1}},  // 86%
    {Operation::kInvolution, false, true, 7, 1, 56, 2048, {128, 2, 2, 0, 2, 4, 1}},  // 77%
    {Operation::kInvolution, false, true, 7, 1, 7, 16384, {128, 2, 7, 0, 2, 4, 1}},  // 59%
    {Operation::kInvolution, false, true, 7, 2, 14, 8192, {64, 2, 1, 0, 2, 6, 1}},  // 66%
    {Operation::kInvolution, false, true, 7, 2, 28, 4096, {128, 2, 1, 0, 2, 4, 1}},  // 74%
    {Operation::kInvolution, false, true, 7, 2, 7, 16384, {64, 8, 2, 0, 2, 4, 1}},  // 61%
    {Operation::kInvolution, true, false, 3, 1, 112, 1024, {64, 7, 7, 0, 3, 6, 1}},  // 44%
    {Operation::kInvolution, true, false, 7, 1, 14, 131072, {128, 7, 2, 0, 3, 4, 1}},  // 38%
    {Operation::kInvolution, true, false, 7, 1, 14, 8192, {64, 2, 14, 0, 2, 6, 1}},  // 48%
    {Operation::kInvolution, true, false, 7, 1, 28, 4096, {64, 2, 1, 0, 3, 3, 1}},  // 45%
    {Operation::kInvolution, true, false, 7, 1, 336, 512, {64, 7, 1, 0, 3, 6, 1}},  // 73%
    {Operation::kInvolution, true, false, 7, 1, 56, 2048, {64, 7, 1, 0, 3, 6, 1}},  // 65%
    {Operation::kInvolution, true, false, 7, 1, 7, 16384, {128, 1, 7, 0, 3, 3, 1}},  // 28%
    {Operation::kInvolution, true, false, 7, 2, 14, 8192, {32, 2, 14, 0, 3, 4, 1}},  // 53%
    {Operation::kInvolution, true, false, 7, 2, 28, 4096, {32, 7, 1, 0, 3, 4, 1}},  // 52%
    {Operation::kInvolution, true, false, 7, 2, 7, 16384, {128, 5, 7, 0, 2, 4, 1}},  // 42%
    {Operation::kInvolution, true, true, 3, 1, 112, 1024, {32, 4, 1, 0, 3, 4, 1}},  // 37%
    {Operation::kInvolution, true, true, 7, 1, 14, 131072, {128, 4, 2, 0, 4, 6, 1}},  // 62%
    {Operation::kInvolution, true, true, 7, 1, 14, 8192, {64, 2, 1, 0, 4, 4, 1}},  // 67%
    {Operation::kInvolution, true, true, 7, 1, 28, 4096, {64, 2, 1, 0, 3, 2, 1}},  // 59%
    {Operation::kInvolution, true, true, 7, 1, 336, 512, {64, 3, 1, 0, 3, 4, 1}},  // 86%
    {Operation::kInvolution, true, true, 7, 1, 56, 2048, {128, 7, 1, 0, 3, 6, 1}},  // 72%
    {Operation::kInvolution, true, true, 7, 1, 7, 16384, {128, 1, 7, 0, 4, 4, 1}},  // 49%
    {Operation::kInvolution, true, true, 7, 2, 14, 8192, {64, 3, 1, 0, 4, 4, 1}},  // 75%
    {Operation::kInvolution, true, true, 7, 2, 28, 4096, {64, 2, 1, 0, 4, 6, 1}},  // 71%
    {Operation::kInvolution, true, true, 7, 2, 7, 16384, {128, 1, 7, 0, 2, 4, 1}},  // 57%
    {Operation::kTranspose, false, false, 3, 1, 112, 1024, {32, 8, 2, 0, 3, 4, 1}},  // 74%
    {Operation::kTranspose, false, false, 7, 1, 14, 131072, {64, 4, 1, 0, 3, 3, 7}},  // 49%
    {Operation::kTranspose, false, false, 7, 1, 14, 8192, {32, 4, 1, 0, 3, 4, 2}},  // 41%
    {Operation::kTranspose, false, false, 7, 1, 28, 4096, {32, 4, 7, 0, 3, 3, 7}},  // 56%
    {Operation::kTranspose, false, false, 7, 1, 336, 512, {16, 8, 1, 0, 3, 3, 7}},  // 74%
    {Operation::kTranspose, false, false, 7, 1, 56, 2048, {16, 8, 1, 0, 3, 3, 4}},  // 68%
    {Operation::kTranspose, false, false, 7, 1, 7, 16384, {32, 4, 1, 0, 3, 3, 7}},  // 36%
    {Operation::kTranspose, false, false, 7, 2, 14, 16384, {32, 8, 1, 0, 3, 3, 7}},  // 43%
    {Operation::kTranspose, false, false, 7, 2, 28, 8192, {32, 2, 1, 0, 3, 4, 7}},  // 54%
    {Operation::kTranspose, false, false, 7, 2, 56, 4096, {32, 4, 4, 0, 3, 3, 7}},  // 72%
    {Operation::kTranspose, false, true, 3, 1, 112, 1024, {32, 8, 1, 0, 3, 2, 7}},  // 84%
    {Operation::kTranspose, false, true, 7, 1, 14, 131072, {64, 4, 1, 0, 3, 3, 1}},  // 75%
    {Operation::kTranspose, false, true, 7, 1, 14, 8192, {64, 4, 1, 0, 3, 3, 7}},  // 58%
    {Operation::kTranspose, false, true, 7, 1, 28, 4096, {64, 4, 2, 0, 3, 3, 7}},  // 66%
    {Operation::kTranspose, false, true, 7, 1, 336, 512, {64, 4, 4, 0, 3, 3, 7}},  // 83%
    {Operation::kTranspose, false, true, 7, 1, 56, 2048, {64, 4, 1, 0, 3, 3, 2}},  // 77%
    {Operation::kTranspose, false, true, 7, 1, 7, 16384, {64, 1, 7, 0, 3, 4, 4}},  // 52%
    {Operation::kTranspose, false, true, 7, 2, 14, 16384, {64, 4, 1, 0, 3, 2, 7}},  // 70%
    {Operation::kTranspose, false, true, 7, 2, 28, 8192, {64, 4, 2, 0, 3, 3, 7}},  // 76%
    {Operation::kTranspose, false, true, 7, 2, 56, 4096, {64, 4, 1, 0, 3, 6, 7}},  // 79%
    {Operation::kTranspose, true, false, 3, 1, 112, 1024, {32, 4, 4, 0, 4, 2, 1}},  // 38%
    {Operation::kTranspose, true, false, 7, 1, 14, 131072, {64, 2, 4, 0, 2, 6, 1}},  // 41%
    {Operation::kTranspose, true, false, 7, 1, 14, 8192, {64, 2, 4, 0, 2, 6, 1}},  // 38%
    {Operation::kTranspose, true, false, 7, 1, 28, 4096, {32, 7, 2, 0, 3, 4, 1}},  // 47%
    {Operation::kTranspose, true, false, 7, 1, 336, 512, {64, 7, 1, 0, 3, 4, 1}},  // 66%
    {Operation::kTranspose, true, false, 7, 1, 56, 2048, {128, 7, 2, 0, 3, 6, 1}},  // 55%
    {Operation::kTranspose, true, false, 7, 1, 7, 16384, {32, 2, 14, 0, 2, 3, 1}},  // 25%
    {Operation::kTranspose, true, false, 7, 2, 14, 16384, {128, 7, 7, 0, 2, 6, 1}},  // 25%
    {Operation::kTranspose, true, false, 7, 2, 28, 8192, {64, 7, 4, 0, 3, 6, 1}},  // 46%
    {Operation::kTranspose, true, false, 7, 2, 56, 4096, {64, 1, 1, 0, 3, 2, 1}},  // 35%
    {Operation::kTranspose, true, true, 3, 1, 112, 1024, {64, 7, 7, 0, 3, 4, 1}},  // 47%
    {Operation::kTranspose, true, true, 7, 1, 14, 131072, {128, 5, 2, 0, 3, 4, 1}},  // 52%
    {Operation::kTranspose, true, true, 7, 1, 14, 8192, {64, 5, 1, 0, 3, 4, 1}},  // 45%
    {Operation::kTranspose, true, true, 7, 1, 28, 4096, {64, 4, 2, 0, 3, 6, 1}},  // 53%
    {Operation::kTranspose, true, true, 7, 1, 336, 512, {64, 3, 1, 0, 3, 4, 1}},  // 77%
    {Operation::kTranspose, true, true, 7, 1, 56, 2048, {128, 7, 1, 0, 3, 6, 1}},  // 61%
    {Operation::kTranspose, true, true, 7, 1, 7, 16384, {128, 2, 2, 0, 3, 6, 1}},  // 36%
    {Operation::kTranspose, true, true, 7, 2, 14, 16384, {128, 2, 14, 0, 3, 4, 1}},  // 43%
    {Operation::kTranspose, true, true, 7, 2, 28, 8192, {128, 7, 1, 0, 3, 4, 1}},  // 58%
    {Operation::kTranspose, true, true, 7, 2, 56, 4096, {64, 7, 2, 0, 3, 4, 1}},  // 65%
    // clang-format on
};

}  // namespace involution
