// The CUDA kernel of next_token and its dispatch, for the GPU and for the emulator alike.
#pragma once

#include "kernels/cuda/grid.h"
#include "kernels/ops/next_token/cuda_next_token.h"

namespace nibble::cuda {

// One block: logits are few beside the weights that made them.
struct NextToken {
  using Params = NextTokenCall;
  static constexpr int kThreads = 1024, kBlocksPerMultiprocessor = 1;
  static constexpr int kWarps = kThreads / 32, kSharedBytes = kWarps * 8;

  // The larger of two choices, of equal ones the earlier.
  NIBBLE_DEVICE static void take(float& value, int& index, float other, int at) {
    if (other > value || (other == value && at < index)) value = other, index = at;
  }

  NIBBLE_DEVICE static void run(const Params& p) {
    float* const values = reinterpret_cast<float*>(shared_memory());
    int* const indices = reinterpret_cast<int*>(values + kWarps);
    float value = -3.402823466e38f;
    int index = 0x7fffffff;
    for (int i = thread_index(); i < p.vocabulary; i += kThreads)
      take(value, index, p.logits[i], i);
    NIBBLE_UNROLL
    for (int mask = 16; mask > 0; mask /= 2) {
      const float other = shuffle_xor(value, mask);
      const uint32_t at =
          shuffle(static_cast<uint32_t>(index), thread_index() % 32 ^ mask);
      take(value, index, other, static_cast<int>(at));
    }
    if (thread_index() % 32 == 0) {
      values[thread_index() / 32] = value;
      indices[thread_index() / 32] = index;
    }
    sync_threads();
    if (thread_index() != 0) return;
    for (int w = 1; w < kWarps; ++w) take(value, index, values[w], indices[w]);
    if (index == 0x7fffffff) index = 0;  // no number among them
    *p.id = index;
    *p.position += 1;
    *p.length += 1;
    if (*p.count < p.room) p.chosen[*p.count] = index;
    *p.count += 1;
  }
};

template <class Launcher>
Status dispatch_next_token(const NextTokenCall& call, Launcher& launcher) {
  if (call.vocabulary < 1 || call.room < 1 || call.logits == nullptr ||
      call.id == nullptr || call.position == nullptr || call.length == nullptr ||
      call.chosen == nullptr || call.count == nullptr) {
    return error(StatusCode::invalid_argument,
                 "[next_token] cuda: logits, room and all pointers are needed; found ",
                 call.vocabulary, " logits, room for ", call.room);
  }
  launcher.template launch<NextToken>(Grid{}, NextToken::kSharedBytes, call);
  return ok_status();
}

}  // namespace nibble::cuda
