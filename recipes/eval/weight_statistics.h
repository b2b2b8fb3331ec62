// How far a weight's values lie from a normal distribution's: what makes it hard to
// quantize.
//
//   rms       sqrt(mean(w^2))
//   peak      max |w| / rms: a scale over the whole tensor spends its codes up to here
//   kurtosis  mean((w - mean)^4) / variance^2: 3 for a normal distribution, 1.8 for a
//   uniform
//             one; large where few values carry most of the energy
//
// Sums in double over pieces of 2^16 values, the pieces in order: the same at any thread
// count. Zeros for a constant or empty weight. Errors are those of to_float.
#pragma once

#include "kernels/base/tensor.h"

namespace nibble {

struct WeightStatistics {
  double rms = 0;
  double peak = 0;
  double kurtosis = 0;
};
Result<WeightStatistics> weight_statistics(const Tensor& weight);

}  // namespace nibble
