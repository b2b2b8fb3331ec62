// The CUDA kernel of add and its dispatch, for the GPU and for the emulator alike.
#pragma once

#include "kernels/cuda/grid.h"
#include "kernels/ops/elementwise/cuda_elementwise.h"

namespace nibble::cuda {

template <Float16 kType>
struct Add {
  using Params = AddCall;
  static constexpr int kThreads = 256, kBlocksPerMultiprocessor = 8;

  NIBBLE_DEVICE static void run(const Params& p) {
    const int c = block_y() * kThreads + thread_index();
    if (c >= p.cols) return;
    const auto at = [&](const void* x, int64_t stride) {
      return low_float<kType>(static_cast<const uint16_t*>(x)[block_x() * stride + c]);
    };
    static_cast<uint16_t*>(p.y)[block_x() * p.y_stride + c] =
        float_to_16<kType>(at(p.a, p.a_stride) + at(p.b, p.b_stride));
  }
};

template <class Launcher>
Status dispatch_elementwise(const AddCall& call, Launcher& launcher) {
  if (call.tokens < 1 || call.cols < 1 || call.a_stride < call.cols ||
      call.b_stride < call.cols || call.y_stride < call.cols || call.a == nullptr ||
      call.b == nullptr || call.y == nullptr) {
    return error(StatusCode::invalid_argument,
                 "[add] cuda: a, b, y and strides of at least ", call.cols,
                 " are needed; found ", call.tokens, " tokens, strides ", call.a_stride,
                 ", ", call.b_stride, ", ", call.y_stride);
  }
  const Grid grid = {call.tokens, (call.cols + 255) / 256};
  if (call.type == Float16::f16) {
    launcher.template launch<Add<Float16::f16>>(grid, 0, call);
  } else {
    launcher.template launch<Add<Float16::bf16>>(grid, 0, call);
  }
  return ok_status();
}

}  // namespace nibble::cuda
