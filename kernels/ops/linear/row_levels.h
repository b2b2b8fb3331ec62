// The scale, zero point and minimum of every (row, group) of a matrix, levels multiplied
// out.
//
//   scales, zeros, minima  [rows, groups]; zeros and minima are empty where the scheme
//   has none group                  group_columns(scheme, cols) > 0
#pragma once

#include <vector>

#include "kernels/scheme/coded_matrix.h"

namespace nibble {

struct RowLevels {
  int64_t groups = 0;
  std::vector<float> scales, zeros, minima;
};
RowLevels row_levels(const CodedMatrix& q, int64_t group);

}  // namespace nibble
