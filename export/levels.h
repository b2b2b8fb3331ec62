// The scale and the offset that govern the elements of a quantized matrix, cell by cell.
//
//   ((level0 * level1) * level2 ...) + shift   in float, innermost first; the shift is
//   level0's
#pragma once

#include <algorithm>
#include <vector>

#include "kernels/scheme/coded_matrix.h"
#include "kernels/scheme/level_runs.h"

namespace nibble {

inline float level_product(const std::vector<ScaleLevel>& levels,
                           const std::vector<CodedLevel>& values, int64_t rows,
                           int64_t cols, int64_t r, int64_t c) {
  float product = 0;
  for (size_t i = 0; i < levels.size(); ++i) {
    const int64_t index = level_index(levels[i].block, rows, cols, r, c);
    const float value = values[i].values[static_cast<size_t>(index)];
    product = i == 0 ? value : product * value;
  }
  return !levels.empty() && levels[0].shifted ? product + values[0].shift : product;
}
inline float scale_at(const CodedMatrix& q, int64_t r, int64_t c) {
  return level_product(q.scheme.scales, q.scales, q.rows, q.cols, r, c);
}
inline float offset_at(const CodedMatrix& q, int64_t r, int64_t c) {
  return level_product(q.scheme.offsets, q.offsets, q.rows, q.cols, r, c);
}

// The same blocks under the plainest name that they have in a matrix of `cols` columns: a
// group of the whole row is a row, flat blocks that end with the rows are groups.
inline Block simplified(Block block, int64_t cols) {
  if (block.kind == Block::Kind::flat && block.cols <= cols && cols % block.cols == 0) {
    block.kind = Block::Kind::group;
  }
  if (block.kind == Block::Kind::grid && block.rows == 1) block.kind = Block::Kind::group;
  if (block.kind == Block::Kind::group && block.cols >= cols) block = {Block::Kind::row, 1, 1};
  return block;
}

// The first column after c in row r where any level's value may change.
inline int64_t cell_end(const QuantScheme& scheme, int64_t cols, int64_t r, int64_t c) {
  int64_t end = cols;
  for (const auto* levels : {&scheme.scales, &scheme.offsets}) {
    for (const ScaleLevel& level : *levels)
      end = std::min(end, run_end(level.block, cols, r, c));
  }
  return end;
}

}  // namespace nibble
