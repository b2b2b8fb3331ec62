// The Walsh-Hadamard transform of the blocks of a row.
//
//   y = x H / sqrt(b) in each block of b values, b a power of two
//   H_1 = [1],  H_2b = [H_b H_b; H_b -H_b]       Sylvester's matrices
//
// Orthogonal, symmetric, and its own inverse: transformed twice a row is what it was. What
// one channel carries goes to all b of them in equal parts, so that rounding meets no
// outliers (QuIP#, arXiv 2402.04396, sec. 3; QuaRot, arXiv 2404.00456).
//
//   x, y  [n], n a multiple of b; may be the same memory
//
// tolerance_spec: |y - exact| <= (log2(b) + 1) * 2^-24 * sum over the block of |x| / sqrt(b).
// The order of additions is fixed: the same bits on every CPU. Allocates nothing. Safe to
// call from any thread.
#pragma once

#include <cstdint>

namespace nibble {

void hadamard(const float* x, int64_t n, int64_t block, float* y);

// The sums alone, not divided, of a block whose elements are runs of `run` numbers:
// x [block, run], in place.
template <class Number>
void hadamard_sums(Number* x, int64_t block, int64_t run) {
  for (int64_t half = run; half < block * run; half *= 2) {
    for (Number* at = x; at < x + block * run; at += 2 * half) {
      for (int64_t i = 0; i < half; ++i) {
        const Number a = at[i], b = at[half + i];
        at[i] = a + b;
        at[half + i] = a - b;
      }
    }
  }
}

}  // namespace nibble
