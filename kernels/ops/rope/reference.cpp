#include <cmath>

#include "kernels/ops/rope/rope.h"

namespace nibble {

void RopeTable::reserve(int64_t positions) {
  if (positions <= positions_) return;
  const int64_t half = head_dim_ / 2;
  cosines_.resize(static_cast<size_t>(positions * half));
  sines_.resize(static_cast<size_t>(positions * half));
  for (int64_t i = 0; i < half; ++i) {
    const double frequency =
        std::pow(theta_, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim_));
    for (int64_t p = positions_; p < positions; ++p) {
      const double angle = static_cast<double>(p) * frequency;
      cosines_[static_cast<size_t>(p * half + i)] = static_cast<float>(std::cos(angle));
      sines_[static_cast<size_t>(p * half + i)] = static_cast<float>(std::sin(angle));
    }
  }
  positions_ = positions;
}

void apply_rope(MatrixView<float> x, const RopeTable& table, int64_t first,
                bool interleaved) {
  const int64_t half = table.head_dim() / 2;
  const int64_t to_a = interleaved ? 2 : 1;     // distance between neighbouring a
  const int64_t to_b = interleaved ? 1 : half;  // distance from a to its b
  for (int64_t t = 0; t < x.rows; ++t) {
    const float* cosine = table.cosines(first + t);
    const float* sine = table.sines(first + t);
    for (float* head = x.row(t); head < x.row(t) + x.cols; head += table.head_dim()) {
      for (int64_t i = 0; i < half; ++i) {
        const float a = head[i * to_a];
        const float b = head[i * to_a + to_b];
        head[i * to_a] = a * cosine[i] - b * sine[i];
        head[i * to_a + to_b] = a * sine[i] + b * cosine[i];
      }
    }
  }
}

}  // namespace nibble
