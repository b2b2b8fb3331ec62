// The greedy choice on a GPU, so that decoding never waits for the host: the largest
// logit's index becomes the next token, and the sequence is one position longer.
//
//   logits    [vocabulary] f32; of equal ones the first is taken, NaN never
//   id        the token that was run: becomes the choice
//   position  its position: + 1      length  positions in the cache: + 1
//   chosen    chosen[count] becomes the choice, if there is room; count: + 1
//
// No CUDA header; cuda.cu or no_cuda.cpp (unsupported). Pointers are device memory.
#pragma once

#include "kernels/base/status.h"
#include "kernels/cuda/device.h"

namespace nibble::cuda {

struct NextTokenCall {
  const float* logits = nullptr;
  int vocabulary = 0;
  int32_t *id = nullptr, *position = nullptr, *length = nullptr;
  int32_t* chosen = nullptr;
  int32_t* count = nullptr;
  int room = 0;  // of chosen
};
Status run_next_token(const NextTokenCall& call, void* stream);

}  // namespace nibble::cuda
