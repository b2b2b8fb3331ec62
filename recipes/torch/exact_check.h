// The end of quantize and train for nets of static codes: does the artifact's executor
// give the same integers as the exact mode that simulates it?
#pragma once

#include "kernels/artifact/artifact.h"
#include "recipes/torch/run_parts.h"

namespace nibble {

// On the first `count` images or samples (0: all). Of a net on the integer path every
// value, code by code, and the argmax of what it gives; of a net of floats whose layers
// read codes each such layer's output, bit for bit, on what the executor gave it (an
// lstm's is not looked at: its gates are floats). "exact mode: 61 values, 9437184
// integers ... equal". internal: the first that differs. Throws nibble::Error.
std::string check_exact(const Artifact& artifact, const RunData& data, int64_t count);

}  // namespace nibble
