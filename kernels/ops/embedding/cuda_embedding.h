// Rows of a table of 16-bit floats on a GPU: y[t, :] = table[ids[t], :], bit for bit.
//
//   table  [V, D]   ids  [tokens], each in [0, V)   y  [tokens, D], 16-bit like the table
//
// No CUDA header; cuda.cu or no_cuda.cpp (unsupported). Pointers are device memory.
#pragma once

#include "kernels/base/status.h"
#include "kernels/cuda/device.h"

namespace nibble::cuda {

struct EmbeddingCall {
  const void* table = nullptr;
  const int32_t* ids = nullptr;
  void* y = nullptr;
  int64_t y_stride = 0;  // elements
  int tokens = 0, cols = 0;
};
Status run_embedding(const EmbeddingCall& call, void* stream);

}  // namespace nibble::cuda
