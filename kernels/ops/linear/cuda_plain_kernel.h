// The CUDA kernel of cuda_plain.h and its dispatch, for the GPU and for the emulator
// alike.
#pragma once

#include "kernels/cuda/grid.h"
#include "kernels/ops/linear/cuda_plain.h"

namespace nibble::cuda {

template <Float16 kType>
struct PlainLinear {
  struct Params {
    PlainLinearCall call;
    int is_aligned;  // every row of w and x starts on 16 bytes and has whole 16 bytes
  };
  static constexpr int kWarps = 8, kThreads = 32 * kWarps, kBlocksPerMultiprocessor = 2;
  static constexpr int kTokens = 8;
  static constexpr int kAhead = 4;  // reads of w on their way per lane

  NIBBLE_DEVICE static float product(const Words4& w, const Words4& x, float sum) {
    const uint32_t a[4] = {w.x, w.y, w.z, w.w}, b[4] = {x.x, x.y, x.z, x.w};
    NIBBLE_UNROLL
    for (int i = 0; i < 4; ++i) {
      sum = fused(low_float<kType>(a[i]), low_float<kType>(b[i]), sum);
      sum = fused(high_float<kType>(a[i]), high_float<kType>(b[i]), sum);
    }
    return sum;
  }

  NIBBLE_DEVICE static void run(const Params& params) {
    const PlainLinearCall& p = params.call;
    const int lane = thread_index() % 32, row = block_x() * kWarps + thread_index() / 32;
    if (row >= p.rows) return;  // a whole warp
    const int first = block_y() * kTokens;
    const int tokens = p.tokens - first < kTokens ? p.tokens - first : kTokens;
    const uint16_t* const w =
        static_cast<const uint16_t*>(p.w) + static_cast<int64_t>(row) * p.cols;
    const uint16_t* const x = static_cast<const uint16_t*>(p.x) + first * p.x_stride;
    float sum[kTokens];
    NIBBLE_UNROLL
    for (int j = 0; j < kTokens; ++j) sum[j] = 0;
    if (params.is_aligned != 0) {
      NIBBLE_NO_UNROLL
      for (int base = 8 * lane; base < p.cols; base += 256 * kAhead) {
        Words4 words[kAhead];
        NIBBLE_UNROLL
        for (int a = 0; a < kAhead; ++a) {
          const int c = base + 256 * a;
          words[a] = c < p.cols ? stream16(w + c) : Words4{0, 0, 0, 0};
        }
        NIBBLE_UNROLL
        for (int j = 0; j < kTokens; ++j) {
          if (j < tokens) {
            NIBBLE_UNROLL
            for (int a = 0; a < kAhead; ++a) {
              const int c = base + 256 * a;
              if (c < p.cols) {
                const Words4 v = *reinterpret_cast<const Words4*>(x + j * p.x_stride + c);
                sum[j] = product(words[a], v, sum[j]);
              }
            }
          }
        }
      }
    } else {
      NIBBLE_NO_UNROLL
      for (int c = lane; c < p.cols; c += 32) {
        NIBBLE_UNROLL
        for (int j = 0; j < kTokens; ++j) {
          if (j < tokens)
            sum[j] = fused(low_float<kType>(w[c]),
                           low_float<kType>(x[j * p.x_stride + c]), sum[j]);
        }
      }
    }
    NIBBLE_UNROLL
    for (int j = 0; j < kTokens; ++j) {
      if (j >= tokens) continue;  // the same in all lanes
      float y = warp_sum(sum[j]);
      if (p.bias != nullptr) y = y + p.bias[row];
      if (lane == 0) store_output(p.y, (first + j) * p.y_stride + row, p.output, y);
    }
  }
};

template <class Launcher>
Status dispatch_plain_linear(const PlainLinearCall& call, Launcher& launcher) {
  if (call.tokens < 1 || call.rows < 1 || call.cols < 1 || call.x_stride < call.cols ||
      call.y_stride < call.rows || call.w == nullptr || call.x == nullptr ||
      call.y == nullptr) {
    return error(StatusCode::invalid_argument,
                 "[linear] cuda: w, x, y and strides of at least ", call.cols, " and ",
                 call.rows, " are needed; found ", call.tokens, " tokens, strides ",
                 call.x_stride, " and ", call.y_stride);
  }
  const auto starts_words = [](const void* p) {
    return reinterpret_cast<uintptr_t>(p) % 16 == 0;
  };
  const bool is_aligned = call.cols % 8 == 0 && call.x_stride % 8 == 0 &&
                          starts_words(call.w) && starts_words(call.x);
  const Grid grid = {(call.rows + 7) / 8, (call.tokens + 7) / 8};
  if (call.type == Float16::f16) {
    launcher.template launch<PlainLinear<Float16::f16>>(grid, 0, {call, is_aligned});
  } else {
    launcher.template launch<PlainLinear<Float16::bf16>>(grid, 0, {call, is_aligned});
  }
  return ok_status();
}

}  // namespace nibble::cuda
