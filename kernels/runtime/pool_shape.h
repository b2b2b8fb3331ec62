// A max_pool node's windows over [channels, height, width].
#pragma once

#include "kernels/ops/pool/max_pool.h"
#include "kernels/program/program.h"

namespace nibble {

inline MaxPoolShape max_pool_shape(const Node& node, int64_t channels, int64_t height,
                                   int64_t width) {
  const auto kernel = node.integers("kernel", {1, 1});
  const auto stride = node.integers("stride", {1, 1});
  const auto padding = node.integers("padding", {0, 0});
  return {.channels = channels, .height = height, .width = width,
          .kernel_h = kernel[0], .kernel_w = kernel[1],
          .stride_h = stride[0], .stride_w = stride[1],
          .pad_h = padding[0], .pad_w = padding[1]};
}

}  // namespace nibble
