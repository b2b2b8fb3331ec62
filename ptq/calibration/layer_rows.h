// The rows that a layer's weight multiplies, as methods see them (ptq/methods/hessian.h).
//
//   linear   x [.., in]      -> [tokens, in]
//   conv2d   x [n, c, h, w]  -> [n * oh * ow, c * kh * kw], groups 1: the patches under
//   the
//            kernel, a row an output position, columns in the weight's order
//
// f32; throws nibble::Error. Safe from any thread.
#pragma once

#include <ATen/core/Tensor.h>

#include "kernels/artifact/artifact.h"

namespace nibble {

// model: has the node's float weight, whose shape says how large the kernel is.
at::Tensor layer_rows(const Node& node, const Artifact& model, const at::Tensor& x);
// Do two readers of one value multiply the same rows?
bool same_rows(const Node& a, const Node& b, const Artifact& model);

}  // namespace nibble
