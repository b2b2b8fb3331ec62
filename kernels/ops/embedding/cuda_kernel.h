// The CUDA kernel of embedding and its dispatch, for the GPU and for the emulator alike.
#pragma once

#include "kernels/cuda/grid.h"
#include "kernels/ops/embedding/cuda_embedding.h"

namespace nibble::cuda {

struct Embedding {
  using Params = EmbeddingCall;
  static constexpr int kThreads = 128, kBlocksPerMultiprocessor = 8;

  NIBBLE_DEVICE static void run(const Params& p) {
    const int c = block_y() * kThreads + thread_index();
    if (c >= p.cols) return;
    const int64_t row = p.ids[block_x()];
    static_cast<uint16_t*>(p.y)[block_x() * p.y_stride + c] =
        static_cast<const uint16_t*>(p.table)[row * p.cols + c];
  }
};

template <class Launcher>
Status dispatch_embedding(const EmbeddingCall& call, Launcher& launcher) {
  if (call.tokens < 1 || call.cols < 1 || call.y_stride < call.cols ||
      call.table == nullptr || call.ids == nullptr || call.y == nullptr) {
    return error(StatusCode::invalid_argument,
                 "[embedding] cuda: a table, ids and y are needed; found ", call.tokens,
                 " tokens of ", call.cols, ", stride ", call.y_stride);
  }
  const Grid grid = {call.tokens,
                     (call.cols + Embedding::kThreads - 1) / Embedding::kThreads};
  launcher.template launch<Embedding>(grid, 0, call);
  return ok_status();
}

}  // namespace nibble::cuda
