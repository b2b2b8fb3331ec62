// The gate of a Llama MLP on a GPU: y = gate / (1 + exp(-gate)) * up.
//
//   gate, up, y  [tokens, cols] f16 or bf16; y may be one of the others
//
// tolerance_spec: |y - reference| <= (16 + 2 |gate|) 2^-24 |reference| + 2^-120 |up| +
// half a unit in y's last place: log2(e) gate is rounded, which the power of two
// multiplies. No CUDA header; cuda.cu or no_cuda.cpp (unsupported). Pointers are device
// memory.
#pragma once

#include "kernels/base/status.h"
#include "kernels/cuda/device.h"

namespace nibble::cuda {

struct SiluMulCall {
  Float16 type = Float16::f16;
  const void *gate = nullptr, *up = nullptr;
  int64_t gate_stride = 0, up_stride = 0;  // elements
  void* y = nullptr;
  int64_t y_stride = 0;
  int tokens = 0, cols = 0;
};
Status run_silu_mul(const SiluMulCall& call, void* stream);

}  // namespace nibble::cuda
