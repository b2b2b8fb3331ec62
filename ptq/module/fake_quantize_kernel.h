// The loops of FakeQuantize for integer codes whose scales lie on a grid: one pass over
// memory forward, one backward, equal bit for bit to kernels/scheme's quantize and
// dequantize.
//
//   forward   y = s * rint(clamp(x / s, low, high))
//             low = lowest code - z, high = highest code - z
//   backward  dx = dy where low <= x / s <= high, else 0
//             ds of a cell = sum of dy * (v - x / s inside, v outside),
//             v = rint(clamp(x / s))
//             dz of a cell = -s * sum of dy outside
//
// clamp before rint is rint before clamp, since the bounds are integers; and s * (q - z)
// with q = v + z is s * v, all numbers being small integers. Sums are in a fixed order,
// doubles over runs of floats, whatever the thread count. Allocates little; safe from any
// thread.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/scheme/coded_matrix.h"

namespace nibble {

struct ScaleGrid {
  int64_t rows = 0, cols = 0;     // of x; per tensor: [1, all]
  int64_t group = 0;              // columns a cell spans
  int64_t groups = 0;             // cells of a row
  std::vector<float> scales;      // [rows, groups], all levels multiplied
  std::vector<float> zeros;       // [rows, groups], or empty
  float lowest = 0, highest = 0;  // codes
  float gradient_scale = 1;       // LSQ's 1 / sqrt(n * Qp)
  bool rounding_error = true;     // false: values inside give their scale nothing (PACT)

  // Level 0 as the learned parameter sees it.
  Block::Kind level0 = Block::Kind::tensor;
  std::vector<float> outer;  // [rows, groups], the product of levels 1 ..; empty: 1
  Block::Kind zero_level = Block::Kind::tensor;  // of the zero points' level 0
  int64_t value_of(Block::Kind level, int64_t cell) const {
    if (level == Block::Kind::tensor) return 0;
    return level == Block::Kind::row ? cell / groups : cell;
  }
  float outer_of(int64_t cell) const { return outer.empty() ? 1.0f : outer[cell]; }
};

// false: the scheme is not integer codes, or a level is not t, r or gN with one N, or has
// a minimum. zero_point: a static activation's own.
bool make_grid(const CodedMatrix& levels, int zero_point, ScaleGrid* grid);

void grid_forward(const ScaleGrid& grid, const float* x, float* y);
// What one cell's values give its scale and its zero point.
struct CellGradient {
  double scale = 0;
  double zero = 0;
};
// cells: [rows * groups]; nullptr: not wanted.
void grid_backward(const ScaleGrid& grid, const float* x, const float* dy, float* dx,
                   CellGradient* cells);

}  // namespace nibble
