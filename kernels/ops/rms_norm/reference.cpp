#include <cmath>

#include "kernels/ops/rms_norm/rms_norm.h"

namespace nibble {

void rms_norm_reference(MatrixView<const float> x, const float* weight, float epsilon,
                        MatrixView<float> y) {
  for (int64_t t = 0; t < x.rows; ++t) {
    const float* row = x.row(t);
    double sum = 0;
    for (int64_t d = 0; d < x.cols; ++d) sum += static_cast<double>(row[d]) * row[d];
    const double scale = 1.0 / std::sqrt(sum / static_cast<double>(x.cols) + epsilon);
    for (int64_t d = 0; d < x.cols; ++d) {
      y(t, d) = static_cast<float>(row[d] * scale * weight[d]);
    }
  }
}

}  // namespace nibble
