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

  // Where the block's row begins.
  NIBBLE_DEVICE static int64_t place(const Params& p, int64_t stride) {
    return block_x() / p.parts * stride + block_x() % p.parts * p.cols;
  }

  // Calls take(column, number) for the columns of this thread; pairs where a row starts
  // on a word.
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
    const uint16_t* row = static_cast<const uint16_t*>(p.x) + place(p, p.x_stride);
    float sum = 0;
    if (p.add != nullptr) {
      const uint16_t* const other =
          static_cast<const uint16_t*>(p.add) + place(p, p.add_stride);
      uint16_t* const joined = static_cast<uint16_t*>(p.sum) + place(p, p.sum_stride);
      for (int c = thread_index(); c < p.cols; c += kThreads) {
        joined[c] =
            float_to_16<kInput>(low_float<kInput>(row[c]) + low_float<kInput>(other[c]));
        const float x = low_float<kInput>(joined[c]);
        sum = fused(x, x, sum);
      }
      row = joined;
    } else {
      for_columns(p, row, [&](int, float x) { sum = fused(x, x, sum); });
    }
    sum = warp_sum(sum);
    if (thread_index() % 32 == 0) sums[thread_index() / 32] = sum;
    sync_threads();
    float total = 0;
    for (int w = 0; w < kThreads / 32; ++w) total = total + sums[w];
    const float scale =
        quotient(1.0f, root(quotient(total, static_cast<float>(p.cols)) + p.epsilon));
    const int64_t y = place(p, p.y_stride);
    for_columns(p, row, [&](int c, float x) {
      store_output(p.y, y + c, p.output, x * scale * p.weight[c]);
    });
  }
};

template <class Launcher>
Status dispatch_rms_norm(const RmsNormCall& call, Launcher& launcher) {
  if (call.rows < 1 || call.cols < 1 || call.x == nullptr || call.weight == nullptr ||
      call.y == nullptr || call.parts < 1 || call.rows % call.parts != 0 ||
      (call.add != nullptr && call.sum == nullptr)) {
    return error(
        StatusCode::invalid_argument,
        "[rms_norm] cuda: x, weight, y, for add a sum, and at least one number are "
        "needed; found ",
        call.rows, " rows of ", call.cols, " in lines of ", call.parts);
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
