// The searches for a scale, or a scale and a minimum, from which ggml's quantization is
// made. All sums are float, in the order of the elements, as ggml's reference has them:
// another order gives other bytes.
//
//   x, w  [n] values and weights of their squared errors; codes [n] receives the codes
//
// Nothing here allocates. n <= kLongestFit.
#pragma once

#include <cstdint>

namespace nibble {

inline constexpr int kLongestFit = 32;
// A block whose largest magnitude is below this counts as zeros (ggml's GROUP_MAX_EPS).
inline constexpr float kNothing = 1e-15f;

// Half to even; |v| < 2^22.
inline int nearest(float v) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23
  return static_cast<int>((v + kMagic) - kMagic);
}
inline int clip(int v, int low, int high) { return v < low ? low : v > high ? high : v; }

// The element of largest magnitude with its sign, the first of equals; 0 where all are 0.
float signed_largest(int n, const float* x);

// x ~ s * q, q in [-highest, highest - 1]: the best of 19 scales around M / -highest by
// (sum w x q)^2 / sum w q^2, then least squares for its codes. Returns s. w null: x^2.
float fit_symmetric(int n, const float* x, const float* w, int highest, int8_t* codes);

// x ~ s * q + m, q in [0, highest], m <= 0: from the range of x, then steps + 1 trials
// with highest + first + k * step in its place, each by least squares. Returns s; -m in
// *minimum (>= 0). absolute: errors count by magnitude, not squared.
float fit_minimum(int n, const float* x, const float* w, int highest, float first,
                  float step, int steps, bool absolute, uint8_t* codes, float* minimum);

// Q3_K: from M / -4, then at most five sweeps that move one code at a time where that
// raises (sum w x q)^2 / sum w q^2, w = x^2. Returns s.
float fit_sweeps(int n, const float* x, int highest, int8_t* codes);

// Scales of scales, x >= 0: q in [0, highest], the best of nine by squared error, then
// sweeps. Returns s.
float fit_positive(int n, const float* x, const float* w, int highest, uint8_t* codes);

}  // namespace nibble
