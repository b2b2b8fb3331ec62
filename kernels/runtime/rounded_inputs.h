// Inputs of a layer rounded to codes for which no row has products of their own: FP8, as
// a runtime with FP8 products would read them, and integers of 2 to 7 bits, as research
// on W4A4 does.
//
//   y = s * code(x / s)      s = max |x| / highest of each token (1 for a token of
//   zeros),
//                            or the scheme's own; highest: 448, or 2^(bits - 1) - 1
//
// The products then run on floats: each y is exactly what the codes stand for, so that
// they differ from products of codes by the order of a float sum alone. Rounds to nearest
// even and saturates. Allocates nothing. Safe to call from any thread.
#pragma once

#include "kernels/base/matrix_view.h"
#include "kernels/scheme/layer_scheme.h"

namespace nibble {

// e4m3/r@f32 or int2n/r@f32 .. int7n/r@f32, dynamic; or e4m3/t@f32, static.
bool is_rounded_input(const ActivationScheme& input);
void round_inputs(const ActivationScheme& input, MatrixView<const float> x, float* y);

}  // namespace nibble
