// Rotary position embedding (Su et al., arXiv 2104.09864, eq. 34), in place.
//
// For pair i of a head, angle = position * theta^(-2 i / head_dim):
//   a' = a cos(angle) - b sin(angle),   b' = a sin(angle) + b cos(angle)
// (a, b) = (x[i], x[i + head_dim / 2]), or (x[2 i], x[2 i + 1]) when interleaved.
//
//   x      [tokens, heads * head_dim]; row t is at position first + t
//   table  of at least first + tokens positions
//
// One row for every machine: each value is touched once, so this is bound by memory.
// apply_rope allocates nothing; a table grows in reserve(). One thread at a time a table.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/base/matrix_view.h"

namespace nibble {

// cos and sin of every (position, pair), rounded from double.
class RopeTable {
 public:
  RopeTable(int64_t head_dim, double theta) : head_dim_(head_dim), theta_(theta) {}
  void reserve(int64_t positions);
  int64_t head_dim() const { return head_dim_; }
  double theta() const { return theta_; }
  int64_t positions() const { return positions_; }
  const float* cosines(int64_t p) const { return cosines_.data() + p * (head_dim_ / 2); }
  const float* sines(int64_t p) const { return sines_.data() + p * (head_dim_ / 2); }

 private:
  int64_t head_dim_;
  double theta_;
  int64_t positions_ = 0;
  std::vector<float> cosines_, sines_;
};

void apply_rope(MatrixView<float> x, const RopeTable& table, int64_t first,
                bool interleaved);

}  // namespace nibble
