// What the CPU's and the GPU's torch operators share (custom_ops.cpp says what they are).
//
// Functions that return nothing throw nibble::Error, which torch shows as a RuntimeError.
#pragma once

#include <ATen/ATen.h>

#include <optional>
#include <string_view>
#include <vector>

#include "kernels/ops/linear/linear.h"
#include "ptq/error.h"

namespace nibble::torch_ops {

// A weight from codes, scales and zero points; invalid_argument names a wrong shape.
Result<LinearWeight> weight_of(const at::Tensor& codes, const at::Tensor& scales,
                               const std::optional<at::Tensor>& zeros,
                               const QuantScheme& scheme);
// The scheme's codes have at most 4 bits, or more.
void check_bits(std::string_view scheme, bool four);
void check_linear(const at::Tensor& x, int64_t cols, int64_t out_features,
                  const std::optional<at::Tensor>& bias);
std::vector<int64_t> output_shape(const at::Tensor& x, int64_t out_features);

}  // namespace nibble::torch_ops
