#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/ops/moe/moe.h"

namespace nibble {

void route_tokens(MatrixView<const float> logits, bool normalize,
                  MatrixView<int32_t> chosen, MatrixView<float> weights) {
  static thread_local std::vector<int32_t> order;  // which only grows
  order.resize(static_cast<size_t>(logits.cols));
  for (int64_t t = 0; t < logits.rows; ++t) {
    const float* row = logits.row(t);
    std::iota(order.begin(), order.end(), 0);
    std::partial_sort(order.begin(), order.begin() + chosen.cols, order.end(),
                      [row](int32_t a, int32_t b) {
                        return row[a] != row[b] ? row[a] > row[b] : a < b;
                      });
    const double highest = row[order[0]];
    double all = 0, taken = 0;
    for (int64_t e = 0; e < logits.cols; ++e) all += std::exp(row[e] - highest);
    for (int64_t j = 0; j < chosen.cols; ++j) {
      const int32_t expert = order[static_cast<size_t>(j)];
      chosen(t, j) = expert;
      taken += std::exp(row[expert] - highest);
    }
    for (int64_t j = 0; j < chosen.cols; ++j) {
      const double e = std::exp(row[chosen(t, j)] - highest);
      weights(t, j) = static_cast<float>(e / (normalize ? taken : all));
    }
  }
}

}  // namespace nibble
