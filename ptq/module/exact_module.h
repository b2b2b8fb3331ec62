// The exact mode: the integer path of a frozen convolutional net repeated with LibTorch,
// sums of codes in double (u8 x s8 over 3x3x64 passes 2^24, so f32 sums are not exact),
// then the formulas of kernels/runtime/integer_node.h. Equal to the executor integer for
// integer.
#pragma once

#include <torch/types.h>

#include <functional>
#include <string>

#include "kernels/artifact/artifact.h"

namespace nibble {

// images f32 [n, c, h, w], preprocessed -> logits [n, classes]. tap: each value's codes
// (int32, by value name) as they are made; may be empty. Throws nibble::Error when the
// artifact has no integer path (names the value without an activation scheme).
torch::Tensor run_exact(
    const Artifact& artifact, const torch::Tensor& images,
    const std::function<void(const std::string&, const torch::Tensor&)>& tap);

}  // namespace nibble
