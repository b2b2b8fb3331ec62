// The loops of FakeQuantize for every scheme that lies on no grid of integers: minifloat
// and table codes, minima, blocks of any kind. Equal bit for bit to kernels/scheme's
// quantize and dequantize, without a matrix of codes or expanded scales in between.
//
//   forward   u = x / s  or  (x - m) / s     v = the number that u's code stands for
//             y = s * v  or  s * v + m       zero points z: v and the range less z
//   backward  dx = dy where u is in the range of codes, else 0
//             of a value of the scales' level 0:  sum of dy * o * (v - u inside, v
//             outside) of one of the minima's:             sum of dy * o outside o = the
//             product of that kind's outer levels
//
//   x, y, dy, dx  [levels.rows, levels.cols]
//   scale, minimum  [values of level 0] sums, added to in a fixed order; nullptr: not
//                   wanted. minimum: schemes with a minimum only
//
// Throws nibble::Error as kernels/scheme's quantize answers: invalid_argument (levels of
// another shape), out_of_range (x not finite, a scale not finite and positive). Allocates
// a few rows. The same bits at any thread count.
#pragma once

#include "kernels/scheme/coded_matrix.h"

namespace nibble {

void any_forward(const CodedMatrix& levels, const float* x, float* y);
void any_backward(const CodedMatrix& levels, const float* x, const float* dy, float* dx,
                  std::vector<double>* scale, std::vector<double>* minimum);

}  // namespace nibble
