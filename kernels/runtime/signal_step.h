// The ops of nets over signals on the executor's values: mul, sqrt, sigmoid, reshape,
// transpose, slice, reflect_pad, lstm (kernels/program/ops.inc has the formulas).
//
//   n       the batch, which a value's shape leaves open (kUnknownSize)
//   inputs  of the node, in order; y its output
//
// False where the op is none of them. Safe to call from any thread, for different steps.
#pragma once

#include <vector>

#include "kernels/runtime/step.h"

namespace nibble {

bool run_signal(const Step& step, int64_t n, const std::vector<const float*>& inputs,
                float* y);

}  // namespace nibble
