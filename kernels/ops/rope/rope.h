// Rotary position embedding (Su et al., arXiv 2104.09864, eq. 34), in place.
//
// For pair i of a head, angle = position * f[i], f[i] = theta^(-2 i / head_dim):
//   a' = a cos(angle) - b sin(angle),   b' = a sin(angle) + b cos(angle)
// (a, b) = (x[i], x[i + head_dim / 2]), or (x[2 i], x[2 i + 1]) when interleaved.
//
// A model stretched to a longer context turns more slowly:
//   linear   f / factor
//   llama3   with turns = original_context * f / (2 pi), the full turns of a pair over
//   the
//            context that the model was first trained on:
//            f / factor             turns < low_frequency_factor
//            f                      turns > high_frequency_factor
//            between them f * (s + (1 - s) / factor), s = (turns - low) / (high - low)
//
//   x      [tokens, heads * head_dim]; row t is at position first + t
//   table  of at least first + tokens positions
//
// tolerance_spec: every row of the table gives the reference's bits of finite numbers:
// the products and sums above, each rounded once. A table grows in reserve(); nothing
// else allocates. One thread at a time may grow a table, any number may read it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/base/cpu.h"
#include "kernels/base/matrix_view.h"

namespace nibble {

struct RopeShape {
  int64_t head_dim = 0;
  double theta = 10000.0;
  std::string scaling = "";  // "" none, "linear", "llama3"
  double factor = 1.0;
  double low_frequency_factor = 1.0, high_frequency_factor = 4.0;  // llama3
  int64_t original_context = 0;                                    // llama3
  bool operator==(const RopeShape&) const = default;
};
// f [head_dim / 2]: radians a position.
std::vector<double> rope_frequencies(const RopeShape& shape);

// cos and sin of every (position, pair), rounded from double.
class RopeTable {
 public:
  explicit RopeTable(RopeShape shape);
  RopeTable(int64_t head_dim, double theta)
      : RopeTable(RopeShape{.head_dim = head_dim, .theta = theta}) {}
  // room: positions that it will grow to; until then growing allocates nothing more.
  void reserve(int64_t positions, int64_t room = 0);
  const RopeShape& shape() const { return shape_; }
  int64_t head_dim() const { return shape_.head_dim; }
  int64_t positions() const { return positions_; }
  const float* cosines(int64_t p) const { return cosines_.data() + p * (head_dim() / 2); }
  const float* sines(int64_t p) const { return sines_.data() + p * (head_dim() / 2); }

 private:
  RopeShape shape_;
  std::vector<double> frequencies_;
  int64_t positions_ = 0;
  std::vector<float> cosines_, sines_;
};

// In place, the heads of one position: x [heads, 2 * half], cosines and sines [half].
using RopeFunction = void (*)(float* x, int64_t heads, int64_t half, const float* cosines,
                              const float* sines, bool interleaved);

void rope_reference(float* x, int64_t heads, int64_t half, const float* cosines,
                    const float* sines, bool interleaved);

struct RopeKernel {
  const char* name;
  uint32_t flags;
  RopeFunction run;
};
const std::vector<RopeKernel>& rope_kernels();
const RopeKernel& select_rope(uint32_t cpu_flags = usable_cpu_flags());

void apply_rope(const RopeKernel& kernel, MatrixView<float> x, const RopeTable& table,
                int64_t first, bool interleaved);
inline void apply_rope(MatrixView<float> x, const RopeTable& table, int64_t first,
                       bool interleaved) {
  apply_rope(select_rope(), x, table, first, interleaved);
}

}  // namespace nibble
