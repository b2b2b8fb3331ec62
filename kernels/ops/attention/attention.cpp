#include "kernels/ops/attention/attention.h"

#include <algorithm>

#include "kernels/base/parallel.h"
#include "kernels/ops/attention/attention_isa.h"
#include "kernels/ops/panel/panel.h"
#include "kernels/ops/scratch.h"

namespace nibble {
namespace {

int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

thread_local Scratch<float> keys_scratch, values_scratch, query_scratch, score_scratch,
    weight_scratch, acc_scratch;

// Scores and outputs are both panel products: keys are packed with their positions as panel
// columns, values with their features, once a call for each kv head.
void attention_panels(const AttentionKernel& kernel, const AttentionShape& shape,
                      MatrixView<const float> q, MatrixView<const float> k,
                      MatrixView<const float> v, MatrixView<float> y) {
  const PanelIsa& isa = *kernel.panel;
  const int64_t wide = 2 * isa.lanes, dim = shape.head_dim, length = k.rows;
  const int64_t first = length - q.rows;
  const int64_t key_blocks = (length + wide - 1) / wide;
  const int64_t value_width = round_up(dim, wide);
  const int64_t keys_size = key_blocks * dim * wide, values_size = length * value_width;
  float* keys = keys_scratch.get(static_cast<size_t>(shape.kv_heads * keys_size));
  float* values = values_scratch.get(static_cast<size_t>(shape.kv_heads * values_size));
  parallel_for(shape.kv_heads * key_blocks, [&](int64_t job) {
    const int64_t g = job / key_blocks, begin = job % key_blocks * wide;
    float* panel = keys + g * keys_size + begin * dim;
    for (int64_t j = 0; j < wide; ++j) {
      const bool real = begin + j < length;
      const float* key = real ? k.row(begin + j) + g * dim : nullptr;
      for (int64_t d = 0; d < dim; ++d) panel[d * wide + j] = real ? key[d] : 0.0f;
      if (!real) continue;
      const float* from = v.row(begin + j) + g * dim;
      float* to = values + g * values_size + (begin + j) * value_width;
      std::copy_n(from, dim, to);
      std::fill(to + dim, to + value_width, 0.0f);
    }
  });

  std::vector<int64_t> starts;
  std::vector<int> heights;
  for (int64_t row = 0; row < q.rows;) {
    starts.push_back(row);
    heights.push_back(isa.next_tile(q.rows - row));
    row += heights.back();
  }
  const int64_t tiles = static_cast<int64_t>(starts.size());
  parallel_for(shape.heads * tiles, [&](int64_t job) {
    const int64_t h = job / tiles, g = h / (shape.heads / shape.kv_heads);
    // Long tiles first: the last ones see the most keys.
    const size_t tile = static_cast<size_t>(tiles - 1 - job % tiles);
    const int64_t begin = starts[tile];
    const int mr = heights[tile];
    const int64_t rows = std::min<int64_t>(mr, q.rows - begin);
    const int64_t seen = first + begin + rows;  // keys that the tile's last row sees
    const int64_t padded = round_up(seen, wide);

    float* query = query_scratch.get(static_cast<size_t>(dim * mr));
    pack_rows(q.row(begin) + h * dim, q.stride, rows, dim, mr, query);
    float* acc = acc_scratch.get(static_cast<size_t>(mr * wide));
    float* scores = score_scratch.get(static_cast<size_t>(mr * padded));
    for (int64_t block = 0; block < padded; block += wide) {
      const float* panel = keys + g * keys_size + block * dim;
      isa.product_f32(mr, query, panel, panel + isa.lanes, wide, dim, false, acc);
      for (int64_t m = 0; m < rows; ++m) {
        for (int64_t j = 0; j < wide; ++j) {
          scores[m * padded + block + j] = acc[m * wide + j] * shape.scale;
        }
      }
    }
    float* sums = query;  // no longer needed; mr values
    for (int64_t m = 0; m < rows; ++m) {
      const int64_t count = first + begin + m + 1;
      sums[m] = kernel.isa->softmax(scores + m * padded, count);
      std::fill(scores + m * padded + count, scores + m * padded + seen, 0.0f);
    }
    float* weights = weight_scratch.get(static_cast<size_t>(mr * seen));
    pack_rows(scores, padded, rows, seen, mr, weights);
    for (int64_t d = 0; d < dim; d += wide) {
      const float* panel = values + g * values_size + d;
      isa.product_f32(mr, weights, panel, panel + isa.lanes, value_width, seen, false, acc);
      const int64_t width = std::min(wide, dim - d);
      for (int64_t m = 0; m < rows; ++m) {
        float* out = y.row(begin + m) + h * dim + d;
        for (int64_t j = 0; j < width; ++j) out[j] = acc[m * wide + j] / sums[m];
      }
    }
  });
}

}  // namespace

const std::vector<AttentionKernel>& attention_kernels() {
  static const std::vector<AttentionKernel> kernels = {
      {"attention_f32__avx512vnni", kCpuAvx2 | kCpuAvx512 | kCpuAvx512Vnni,
       &avx512vnni::panel_isa, &avx512vnni::attention_isa},
      {"attention_f32__avx2", kCpuAvx2, &avx2::panel_isa, &avx2::attention_isa},
      {"attention_f32__reference", 0, nullptr, nullptr},
  };
  return kernels;
}

const AttentionKernel& select_attention(uint32_t cpu_flags) {
  for (const AttentionKernel& kernel : attention_kernels()) {
    if ((kernel.flags & ~cpu_flags) == 0) return kernel;
  }
  return attention_kernels().back();
}

void attention(const AttentionKernel& kernel, const AttentionShape& shape,
               MatrixView<const float> q, MatrixView<const float> k,
               MatrixView<const float> v, MatrixView<float> y) {
  if (q.rows == 0) return;
  if (kernel.panel == nullptr) return attention_reference(shape, q, k, v, y);
  attention_panels(kernel, shape, q, k, v, y);
}

}  // namespace nibble
