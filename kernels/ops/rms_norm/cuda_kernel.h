// The CUDA kernel of rms_norm and its dispatch, for the GPU and for the emulator alike.
#pragma once

#include "kernels/cuda/grid.h"
#include "kernels/ops/rms_norm/cuda_rms_norm.h"

namespace nibble::cuda {

template <Float16 kInput>
struct RmsNorm {
  using Params = RmsNormCall;
  static constexpr int kThreads = 256, kBlocksPerMultiprocessor = 4;
  static constexpr int kSharedBytes = kThreads / 32 * 4;

  // Calls take(column, word of two numbers) or take_last(column, number) for the columns
  // of this thread; pairs where a row starts on a word.
  template <class Take>
  NIBBLE_DEVICE static void for_columns(const Params& p, const uint16_t* row, Take take) {
    const bool paired = reinterpret_cast<uintptr_t>(row) % 4 == 0;
    const int pairs = paired ? p.cols / 2 : 0;
    for (int i = thread_index(); i < pairs; i += kThreads) {
      const uint32_t pair = reinterpret_cast<const uint32_t*>(row)[i];
      take(2 * i, low_float<kInput>(pair));
      take(2 * i + 1, high_float<kInput>(pair));
    }
    for (int c = 2 * pairs + thread_index(); c < p.cols; c += kThreads) {
      take(c, low_float<kInput>(row[c]));
    }
  }

  NIBBLE_DEVICE static void run(const Params& p) {
    float* const sums = reinterpret_cast<float*>(shared_memory());
    const uint16_t* const row =
        static_cast<const uint16_t*>(p.x) + block_x() * p.x_stride;
    float sum = 0;
    for_columns(p, row, [&](int, float x) { sum = fused(x, x, sum); });
    sum = warp_sum(sum);
    if (thread_index() % 32 == 0) sums[thread_index() / 32] = sum;
    sync_threads();
    float total = 0;
    for (int w = 0; w < kThreads / 32; ++w) total = total + sums[w];
    const float scale =
        quotient(1.0f, root(quotient(total, static_cast<float>(p.cols)) + p.epsilon));
    for_columns(p, row, [&](int c, float x) {
      store_output(p.y, block_x() * p.y_stride + c, p.output, x * scale * p.weight[c]);
    });
  }
};

template <class Launcher>
Status dispatch_rms_norm(const RmsNormCall& call, Launcher& launcher) {
  if (call.rows < 1 || call.cols < 1 || call.x == nullptr || call.weight == nullptr ||
      call.y == nullptr) {
    return error(
        StatusCode::invalid_argument,
        "[rms_norm] cuda: x, weight, y and at least one number are needed; found ",
        call.rows, " rows of ", call.cols);
  }
  const Grid grid = {call.rows};
  if (call.input == Float16::f16) {
    using Kernel = RmsNorm<Float16::f16>;
    launcher.template launch<Kernel>(grid, Kernel::kSharedBytes, call);
  } else {
    using Kernel = RmsNorm<Float16::bf16>;
    launcher.template launch<Kernel>(grid, Kernel::kSharedBytes, call);
  }
  return ok_status();
}

}  // namespace nibble::cuda
