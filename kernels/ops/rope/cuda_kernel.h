// The CUDA kernel of rope and its dispatch, for the GPU and for the emulator alike.
#pragma once

#include "kernels/cuda/grid.h"
#include "kernels/ops/rope/cuda_rope.h"

namespace nibble::cuda {

template <Float16 kType>
struct Rope {
  using Params = RopeCall;
  static constexpr int kThreads = 128, kBlocksPerMultiprocessor = 8;

  NIBBLE_DEVICE static void run(const Params& p) {
    const int half = p.head_dim / 2;
    const int pairs = p.heads * half;
    uint16_t* const row = static_cast<uint16_t*>(p.x) + block_x() * p.stride;
    const int64_t angle = static_cast<int64_t>(p.positions[block_x()]) * half;
    const int i = block_y() * kThreads + thread_index();
    if (i >= pairs) return;
    const int head = i / half, pair = i % half;
    const int first = head * p.head_dim + (p.interleaved ? 2 * pair : pair);
    const int second = p.interleaved ? first + 1 : first + half;
    const float a = low_float<kType>(row[first]), b = low_float<kType>(row[second]);
    const float cosine = p.cosines[angle + pair], sine = p.sines[angle + pair];
    row[first] = float_to_16<kType>(a * cosine - b * sine);
    row[second] = float_to_16<kType>(a * sine + b * cosine);
  }
};

template <class Launcher>
Status dispatch_rope(const RopeCall& call, Launcher& launcher) {
  if (call.tokens < 1 || call.heads < 1 || call.head_dim < 2 || call.head_dim % 2 != 0 ||
      call.stride < int64_t{call.heads} * call.head_dim || call.x == nullptr ||
      call.positions == nullptr || call.cosines == nullptr || call.sines == nullptr) {
    return error(
        StatusCode::invalid_argument,
        "[rope] cuda: x, positions, a table and an even head_dim are needed; found ",
        call.tokens, " tokens, ", call.heads, " heads of ", call.head_dim, ", stride ",
        call.stride);
  }
  const Grid grid = {call.tokens, (call.heads * call.head_dim / 2 + 127) / 128};
  if (call.type == Float16::f16) {
    launcher.template launch<Rope<Float16::f16>>(grid, 0, call);
  } else {
    launcher.template launch<Rope<Float16::bf16>>(grid, 0, call);
  }
  return ok_status();
}

}  // namespace nibble::cuda
