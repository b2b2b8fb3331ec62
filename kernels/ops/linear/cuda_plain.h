// A linear layer of 16-bit floats on a GPU: what stays unquantized in a quantized model.
//
// y[t, n] = sum_k x[t, k] w[n, k] + bias[n]
//
//   x  [tokens, K], w  [N, K]  both f16 or both bf16
//   bias  [N] f32 or null      y  [tokens, N] f16, bf16 or f32
//
// tolerance_spec: |y - reference| <= linear_tolerance(K) (sum_k |x| |w| + |bias|) and
// half a unit in y's last place. A warp has a row and 8 tokens: w is read once per 8
// tokens. The order of the sum is fixed. No CUDA header; cuda.cu or no_cuda.cpp
// (unsupported). Pointers are device memory.
#pragma once

#include "kernels/base/status.h"
#include "kernels/cuda/device.h"

namespace nibble::cuda {

struct PlainLinearCall {
  Float16 type = Float16::f16;
  Output output = Output::f16;
  int rows = 0, cols = 0;
  const void* w = nullptr;
  const void* x = nullptr;
  int64_t x_stride = 0;  // elements
  int tokens = 0;
  const float* bias = nullptr;
  void* y = nullptr;
  int64_t y_stride = 0;
};
Status run_plain_linear(const PlainLinearCall& call, void* stream);

}  // namespace nibble::cuda
