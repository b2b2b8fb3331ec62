#include "kernels/ops/kv_attention/kv_attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/base/parallel.h"
#include "kernels/ops/attention/attention_isa.h"
#include "kernels/ops/kv_attention/kv_tiles.h"
#include "kernels/ops/panel/panel.h"
#include "kernels/ops/scratch.h"

namespace nibble {
namespace {

// Query rows that share a decoded tile, about: enough to pay for the decoding.
constexpr int64_t kQueries = 120;

void attend_many(const KvAttentionKernel& kernel, const AttentionShape& shape,
                 MatrixView<const float> q, const KvRows& k, const KvRows& v,
                 MatrixView<float> y) {
  const PanelIsa& isa = *kernel.panel;
  const int64_t dim = shape.head_dim;
  const int64_t width = 2 * isa.lanes;
  const int64_t padded_dim = (dim + width - 1) / width * width;
  const int64_t first = k.length() - q.rows;
  const int64_t group = shape.heads / shape.kv_heads;
  const int64_t block = std::max<int64_t>(1, kQueries / group / isa.tile) * isa.tile;
  const int64_t blocks = (q.rows + block - 1) / block;
  parallel_for(shape.kv_heads * blocks, [&](int64_t task) {
    const int64_t head = task / blocks;
    const int64_t begin = task % blocks * block;
    const int64_t queries = std::min(block, q.rows - begin);
    const int64_t rows = group * queries;
    const int64_t row_floats = kKvTile + isa.lanes;  // of scores, with room for the mask
    static thread_local Scratch<float> scratch;
    float* keys = scratch.get(static_cast<size_t>(
        kKvTile * (2 * dim + padded_dim) +
        isa.tile * (row_floats + kKvTile + dim + width) + rows * (padded_dim + 2)));
    float* panels = keys + kKvTile * dim;  // [kKvTile / width][dim, width]
    float* values = panels + kKvTile * dim;
    float* scores = values + kKvTile * padded_dim;
    float* weights = scores + isa.tile * row_floats;
    float* packed = weights + isa.tile * kKvTile;
    float* product = packed + isa.tile * dim;
    float* outputs = product + isa.tile * width;  // [rows, padded_dim]
    Carried* carried = reinterpret_cast<Carried*>(outputs + rows * padded_dim);
    std::fill_n(outputs, rows * padded_dim, 0.0f);
    std::fill_n(carried, rows, Carried{-INFINITY, 0});
    std::fill_n(values, kKvTile * padded_dim, 0.0f);

    const int64_t limit = first + begin + queries;  // positions that the last query sees
    for (int64_t tile = 0; tile < limit; tile += kKvTile) {
      const int64_t count = std::min(kKvTile, limit - tile);
      if (seen_of(shape, first + begin, tile, count).begin >= count) continue;
      k.read(kernel.decode, tile, head * dim, {keys, count, dim});
      v.read(kernel.decode, tile, head * dim, {values, count, dim, padded_dim});
      const int64_t key_panels = (count + width - 1) / width;
      for (int64_t b = 0; b < key_panels; ++b) {
        float* panel = panels + b * dim * width;
        for (int64_t j = 0; j < width; ++j) {
          const int64_t row = b * width + j;
          const float* key = keys + row * dim;
          for (int64_t d = 0; d < dim; ++d)
            panel[d * width + j] = row < count ? key[d] : 0;
        }
      }
      for (int64_t h = 0; h < group; ++h) {
        for (int64_t t = 0; t < queries;) {
          const int mr = isa.next_tile(queries - t);
          const int64_t now = std::min<int64_t>(mr, queries - t);
          const int64_t last = first + begin + t + now - 1;
          const Seen any = {seen_of(shape, first + begin + t, tile, count).begin,
                            seen_of(shape, last, tile, count).end};
          if (any.begin >= any.end) {
            t += now;
            continue;
          }
          pack_rows(q.row(begin + t) + (head * group + h) * dim, q.stride, now, dim, mr,
                    packed);
          for (int64_t i = 0; i < dim * mr; ++i) packed[i] *= shape.scale;
          for (int64_t b = 0; b < key_panels; ++b) {
            const float* panel = panels + b * dim * width;
            isa.product_f32(mr, packed, panel, panel + isa.lanes, width, dim, false,
                            product);
            for (int64_t m = 0; m < now; ++m) {
              std::memcpy(scores + m * row_floats + b * width, product + m * width,
                          static_cast<size_t>(std::min(width, kKvTile - b * width)) *
                              sizeof(float));
            }
          }
          float shrinks[32], scales[32];  // more rows than any tile has
          for (int64_t m = 0; m < now; ++m) {
            float* row = scores + m * row_floats;
            const Seen seen = seen_of(shape, first + begin + t + m, tile, count);
            if (seen.begin >= seen.end) {
              std::fill_n(row, count, 0.0f);
              shrinks[m] = 1, scales[m] = 0;
              continue;
            }
            shrinks[m] = carry(*kernel.isa, isa.lanes, seen, count, row,
                               carried[h * queries + t + m], &scales[m]);
          }
          pack_rows(scores, row_floats, now, count, mr, weights);
          for (int64_t d = 0; d < padded_dim; d += width) {
            const float* panel = values + d;
            isa.product_f32(mr, weights, panel, panel + isa.lanes, padded_dim, count,
                            false, product);
            for (int64_t m = 0; m < now; ++m) {
              float* out = outputs + (h * queries + t + m) * padded_dim + d;
              const float* add = product + m * width;
              for (int64_t i = 0; i < width; ++i)
                out[i] = out[i] * shrinks[m] + add[i] * scales[m];
            }
          }
          t += now;
        }
      }
    }
    for (int64_t h = 0; h < group; ++h) {
      for (int64_t t = 0; t < queries; ++t) {
        const int64_t r = h * queries + t;
        float* out = y.row(begin + t) + (head * group + h) * dim;
        for (int64_t d = 0; d < dim; ++d)
          out[d] = outputs[r * padded_dim + d] / carried[r].sum;
      }
    }
  });
}

}  // namespace

const std::vector<KvAttentionKernel>& kv_attention_kernels() {
  static const std::vector<KvAttentionKernel> kernels = {
#include "kernels/ops/kv_attention/kernels.inc"
  };
  return kernels;
}

const KvAttentionKernel& select_kv_attention(uint32_t cpu_flags) {
  for (const KvAttentionKernel& kernel : kv_attention_kernels()) {
    if ((kernel.flags & ~cpu_flags) == 0) return kernel;
  }
  return kv_attention_kernels().back();  // the reference needs nothing
}

void kv_attention(const KvAttentionKernel& kernel, const AttentionShape& shape,
                  MatrixView<const float> q, const KvRows& k, const KvRows& v,
                  MatrixView<float> y) {
  if (kernel.isa == nullptr) return kv_attention_reference(shape, q, k, v, y);
  // As in attention.cpp: from 4 rows on the panels pay.
  if (q.rows < 4) return attend_few(kernel, shape, q, k, v, y);
  attend_many(kernel, shape, q, k, v, y);
}

}  // namespace nibble
