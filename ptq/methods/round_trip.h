// A matrix to its codes and back, as one call: what searches over scales, clips and
// channel factors compare.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <span>

#include "kernels/base/tensor.h"
#include "kernels/scheme/coded_matrix.h"

namespace nibble {

// x [rows, cols] f32, contiguous: dequantize(quantize(x)) under scales by the rule.
// importance: empty or [cols] (rule mse). Throws nibble::Error.
at::Tensor round_trip(const at::Tensor& x, const QuantScheme& scheme,
                      const ScaleRule& rule, std::span<const float> importance = {});

// body(first, count) over runs of the rows of a weight, in order, each of which can be
// rounded without the others: so that a search never has a second copy of a weight. One
// run where a scale is of more than a row.
inline constexpr int64_t kRowsOfRun = 256;
bool rounds_rows_alone(const QuantScheme& scheme);
// Of a weight with more than kJudgedRows rows as many, evenly apart: enough to tell
// candidates apart. All of them where a scale is of more than a row. A view.
inline constexpr int64_t kJudgedRows = 1024;
at::Tensor judged_rows(const at::Tensor& weight, const QuantScheme& scheme);
template <class Body>
void over_rows(int64_t rows, const QuantScheme& scheme, const Body& body) {
  const int64_t step = rounds_rows_alone(scheme) ? kRowsOfRun : rows;
  for (int64_t first = 0; first < rows; first += step)
    body(first, std::min(step, rows - first));
}

// A float tensor of the artifact as [rows, cols] f32.
at::Tensor to_matrix(const Tensor& tensor);

}  // namespace nibble
