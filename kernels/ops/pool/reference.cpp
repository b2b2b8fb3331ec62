#include <algorithm>
#include <cmath>

#include "kernels/ops/pool/pool.h"

namespace nibble {

void mean_pool(MatrixView<const float> x, float* y) {
  // Columns a block at a time, so that rows are read in order and no memory is needed.
  constexpr int64_t kBlock = 64;
  for (int64_t first = 0; first < x.cols; first += kBlock) {
    const int64_t count = std::min(kBlock, x.cols - first);
    double sums[kBlock] = {};
    for (int64_t t = 0; t < x.rows; ++t) {
      const float* row = x.row(t) + first;
      for (int64_t d = 0; d < count; ++d) sums[d] += row[d];
    }
    for (int64_t d = 0; d < count; ++d) {
      y[first + d] = static_cast<float>(sums[d] / static_cast<double>(x.rows));
    }
  }
}

void l2_normalize(MatrixView<const float> x, MatrixView<float> y) {
  for (int64_t t = 0; t < x.rows; ++t) {
    double squares = 0;
    for (int64_t d = 0; d < x.cols; ++d) {
      squares += static_cast<double>(x(t, d)) * x(t, d);
    }
    const double length = std::max(std::sqrt(squares), 1e-12);
    for (int64_t d = 0; d < x.cols; ++d) {
      y(t, d) = static_cast<float>(x(t, d) / length);
    }
  }
}

}  // namespace nibble
