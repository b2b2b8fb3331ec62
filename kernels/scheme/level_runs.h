// Walks a matrix block by block: which elements a level's value governs, and the values
// that govern one row.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/scheme/quant_scheme.h"

namespace nibble {

// The first column after c, in row r, that another value of the level governs.
inline int64_t run_end(const Block& block, int64_t cols, int64_t r, int64_t c) {
  switch (block.kind) {
    case Block::Kind::tensor:
    case Block::Kind::row:
      return cols;
    case Block::Kind::column:
      return c + 1;
    case Block::Kind::group:
    case Block::Kind::grid:
      return std::min(cols, (c / block.cols + 1) * block.cols);
    case Block::Kind::flat: {
      const int64_t flat = r * cols + c;
      return std::min(cols, c + block.cols - flat % block.cols);
    }
  }
  return cols;
}

// visit(r, begin, end) for every run of columns that value `index` of the level governs,
// in row-major order.
template <class Visit>
void for_each_run(const Block& block, int64_t rows, int64_t cols, int64_t index,
                  Visit visit) {
  switch (block.kind) {
    case Block::Kind::tensor:
      for (int64_t r = 0; r < rows; ++r) visit(r, int64_t{0}, cols);
      return;
    case Block::Kind::row:
      visit(index, int64_t{0}, cols);
      return;
    case Block::Kind::column:
      for (int64_t r = 0; r < rows; ++r) visit(r, index, index + 1);
      return;
    case Block::Kind::group:
    case Block::Kind::grid: {
      const int64_t across = (cols + block.cols - 1) / block.cols;
      const int64_t height = block.kind == Block::Kind::grid ? block.rows : 1;
      const int64_t first = index / across * height;
      const int64_t begin = index % across * block.cols;
      for (int64_t r = first; r < std::min(rows, first + height); ++r) {
        visit(r, begin, std::min(cols, begin + block.cols));
      }
      return;
    }
    case Block::Kind::flat: {
      const int64_t end = std::min(rows * cols, (index + 1) * block.cols);
      for (int64_t flat = index * block.cols; flat < end;) {
        const int64_t r = flat / cols, c = flat % cols;
        const int64_t stop = std::min(cols, c + end - flat);
        visit(r, c, stop);
        flat += stop - c;
      }
      return;
    }
  }
}

// out[c] = ((v0 * v1) * v2 ...) + shift for every column of row r, value(level, index)
// being what that level stores. Levels must not be empty.
template <class Value>
void expand_levels(const std::vector<ScaleLevel>& levels, float shift, Value value,
                   int64_t rows, int64_t cols, int64_t r, float* out) {
  for (size_t k = 0; k < levels.size(); ++k) {
    const Block& block = levels[k].block;
    for (int64_t c = 0; c < cols;) {
      const int64_t end = run_end(block, cols, r, c);
      const float v = value(k, level_index(block, rows, cols, r, c));
      if (k == 0) {
        std::fill(out + c, out + end, v);
      } else {
        for (int64_t i = c; i < end; ++i) out[i] *= v;
      }
      c = end;
    }
  }
  if (levels[0].shifted) {
    for (int64_t c = 0; c < cols; ++c) out[c] += shift;
  }
}

}  // namespace nibble
