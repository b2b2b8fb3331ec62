// The factor of an inverse that GPTQ's carry-over needs, in place.
//
//   H = V V^T, V upper triangular;  U = V^-1, upper;  so  U^T U = H^-1
//
//   a [n, n]   in: H, f64, of which the upper triangle is read; out: U, zeros below
//
// Blocks of columns, each block's rows in parallel over fixed panels: the same bytes at any
// thread count, and no second matrix. false: H is not positive definite, or U not finite;
// a holds nothing of use then. Throws nothing.
#pragma once

#include <ATen/core/Tensor.h>

namespace nibble {

bool inverse_factor(at::Tensor& a);

}  // namespace nibble
