// The weight of a layer as the kernels take it: a packed tensor, or a float one. A weight
// with a column permutation is dequantized, its columns in their own order.
//
// not_found: the artifact has no such tensor. unsupported: low-rank parts, which no kernel
// applies, named.
#pragma once

#include <string>

#include "kernels/artifact/artifact.h"
#include "kernels/ops/linear/linear.h"

namespace nibble {

Result<LinearWeight> layer_weight(const Artifact& artifact, const std::string& tensor);

}  // namespace nibble
