#include <cmath>

#include "kernels/ops/quantize_rows/quantize_rows.h"

namespace nibble {

void quantize_rows_reference(MatrixView<const float> x, MatrixView<int8_t> codes,
                             float* scales) {
  for (int64_t t = 0; t < x.rows; ++t) {
    float highest = 0;
    for (int64_t k = 0; k < x.cols; ++k) {
      highest = std::fmax(highest, std::fabs(x(t, k)));
    }
    float scale = highest / 127.0f;
    if (!(scale > 0)) scale = 1;
    scales[t] = scale;
    for (int64_t k = 0; k < x.cols; ++k) {
      const float q = std::nearbyint(x(t, k) / scale);
      codes(t, k) = static_cast<int8_t>(std::fmin(std::fmax(q, -127.0f), 127.0f));
    }
  }
}

void quantize_rows_by_reference(MatrixView<const float> x, float scale, int lowest,
                                MatrixView<int8_t> codes) {
  const float least = static_cast<float>(lowest);
  for (int64_t t = 0; t < x.rows; ++t) {
    for (int64_t k = 0; k < x.cols; ++k) {
      const float q = std::nearbyint(x(t, k) / scale);
      codes(t, k) = static_cast<int8_t>(std::fmin(std::fmax(q, least), 127.0f));
    }
  }
}

}  // namespace nibble
