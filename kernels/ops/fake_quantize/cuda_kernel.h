// The CUDA kernels of fake_quantize and their dispatch, for the GPU and for the emulator
// alike: a warp a cell, whose lanes take every 32nd column.
#pragma once

#include "kernels/cuda/grid.h"
#include "kernels/ops/fake_quantize/cuda_fake_quantize.h"

namespace nibble::cuda {

inline constexpr int kFakeQuantizeThreads = 256;

// Where this warp's cell lies; false: there is none.
struct FakeQuantizeCell {
  int64_t cell, first;  // of [rows, groups], of x
  int count;
  float scale, low, high;
};
NIBBLE_DEVICE bool find_cell(const FakeQuantizeCall& p, FakeQuantizeCell& c) {
  const int groups = (p.cols + p.group - 1) / p.group;
  c.cell =
      static_cast<int64_t>(block_x()) * (kFakeQuantizeThreads / 32) + thread_index() / 32;
  if (c.cell >= p.rows * groups) return false;
  const int64_t row = c.cell / groups;
  const int j = static_cast<int>(c.cell % groups), column = j * p.group;
  const int64_t at = row * p.row_step + j * p.group_step;
  c.first = row * p.cols + column;
  c.count = p.cols - column < p.group ? p.cols - column : p.group;
  c.scale = p.scales[at];
  const float zero = p.zeros == nullptr ? 0 : p.zeros[at];
  c.low = p.lowest - zero;
  c.high = p.highest - zero;
  return true;
}

struct FakeQuantize {
  using Params = FakeQuantizeCall;
  static constexpr int kThreads = kFakeQuantizeThreads, kBlocksPerMultiprocessor = 4;

  NIBBLE_DEVICE static void run(const Params& p) {
    FakeQuantizeCell c;
    if (!find_cell(p, c)) return;
    for (int i = thread_index() % 32; i < c.count; i += 32) {
      const float u = quotient(p.x[c.first + i], c.scale);
      p.y[c.first + i] = c.scale * nearest_integer(smaller(larger(u, c.low), c.high));
    }
  }
};

struct FakeQuantizeGradient {
  using Params = FakeQuantizeGradientCall;
  static constexpr int kThreads = kFakeQuantizeThreads, kBlocksPerMultiprocessor = 4;

  NIBBLE_DEVICE static void run(const Params& p) {
    FakeQuantizeCell c;
    if (!find_cell(p.forward, c)) return;
    float ds = 0, outside = 0;
    for (int i = thread_index() % 32; i < c.count; i += 32) {
      const float u = quotient(p.forward.x[c.first + i], c.scale);
      const float dy = p.dy[c.first + i];
      const bool is_inside = c.low <= u && u <= c.high;
      const float v = nearest_integer(smaller(larger(u, c.low), c.high));
      p.dx[c.first + i] = is_inside ? dy : 0;
      ds = ds + dy * (is_inside ? v - u : v);
      if (!is_inside) outside = outside + dy;
    }
    ds = warp_sum(ds);
    outside = warp_sum(outside);
    if (thread_index() % 32 != 0) return;
    if (p.ds != nullptr) p.ds[c.cell] = ds;
    if (p.dz != nullptr) p.dz[c.cell] = -c.scale * outside;
  }
};

inline Status check_fake_quantize(const FakeQuantizeCall& call, bool pointers) {
  if (call.rows < 1 || call.cols < 1 || call.group < 1 || call.x == nullptr ||
      call.scales == nullptr || !pointers) {
    return error(StatusCode::invalid_argument,
                 "[fake_quantize] cuda: x, scales, outputs and at least one number are "
                 "needed; found ",
                 call.rows, " rows of ", call.cols, " in groups of ", call.group);
  }
  return ok_status();
}
inline Grid fake_quantize_grid(const FakeQuantizeCall& call) {
  const int64_t cells = call.rows * ((call.cols + call.group - 1) / call.group);
  constexpr int kWarps = kFakeQuantizeThreads / 32;
  return {static_cast<int>((cells + kWarps - 1) / kWarps)};
}

template <class Launcher>
Status dispatch_fake_quantize(const FakeQuantizeCall& call, Launcher& launcher) {
  NIBBLE_RETURN_IF_ERROR(check_fake_quantize(call, call.y != nullptr));
  launcher.template launch<FakeQuantize>(fake_quantize_grid(call), 0, call);
  return ok_status();
}
template <class Launcher>
Status dispatch_fake_quantize_gradient(const FakeQuantizeGradientCall& call,
                                       Launcher& launcher) {
  NIBBLE_RETURN_IF_ERROR(
      check_fake_quantize(call.forward, call.dy != nullptr && call.dx != nullptr));
  launcher.template launch<FakeQuantizeGradient>(fake_quantize_grid(call.forward), 0,
                                                 call);
  return ok_status();
}

}  // namespace nibble::cuda
