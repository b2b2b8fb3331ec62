// A matrix to its codes and back, as one call: what searches over scales, clips and
// channel factors compare.
#pragma once

#include <ATen/core/Tensor.h>

#include <span>

#include "kernels/base/tensor.h"
#include "kernels/scheme/coded_matrix.h"

namespace nibble {

// x [rows, cols] f32, contiguous: dequantize(quantize(x)) under scales by the rule.
// importance: empty or [cols] (rule mse). Throws nibble::Error.
at::Tensor round_trip(const at::Tensor& x, const QuantScheme& scheme,
                      const ScaleRule& rule, std::span<const float> importance = {});

// A float tensor of the artifact as [rows, cols] f32.
at::Tensor to_matrix(const Tensor& tensor);

}  // namespace nibble
