#include "kernels/ops/hadamard/hadamard.h"

#include <algorithm>
#include <cmath>

namespace nibble {

void hadamard(const float* x, int64_t n, int64_t block, float* y) {
  if (y != x) std::copy_n(x, n, y);
  const auto scale = static_cast<float>(1 / std::sqrt(static_cast<double>(block)));
  for (int64_t at = 0; at < n; at += block) {
    hadamard_sums(y + at, block, 1);
    for (int64_t i = at; i < at + block; ++i) y[i] *= scale;
  }
}

}  // namespace nibble
