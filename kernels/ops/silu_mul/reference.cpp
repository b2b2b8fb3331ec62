#include <cmath>

#include "kernels/ops/silu_mul/silu_mul.h"

namespace nibble {

void silu_mul_reference(const float* gate, const float* up, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) {
    const double g = gate[i];
    y[i] = static_cast<float>(g / (1.0 + std::exp(-g)) * up[i]);
  }
}

}  // namespace nibble
