// rms_norm.h's rows on a GPU, a block a row.
//
//   x  [rows, D] f16 or bf16   weight  [D] f32   y  [rows, D] f16, bf16 or f32, may be x
//   add  [rows, D] of x's type or null: x + add, rounded to the type, is what is normed,
//        and what sum gets; sum may be x or add
//
// parts: rows of x that lie side by side, as heads do: row r is part r % parts of line
// r / parts, and strides are from line to line.
//
// tolerance_spec: rms_norm.h's of the rounded x, and half a unit in y's last place. The
// sum's order is fixed. No CUDA header; cuda.cu or no_cuda.cpp (unsupported). Pointers
// are device memory.
#pragma once

#include "kernels/base/status.h"
#include "kernels/cuda/device.h"

namespace nibble::cuda {

struct RmsNormCall {
  Float16 input = Float16::f16;
  Output output = Output::f16;
  const void* x = nullptr;
  int64_t x_stride = 0;  // elements
  const void* add = nullptr;
  int64_t add_stride = 0;
  void* sum = nullptr;
  int64_t sum_stride = 0;
  const float* weight = nullptr;
  float epsilon = 0;
  void* y = nullptr;
  int64_t y_stride = 0;
  int rows = 0, cols = 0;
  int parts = 1;
};
Status run_rms_norm(const RmsNormCall& call, void* stream);

}  // namespace nibble::cuda
