// A weight again in memory of its own, so that a benchmark can go from weight to weight
// without preparing each: what a row reads is copied, codes, scales, offsets and the source
// of rows that decode it at run time.
//
//   copied  receives the bytes; may be null
//
// Allocates. Safe to call from any thread.
#pragma once

#include "kernels/ops/linear/linear.h"

namespace nibble {

PreparedLinear copy_of(const PreparedLinear& source, size_t* copied = nullptr);

}  // namespace nibble
