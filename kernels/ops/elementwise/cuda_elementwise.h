// y = a + b on a GPU, rounded once.
//
//   a, b, y  [tokens, cols] f16 or bf16; y may be one of the others
//
// No CUDA header; cuda.cu or no_cuda.cpp (unsupported). Pointers are device memory.
#pragma once

#include "kernels/base/status.h"
#include "kernels/cuda/device.h"

namespace nibble::cuda {

struct AddCall {
  Float16 type = Float16::f16;
  const void *a = nullptr, *b = nullptr;
  int64_t a_stride = 0, b_stride = 0;  // elements
  void* y = nullptr;
  int64_t y_stride = 0;
  int tokens = 0, cols = 0;
};
Status run_elementwise(const AddCall& call, void* stream);

}  // namespace nibble::cuda
