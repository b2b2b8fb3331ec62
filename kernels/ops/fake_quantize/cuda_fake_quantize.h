// Fake quantization of f32 tensors by integer codes on a GPU, for QAT.
//
//   forward   u = x / s,  v = rint(clamp(u, lowest - z, highest - z)),  y = s v
//   backward  dx = dy where lowest - z <= u <= highest - z, else 0
//             ds of a cell = sum of dy (v - u inside the range, v outside it)
//             dz of a cell = -s sum of dy outside
//             (Esser et al., arXiv 1902.08153, eq. 3; Bhalgat et al., 2004.09576, eq. 8)
//
//   x, y, dy, dx  [rows, cols] f32
//   s, z          cell (r, j) governs columns j group .. of row r and lies at
//                 [r row_step + j group_step]: steps of 0 share a scale; z null: 0
//   ds, dz        [rows, groups], of the cell alone: who shares a scale adds them; either
//                 may be null
//
// Forward and dx: bit for bit kernels/scheme's quantize and dequantize. tolerance_spec of
// ds and dz: (n + 8) 2^-24 times the sum of the n terms' magnitudes; the order is fixed.
// No CUDA header; cuda.cu or no_cuda.cpp (unsupported). Pointers are device memory.
#pragma once

#include "kernels/base/status.h"
#include "kernels/cuda/device.h"

namespace nibble::cuda {

struct FakeQuantizeCall {
  const float* x = nullptr;
  const float *scales = nullptr, *zeros = nullptr;
  int64_t row_step = 0, group_step = 0;
  float* y = nullptr;
  int64_t rows = 0;
  int cols = 0, group = 0;
  float lowest = 0, highest = 0;  // codes
};
Status run_fake_quantize(const FakeQuantizeCall& call, void* stream);

struct FakeQuantizeGradientCall {
  FakeQuantizeCall forward;  // y is not read
  const float* dy = nullptr;
  float *dx = nullptr, *ds = nullptr, *dz = nullptr;
};
Status run_fake_quantize_gradient(const FakeQuantizeGradientCall& call, void* stream);

}  // namespace nibble::cuda
