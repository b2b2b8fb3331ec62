// Small operations on whole values, f32: what a network needs between its layers.
//
//   add                  y = a + b
//   mul                  y = a * b
//   square_root          y = sqrt(x)
//   sigmoid              y = 1 / (1 + exp(-x)), in double, rounded once
//   relu                 y = max(x, 0)
//   leaky_relu           y = x >= 0 ? x : slope * x
//   shortcut_pad         y[c, i, j] = x[c - before, i * stride, j * stride], 0 outside
//   global_average_pool  y[c] = (sum over i, j of x[c, i, j], in double) / (h * w)
//
// One row for every machine: each value is touched once. y may be an operand (not in
// shortcut_pad). Allocates nothing. Safe to call from any thread.
#pragma once

#include <cmath>
#include <cstdint>

namespace nibble {

void add(const float* a, const float* b, int64_t n, float* y);
void mul(const float* a, const float* b, int64_t n, float* y);
void relu(const float* x, int64_t n, float* y);
void square_root(const float* x, int64_t n, float* y);
void sigmoid(const float* x, int64_t n, float* y);
inline float sigmoid(float x) {
  return static_cast<float>(1.0 / (1.0 + std::exp(-static_cast<double>(x))));
}
void leaky_relu(const float* x, float slope, int64_t n, float* y);

// One image x [channels, height, width] -> y [before + channels + after,
// ceil(height / stride), ceil(width / stride)]. float, or codes of the integer path.
template <class T>
void shortcut_pad(const T* x, int64_t channels, int64_t height, int64_t width,
                  int64_t stride, int64_t before, int64_t after, T* y) {
  const int64_t out_height = (height + stride - 1) / stride;
  const int64_t out_width = (width + stride - 1) / stride;
  for (int64_t i = 0; i < before * out_height * out_width; ++i) *y++ = T(0);
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t i = 0; i < out_height; ++i) {
      const T* row = x + (c * height + i * stride) * width;
      for (int64_t j = 0; j < out_width; ++j) *y++ = row[j * stride];
    }
  }
  for (int64_t i = 0; i < after * out_height * out_width; ++i) *y++ = T(0);
}

// One image x [channels, pixels] -> y [channels].
void global_average_pool(const float* x, int64_t channels, int64_t pixels, float* y);

}  // namespace nibble
