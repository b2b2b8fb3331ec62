// The CUDA kernel of silu_mul and its dispatch, for the GPU and for the emulator alike.
#pragma once

#include "kernels/cuda/grid.h"
#include "kernels/ops/silu_mul/cuda_silu_mul.h"

namespace nibble::cuda {

template <Float16 kType>
struct SiluMul {
  using Params = SiluMulCall;
  static constexpr int kThreads = 256, kBlocksPerMultiprocessor = 8;

  NIBBLE_DEVICE static void run(const Params& p) {
    const int c = block_y() * kThreads + thread_index();
    if (c >= p.cols) return;
    const float gate = low_float<kType>(
        static_cast<const uint16_t*>(p.gate)[block_x() * p.gate_stride + c]);
    const float up =
        low_float<kType>(static_cast<const uint16_t*>(p.up)[block_x() * p.up_stride + c]);
    // Of a gate below -87 e^-gate is beyond f32, and the quotient is 0, as it should be.
    const float grown = power_of_2(gate * -1.44269504088896341f);
    static_cast<uint16_t*>(p.y)[block_x() * p.y_stride + c] =
        float_to_16<kType>(quotient(gate, 1.0f + grown) * up);
  }
};

template <class Launcher>
Status dispatch_silu_mul(const SiluMulCall& call, Launcher& launcher) {
  if (call.tokens < 1 || call.cols < 1 || call.gate_stride < call.cols ||
      call.up_stride < call.cols || call.y_stride < call.cols || call.gate == nullptr ||
      call.up == nullptr || call.y == nullptr) {
    return error(StatusCode::invalid_argument,
                 "[silu_mul] cuda: gate, up, y and strides of at least ", call.cols,
                 " are needed; found ", call.tokens, " tokens, strides ",
                 call.gate_stride, ", ", call.up_stride, ", ", call.y_stride);
  }
  const Grid grid = {call.tokens, (call.cols + 255) / 256};
  if (call.type == Float16::f16) {
    launcher.template launch<SiluMul<Float16::f16>>(grid, 0, call);
  } else {
    launcher.template launch<SiluMul<Float16::bf16>>(grid, 0, call);
  }
  return ok_status();
}

}  // namespace nibble::cuda
