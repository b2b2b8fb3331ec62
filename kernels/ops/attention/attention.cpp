#include "kernels/ops/attention/attention.h"

#include <algorithm>
#include <cstring>

#include "kernels/base/parallel.h"
#include "kernels/ops/attention/attention_isa.h"
#include "kernels/ops/panel/panel.h"
#include "kernels/ops/scratch.h"

namespace nibble {
namespace {

// exp() of it is as good as 0 beside the row's largest term, which is exp(0) = 1.
constexpr float kMasked = -1e30f;
// Positions whose keys, or values, a few queries read again and again. Rows of a cache lie
// a power of two apart, so that the first cache holds few of them.
constexpr int64_t kFewTile = 32;

// A few tokens: transposing all keys would cost more than the products. The heads that
// share keys go through a tile of them together, while a cache near the core holds it.
void attend_few(const AttentionKernel& kernel, const AttentionShape& shape,
                MatrixView<const float> q, MatrixView<const float> k,
                MatrixView<const float> v, MatrixView<float> y) {
  const int64_t first = k.rows - q.rows;
  const int64_t lanes = kernel.panel->lanes;
  const int64_t dim = shape.head_dim;
  const int64_t group = shape.heads / shape.kv_heads;
  // Heads of a task: of one key head, and not so many that four threads lack work.
  const int64_t heads = std::clamp<int64_t>(q.rows * shape.heads / 4, 1, group);
  const int64_t parts = (group + heads - 1) / heads;
  const auto one = [&](int64_t i) {
    const int64_t t = i / (shape.kv_heads * parts);
    const int64_t kv = i / parts % shape.kv_heads;
    const int64_t head = kv * group + i % parts * heads;
    const int64_t count = std::min(heads, (kv + 1) * group - head);
    const int64_t begin = shape.first_seen(first + t);
    const int64_t n = shape.end_seen(first + t, k.rows) - begin;
    static thread_local Scratch<float> scratch;
    float* a = scratch.get(static_cast<size_t>(count * (n + lanes + 1) + (count + 1) * dim));
    float* factors = a + count * (n + lanes);
    float* scaled = factors + count;
    float* added = scaled + count * dim;
    for (int64_t h = 0; h < count; ++h) {
      for (int64_t d = 0; d < dim; ++d) {
        scaled[h * dim + d] = q(t, (head + h) * dim + d) * shape.scale;
      }
    }
    for (int64_t tile = 0; tile < n; tile += kFewTile) {
      const int64_t keys = std::min(kFewTile, n - tile);
      for (int64_t h = 0; h < count; ++h) {
        kernel.isa->scores(scaled + h * dim, k.row(begin + tile) + kv * dim, k.stride, dim,
                           keys, a + h * (n + lanes) + tile);
      }
    }
    for (int64_t h = 0; h < count; ++h) {
      float* row = a + h * (n + lanes);
      for (int64_t j = 0; j < lanes; ++j) row[n + j] = kMasked;
      float highest;
      factors[h] = 1.0f / kernel.isa->softmax(row, n, &highest);
      std::fill_n(y.row(t) + (head + h) * dim, dim, 0.0f);
    }
    for (int64_t tile = 0; tile < n; tile += kFewTile) {
      const int64_t values = std::min(kFewTile, n - tile);
      for (int64_t h = 0; h < count; ++h) {
        kernel.isa->weighted_sum(a + h * (n + lanes) + tile,
                                 v.row(begin + tile) + kv * dim, v.stride, dim, values,
                                 factors[h], added);
        float* out = y.row(t) + (head + h) * dim;
        for (int64_t d = 0; d < dim; ++d) out[d] += added[d];
      }
    }
  };
  const int64_t tasks = q.rows * shape.kv_heads * parts;
  // Below some ten thousand products a second thread costs more than it brings.
  if (q.rows * shape.heads * k.rows * dim < (1 << 15)) {
    for (int64_t i = 0; i < tasks; ++i) one(i);
  } else {
    parallel_for(tasks, one);
  }
}

// Tiles of query rows against panels of transposed keys, then against panels of values.
void attend_many(const AttentionKernel& kernel, const AttentionShape& shape,
                 MatrixView<const float> q, MatrixView<const float> k,
                 MatrixView<const float> v, MatrixView<float> y) {
  const PanelIsa& isa = *kernel.panel;
  const int64_t dim = shape.head_dim;
  const int64_t width = 2 * isa.lanes;
  const int64_t first = k.rows - q.rows;
  const int64_t blocks = (k.rows + width - 1) / width;
  const int64_t unseen = shape.first_seen(first) / width;  // blocks before every window
  const int64_t padded_dim = (dim + width - 1) / width * width;
  static thread_local Scratch<float> key_scratch, value_scratch;
  float* keys =
      key_scratch.get(static_cast<size_t>(shape.kv_heads * blocks * dim * width));
  float* values =
      value_scratch.get(static_cast<size_t>(shape.kv_heads * k.rows * padded_dim));
  parallel_for(shape.kv_heads * blocks, [&](int64_t i) {
    const int64_t head = i / blocks;
    const int64_t begin = i % blocks * width;
    if (i % blocks < unseen) return;
    float* panel = keys + i * dim * width;  // [dim, width]
    for (int64_t j = 0; j < width; ++j) {
      const int64_t row = begin + j;
      if (row >= k.rows) {
        for (int64_t d = 0; d < dim; ++d) panel[d * width + j] = 0;
        continue;
      }
      const float* key = k.row(row) + head * dim;
      for (int64_t d = 0; d < dim; ++d) panel[d * width + j] = key[d];
      float* value = values + (head * k.rows + row) * padded_dim;
      std::memcpy(value, v.row(row) + head * dim,
                  static_cast<size_t>(dim) * sizeof(float));
      for (int64_t d = dim; d < padded_dim; ++d) value[d] = 0;
    }
  });

  const int64_t tiles = (q.rows + isa.tile - 1) / isa.tile;
  parallel_for(shape.heads * tiles, [&](int64_t i) {
    const int64_t h = i / tiles;
    const int64_t t = i % tiles * isa.tile;
    const int64_t count = std::min<int64_t>(isa.tile, q.rows - t);
    const int mr = isa.next_tile(count);
    const int64_t kv = h / (shape.heads / shape.kv_heads);
    // Keys that the last row sees.
    const int64_t limit = shape.causal ? first + t + count : k.rows;
    const int64_t stride = (limit + width - 1) / width * width;
    static thread_local Scratch<float> scratch;
    float* scores =
        scratch.get(static_cast<size_t>(isa.tile * (2 * stride + dim + width + 1)));
    float* weights = scores + isa.tile * stride;  // [limit, mr]
    float* queries = weights + isa.tile * stride;
    float* acc = queries + isa.tile * dim;
    float* sums = acc + isa.tile * width;

    // count may need several small tiles.
    for (int64_t done = 0; done < count; done += mr) {
      const int64_t rows = std::min<int64_t>(mr, count - done);
      // Keys from `base` on, a whole number of panels: what the first of these rows sees.
      const int64_t base = shape.first_seen(first + t + done) / width * width;
      pack_rows(q.row(t + done) + h * dim, q.stride, rows, dim, mr, queries);
      for (int64_t j = 0; j < dim * mr; ++j) queries[j] *= shape.scale;
      for (int64_t b = base / width; b * width < limit; ++b) {
        const float* panel = keys + (kv * blocks + b) * dim * width;
        isa.product_f32(mr, queries, panel, panel + isa.lanes, width, dim, false, acc);
        for (int64_t m = 0; m < rows; ++m) {
          std::memcpy(scores + m * stride + b * width - base, acc + m * width,
                      static_cast<size_t>(width) * sizeof(float));
        }
      }
      for (int64_t m = 0; m < rows; ++m) {
        float* row = scores + m * stride;
        const int64_t begin = shape.first_seen(first + t + done + m) - base;
        const int64_t n = shape.end_seen(first + t + done + m, k.rows) - base;
        for (int64_t j = 0; j < begin; ++j) row[j] = kMasked;
        for (int64_t j = n; j < stride; ++j) row[j] = kMasked;
        float highest;
        sums[m] = kernel.isa->softmax(row, n, &highest);
        for (int64_t j = 0; j < begin; ++j) row[j] = 0;
        for (int64_t j = n; j < limit - base; ++j) row[j] = 0;
      }
      pack_rows(scores, stride, rows, limit - base, mr, weights);
      for (int64_t d = 0; d < padded_dim; d += width) {
        const float* panel = values + (kv * k.rows + base) * padded_dim + d;
        isa.product_f32(mr, weights, panel, panel + isa.lanes, padded_dim, limit - base,
                        false, acc);
        for (int64_t m = 0; m < rows; ++m) {
          const float factor = 1.0f / sums[m];
          float* out = y.row(t + done + m) + h * dim + d;
          for (int64_t j = 0; j < std::min(width, dim - d); ++j) {
            out[j] = acc[m * width + j] * factor;
          }
        }
      }
    }
  });
}

}  // namespace

const std::vector<AttentionKernel>& attention_kernels() {
  static const std::vector<AttentionKernel> kernels = {
#include "kernels/ops/attention/kernels.inc"
  };
  return kernels;
}

const AttentionKernel& select_attention(uint32_t cpu_flags) {
  for (const AttentionKernel& kernel : attention_kernels()) {
    if ((kernel.flags & ~cpu_flags) == 0) return kernel;
  }
  return attention_kernels().back();  // the reference needs nothing
}

void attention(const AttentionKernel& kernel, const AttentionShape& shape,
               MatrixView<const float> q, MatrixView<const float> k,
               MatrixView<const float> v, MatrixView<float> y) {
  if (kernel.isa == nullptr) return attention_reference(shape, q, k, v, y);
  // 4 rows fill a third of the large tile: from there on the panels pay.
  if (q.rows < 4) return attend_few(kernel, shape, q, k, v, y);
  attend_many(kernel, shape, q, k, v, y);
}

}  // namespace nibble
