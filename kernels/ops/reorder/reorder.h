// Moves values without changing them: what stands between the layers of nets over
// signals.
//
//   transpose    y[i_0, .., i_r] = x[j_0, .., j_r] with j_perm[a] = i_a: y's axis a is
//   x's
//                axis perm[a]
//   take_slice   y[o, i, :] = x[o, start + i * step, :]
//   reflect_pad  y[r, i] = x[r, m(i - before)], m(k) = -k below 0, 2 (L - 1) - k from L
//   on:
//                mirrored about the first and the last value, which are not repeated
//
//   transpose    x [shape] -> y [shape[perm[0]], ..]; perm is a permutation of 0 .. r
//   take_slice   x [outer, size, inner] -> y [outer, count, inner]
//   reflect_pad  x [rows, length] -> y [rows, before + length + after], before and after
//                below the length
//
// One row for every machine: each value is touched once. y is no operand. Allocates
// nothing but transpose's indices. Safe to call from any thread.
#pragma once

#include <cstdint>
#include <vector>

namespace nibble {

void transpose(const float* x, const std::vector<int64_t>& shape,
               const std::vector<int64_t>& perm, float* y);

struct SliceShape {
  int64_t outer = 1, size = 1, inner = 1;
  int64_t start = 0, step = 1, count = 1;
};
void take_slice(const SliceShape& shape, const float* x, float* y);

void reflect_pad(const float* x, int64_t rows, int64_t length, int64_t before,
                 int64_t after, float* y);

}  // namespace nibble
