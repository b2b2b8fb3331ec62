// The largest value of each window of an image, and probabilities of a row.
//
//   max_pool  y[c, i, j] = max of x[c, i * sh - ph + a, j * sw - pw + b], 0 <= a < kh,
//             0 <= b < kw, where that lies inside; padding is less than the kernel, so that
//             every window holds a value
//   softmax   y[k] = exp(x[k] - max x) / sum of exp(x - max x), the sum in double
//
//   x  [channels, height, width] floats, or codes of the integer path (order is theirs);
//      softmax: [n], may be y
//
// One row for every machine. Allocates nothing. Safe to call from any thread.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace nibble {

struct MaxPoolShape {
  int64_t channels = 0, height = 0, width = 0;
  int64_t kernel_h = 1, kernel_w = 1, stride_h = 1, stride_w = 1, pad_h = 0, pad_w = 0;
  int64_t out_height() const { return (height + 2 * pad_h - kernel_h) / stride_h + 1; }
  int64_t out_width() const { return (width + 2 * pad_w - kernel_w) / stride_w + 1; }
};

template <class T>
void max_pool(const MaxPoolShape& s, const T* x, T* y) {
  for (int64_t c = 0; c < s.channels; ++c) {
    const T* plane = x + c * s.height * s.width;
    for (int64_t i = 0; i < s.out_height(); ++i) {
      const int64_t top = std::max<int64_t>(i * s.stride_h - s.pad_h, 0);
      const int64_t bottom = std::min(i * s.stride_h - s.pad_h + s.kernel_h, s.height);
      for (int64_t j = 0; j < s.out_width(); ++j) {
        const int64_t left = std::max<int64_t>(j * s.stride_w - s.pad_w, 0);
        const int64_t right = std::min(j * s.stride_w - s.pad_w + s.kernel_w, s.width);
        T largest = plane[top * s.width + left];
        for (int64_t a = top; a < bottom; ++a) {
          for (int64_t b = left; b < right; ++b) {
            largest = std::max(largest, plane[a * s.width + b]);
          }
        }
        *y++ = largest;
      }
    }
  }
}

inline void softmax(const float* x, int64_t n, float* y) {
  const float highest = *std::max_element(x, x + n);
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    y[i] = std::exp(x[i] - highest);
    sum += y[i];
  }
  for (int64_t i = 0; i < n; ++i) y[i] = static_cast<float>(y[i] / sum);
}

}  // namespace nibble
