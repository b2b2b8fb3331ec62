// The weight of a layer as the kernels take it: a packed tensor, or a float one.
//
// not_found: the artifact has no such tensor. unsupported: extras that no kernel applies
// (a column permutation, low-rank parts), named.
#pragma once

#include <string>

#include "kernels/artifact/artifact.h"
#include "kernels/ops/linear/linear.h"

namespace nibble {

Result<LinearWeight> layer_weight(const Artifact& artifact, const std::string& tensor);

}  // namespace nibble
