// Inputs of a layer rounded to FP8, as a runtime with FP8 products would read them:
//
//   y = s * e4m3(x / s)      s = max |x| / 448 of each token (1 for a token of zeros), or
//   the
//                            scheme's own
//
// The products then run on floats: each y is exactly what the codes stand for, so that
// they differ from FP8 products by the order of a float sum alone. e4m3 rounds to nearest
// even and saturates. Allocates nothing. Safe to call from any thread.
#pragma once

#include "kernels/base/matrix_view.h"
#include "kernels/scheme/layer_scheme.h"

namespace nibble {

// e4m3/r@f32, dynamic, or e4m3/t@f32, static.
bool is_fp8_input(const ActivationScheme& input);
void round_to_fp8(const ActivationScheme& input, MatrixView<const float> x, float* y);

}  // namespace nibble
