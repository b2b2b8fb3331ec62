#include <cmath>

#include "kernels/ops/gelu/gelu.h"

namespace nibble {

// erfc keeps the digits of 1 + erf where erf is nearly -1.
void gelu_reference(const float* x, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) {
    const double v = x[i];
    y[i] = static_cast<float>(0.5 * v * std::erfc(-v / std::sqrt(2.0)));
  }
}

// (1 + tanh(u)) / 2 = 1 / (1 + exp(-2 u)), which keeps them likewise.
void gelu_tanh_reference(const float* x, int64_t n, float* y) {
  const double c = std::sqrt(2.0 / 3.14159265358979323846);
  for (int64_t i = 0; i < n; ++i) {
    const double v = x[i];
    const double u = c * (v + 0.044715 * v * v * v);
    y[i] = static_cast<float>(v / (1.0 + std::exp(-2 * u)));
  }
}

}  // namespace nibble
