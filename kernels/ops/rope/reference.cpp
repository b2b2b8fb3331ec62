#include <cmath>
#include <utility>

#include "kernels/ops/rope/rope.h"

namespace nibble {

std::vector<double> rope_frequencies(const RopeShape& shape) {
  constexpr double kTwoPi = 6.283185307179586476925286766559;
  std::vector<double> frequencies;
  for (int64_t i = 0; i < shape.head_dim / 2; ++i) {
    double f = std::pow(
        shape.theta, -2.0 * static_cast<double>(i) / static_cast<double>(shape.head_dim));
    if (shape.scaling == "linear") {
      f /= shape.factor;
    } else if (shape.scaling == "llama3") {
      const double turns = static_cast<double>(shape.original_context) * f / kTwoPi;
      const double low = shape.low_frequency_factor, high = shape.high_frequency_factor;
      if (turns < low) {
        f /= shape.factor;
      } else if (turns <= high) {
        const double s = (turns - low) / (high - low);
        f = s * f + (1.0 - s) * f / shape.factor;
      }
    }
    frequencies.push_back(f);
  }
  return frequencies;
}

RopeTable::RopeTable(RopeShape shape)
    : shape_(std::move(shape)), frequencies_(rope_frequencies(shape_)) {}

void RopeTable::reserve(int64_t positions, int64_t room) {
  if (positions <= positions_) return;
  const int64_t half = head_dim() / 2;
  cosines_.reserve(static_cast<size_t>(room * half));
  sines_.reserve(static_cast<size_t>(room * half));
  cosines_.resize(static_cast<size_t>(positions * half));
  sines_.resize(static_cast<size_t>(positions * half));
  for (int64_t i = 0; i < half; ++i) {
    const double frequency = frequencies_[static_cast<size_t>(i)];
    for (int64_t p = positions_; p < positions; ++p) {
      const double angle = static_cast<double>(p) * frequency;
      cosines_[static_cast<size_t>(p * half + i)] = static_cast<float>(std::cos(angle));
      sines_[static_cast<size_t>(p * half + i)] = static_cast<float>(std::sin(angle));
    }
  }
  positions_ = positions;
}

void rope_reference(float* x, int64_t heads, int64_t half, const float* cosines,
                    const float* sines, bool interleaved) {
  const int64_t to_a = interleaved ? 2 : 1;     // distance between neighbouring a
  const int64_t to_b = interleaved ? 1 : half;  // distance from a to its b
  for (float* head = x; head < x + heads * 2 * half; head += 2 * half) {
    for (int64_t i = 0; i < half; ++i) {
      const float a = head[i * to_a];
      const float b = head[i * to_a + to_b];
      head[i * to_a] = a * cosines[i] - b * sines[i];
      head[i * to_a + to_b] = a * sines[i] + b * cosines[i];
    }
  }
}

}  // namespace nibble
