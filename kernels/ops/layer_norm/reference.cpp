#include <cmath>

#include "kernels/ops/layer_norm/layer_norm.h"

namespace nibble {

void layer_norm_reference(MatrixView<const float> x, MatrixView<const float> added,
                          const float* weight, const float* bias, float epsilon,
                          MatrixView<float> y) {
  const auto count = static_cast<double>(x.cols);
  for (int64_t t = 0; t < x.rows; ++t) {
    double sum = 0, squares = 0;
    for (int64_t d = 0; d < x.cols; ++d) {
      y(t, d) = added.data == nullptr ? x(t, d) : x(t, d) + added(t, d);
      sum += y(t, d);
    }
    const double mean = sum / count;
    for (int64_t d = 0; d < x.cols; ++d) squares += (y(t, d) - mean) * (y(t, d) - mean);
    const double scale = 1.0 / std::sqrt(squares / count + epsilon);
    for (int64_t d = 0; d < x.cols; ++d) {
      y(t, d) = static_cast<float>((y(t, d) - mean) * scale * weight[d] + bias[d]);
    }
  }
}

}  // namespace nibble
