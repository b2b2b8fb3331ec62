// rope.h's rotation on a GPU, in place.
//
//   x         [tokens, heads * head_dim] f16 or bf16; row t is at position positions[t]
//   cosines, sines  [positions, head_dim / 2] f32: RopeTable's
//
// tolerance_spec: three f32 roundings of a' and b', then one to x's type. No CUDA header;
// cuda.cu or no_cuda.cpp (unsupported). Pointers are device memory.
#pragma once

#include "kernels/base/status.h"
#include "kernels/cuda/device.h"

namespace nibble::cuda {

struct RopeCall {
  Float16 type = Float16::f16;
  void* x = nullptr;
  int64_t stride = 0;  // elements
  const int32_t* positions = nullptr;
  const float *cosines = nullptr, *sines = nullptr;
  int tokens = 0, heads = 0, head_dim = 0;
  bool interleaved = false;
};
Status run_rope(const RopeCall& call, void* stream);

}  // namespace nibble::cuda
