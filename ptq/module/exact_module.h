// The exact mode: the integer path of a frozen convolutional net repeated with LibTorch,
// sums of codes in double (u8 x s8 over 3x3x64 passes 2^24, so f32 sums are not exact),
// then the formulas of kernels/runtime/integer_node.h. Equal to the executor integer for
// integer.
//
// Nothing is shared with the executor but the formulas: every f32 operation here is one
// torch op, hence one IEEE rounding, in the order written there.
//
// Throws nibble::Error. failed_precondition: the artifact has no integer path (names the
// value without an activation scheme, or the layer that is float). unsupported: an op or
// a scheme that the integer path does not know (names the node).
#pragma once

#include <torch/types.h>

#include <functional>
#include <string>

#include "kernels/artifact/artifact.h"

namespace nibble {

// images f32 [n, c, h, w], preprocessed -> logits [n, classes]. tap: each value's codes
// (int32, by value name) as they are made; may be empty.
torch::Tensor run_exact(
    const Artifact& artifact, const torch::Tensor& images,
    const std::function<void(const std::string&, const torch::Tensor&)>& tap);

// One layer of a net of floats whose input is in codes (kernels/runtime/integer_layer.h):
// x f32 as the node reads it -> its output. failed_precondition: it has no such input.
torch::Tensor run_exact_layer(const Artifact& artifact, const Node& node,
                              const torch::Tensor& x);

}  // namespace nibble
