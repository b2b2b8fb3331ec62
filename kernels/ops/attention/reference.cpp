#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/base/parallel.h"
#include "kernels/ops/attention/attention.h"

namespace nibble {

void attention_reference(const AttentionShape& shape, MatrixView<const float> q,
                         MatrixView<const float> k, MatrixView<const float> v,
                         MatrixView<float> y) {
  const int64_t first = k.rows - q.rows;
  const int64_t d_count = shape.head_dim;
  parallel_for(shape.heads * q.rows, [&](int64_t i) {
    const int64_t h = i / q.rows;
    const int64_t t = i % q.rows;
    const int64_t kv = h / (shape.heads / shape.kv_heads) * d_count;
    const float* query = q.row(t) + h * d_count;
    const int64_t begin = shape.first_seen(first + t);
    std::vector<double> a(
        static_cast<size_t>(shape.end_seen(first + t, k.rows) - begin));
    for (size_t j = 0; j < a.size(); ++j) {
      const float* key = k.row(begin + static_cast<int64_t>(j)) + kv;
      for (int64_t d = 0; d < d_count; ++d)
        a[j] += static_cast<double>(query[d]) * key[d];
      a[j] *= shape.scale;
    }
    const double highest = *std::max_element(a.begin(), a.end());
    double sum = 0;
    for (double& value : a) sum += value = std::exp(value - highest);
    for (int64_t d = 0; d < d_count; ++d) {
      double total = 0;
      for (size_t j = 0; j < a.size(); ++j) {
        total += a[j] * v(begin + static_cast<int64_t>(j), kv + d);
      }
      y(t, h * d_count + d) = static_cast<float>(total / sum);
    }
  });
}

}  // namespace nibble
