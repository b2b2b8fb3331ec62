// From the tokens of a sequence to one vector, and its length.
//
//   mean_pool     y[d] = (sum over t of x[t, d], in double) / T
//   l2_normalize  y[t, d] = x[t, d] / max(sqrt(sum over d of x[t, d]^2), 1e-12), the sum
//                 in double
//
//   x  [T, D]; mean_pool: y [D]; l2_normalize: y [T, D], may be x
//
// One row for every machine: each value is touched once. Allocates nothing. Safe to call
// from any thread.
#pragma once

#include "kernels/base/matrix_view.h"

namespace nibble {

void mean_pool(MatrixView<const float> x, float* y);
void l2_normalize(MatrixView<const float> x, MatrixView<float> y);

}  // namespace nibble
