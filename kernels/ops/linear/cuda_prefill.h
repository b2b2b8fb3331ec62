// What stands around a product of many tokens (kernels/cuda/blas.h) on a GPU: a weight's
// codes row by row before it, scales and bias behind it.
//
// run_unpack_codes: codes of the forms int8_s8 (int8) and e4m3, as pack_linear laid them
// out, to [rows, stride] bytes; columns cols .. stride - 1 become 0.
//
// run_epilogue: sums [tokens, rows] of codes (or of floats) to y
//   y[t, n] = (sums[t, n] s_w[n]) s_x[t] + bias[n]
// each factor where it is given. int32 sums of int8 codes: linear.h's definition for one
// scale a row, bit for bit. FP8 codes: cuda_layout.h's scales are for 2^-8 of a code.
//
// No CUDA header; cuda.cu or no_cuda.cpp (unsupported). Pointers are device memory.
#pragma once

#include "kernels/ops/linear/cuda_linear.h"

namespace nibble::cuda {

struct UnpackCodesCall {
  LinearForm form = LinearForm::int8_s8;  // or e4m3
  int rows = 0, cols = 0, tiles = 0, units = 0;
  const void* codes = nullptr;
  void* w = nullptr;
  int64_t stride = 0;
};
Status run_unpack_codes(const UnpackCodesCall& call, void* stream);

struct EpilogueCall {
  bool int_sums = false;  // int32, else f32
  const void* sums = nullptr;
  int64_t sums_stride = 0;          // elements
  const float* w_scales = nullptr;  // as packed, one a row; or null
  float w_unit = 1;                 // 2^-8 of e4m3
  const float* x_scales = nullptr;  // [tokens] or null
  const float* bias = nullptr;      // [rows] or null
  Output output = Output::f16;
  void* y = nullptr;
  int64_t y_stride = 0;
  int rows = 0, tokens = 0;
};
Status run_epilogue(const EpilogueCall& call, void* stream);

}  // namespace nibble::cuda
