#include "kernels/ops/elementwise/elementwise.h"

namespace nibble {

void add(const float* a, const float* b, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] = a[i] + b[i];
}

void mul(const float* a, const float* b, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] = a[i] * b[i];
}

void square_root(const float* x, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] = std::sqrt(x[i]);
}

void sigmoid(const float* x, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] = sigmoid(x[i]);
}

void relu(const float* x, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] = x[i] > 0 ? x[i] : 0.0f;
}

void leaky_relu(const float* x, float slope, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] = x[i] >= 0 ? x[i] : slope * x[i];
}

void global_average_pool(const float* x, int64_t channels, int64_t pixels, float* y) {
  for (int64_t c = 0; c < channels; ++c) {
    double sum = 0;
    for (int64_t i = 0; i < pixels; ++i) sum += x[c * pixels + i];
    y[c] = static_cast<float>(sum / static_cast<double>(pixels));
  }
}

}  // namespace nibble
