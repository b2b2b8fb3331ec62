// FakeQuantize's grid (fake_quantize_kernel.h) by torch's ops, for tensors on any device.
//
//   x, dy   [rows, cols] contiguous, or of one cell any shape
//   dx      likewise; scale, zero  f64 [rows, groups], what each cell's values give them,
//           before LSQ's gradient scale
//
// Forward gives the bits of the fused loops; sums are in torch's order.
#pragma once

#include <torch/types.h>

#include "ptq/module/fake_quantize_kernel.h"

namespace nibble::composed {

torch::Tensor grid_forward(const ScaleGrid& grid, const torch::Tensor& x);

struct GridGradients {
  torch::Tensor dx, scale, zero;
};
GridGradients grid_backward(const ScaleGrid& grid, const torch::Tensor& x,
                            const torch::Tensor& dy);

}  // namespace nibble::composed
