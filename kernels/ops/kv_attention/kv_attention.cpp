#include "kernels/ops/kv_attention/kv_attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>

#include "kernels/base/parallel.h"
#include "kernels/ops/attention/attention_isa.h"
#include "kernels/ops/kv_attention/kv_decode.h"
#include "kernels/ops/panel/panel.h"
#include "kernels/ops/scratch.h"

namespace nibble {
namespace {

// exp() of it is as good as 0 beside the row's largest term, which is exp(0) = 1.
constexpr float kMasked = -1e30f;
// Positions decoded at a time: keys and values of a head of 128 take 128 KiB, half an L2.
constexpr int64_t kTile = 128;
// Positions that one task of a few queries takes.
constexpr int64_t kRun = 1024;
// Runs from which on a task takes all heads: four threads still have work.
constexpr int64_t kRunsEnough = 4;
// Query rows that share a decoded tile, about: enough to pay for the decoding.
constexpr int64_t kQueries = 120;

// What a query row carries from tile to tile.
struct Carried {
  float maximum, sum;
};

// Positions [begin, end) of a tile at `tile` that the query at position p sees.
struct Seen {
  int64_t begin, end;
};
Seen seen_of(const AttentionShape& shape, int64_t p, int64_t tile, int64_t count) {
  return {std::clamp<int64_t>(shape.first_seen(p) - tile, 0, count),
          std::clamp<int64_t>(p + 1 - tile, 0, count)};
}

// The largest of n > 0 numbers, by eight maxima side by side: one alone would wait for
// itself.
float highest_of(const float* a, int64_t n) {
  float most[8];
  std::fill_n(most, 8, a[0]);
  int64_t j = 0;
  for (; j + 8 <= n; j += 8) {
    for (int i = 0; i < 8; ++i) most[i] = a[j + i] > most[i] ? a[j + i] : most[i];
  }
  for (; j < n; ++j) most[0] = a[j] > most[0] ? a[j] : most[0];
  return *std::max_element(most, most + 8);
}

// Scores of the seen positions to weights e^(a - m'), others 0; what was carried so far
// shrinks by the factor that comes back. a has room for `lanes` more.
float carry(const AttentionKernel& kernel, int64_t lanes, const Seen& seen, int64_t count,
            float* a, Carried& carried, float* scale) {
  for (int64_t j = 0; j < seen.begin; ++j) a[j] = kMasked;
  for (int64_t j = seen.end; j < count + lanes; ++j) a[j] = kMasked;
  const float highest = highest_of(a + seen.begin, seen.end - seen.begin);
  const float sum = kernel.isa->softmax(a, seen.end);
  for (int64_t j = 0; j < seen.begin; ++j) a[j] = 0;
  for (int64_t j = seen.end; j < count; ++j) a[j] = 0;
  const float maximum = std::max(carried.maximum, highest);
  const float shrink = std::exp(carried.maximum - maximum);
  *scale = std::exp(highest - maximum);
  carried.sum = carried.sum * shrink + sum * *scale;
  carried.maximum = maximum;
  return shrink;
}

// Rows whose codes are multiplied as they are, a scale a position; else they are decoded.
std::optional<KvCodes> direct_codes(const KvAttentionKernel& kernel, const KvRows& rows,
                                    int64_t dim) {
  if (dim % kernel.decode->lanes != 0) return std::nullopt;
  for (int64_t column = dim; column < rows.width(); column += dim) {
    if (!rows.codes(column, dim)) return std::nullopt;
  }
  return rows.codes(0, dim);
}

// Positions [first, first + count) of one key head and the rows that attend to them.
struct Tile {
  int64_t first, count, column;
  const float* queries;  // [rows, head_dim]
  float* scores;         // [rows, stride]
  int64_t stride, rows;
  int64_t next;  // where in the rows from `first` + count on fetching begins; -1: nowhere
};

KvCodes codes_of_tile(const KvCodes& codes, const Tile& tile) {
  const int64_t bytes = codes.code == KvCode::f16 || codes.code == KvCode::bf16 ? 2 : 1;
  const uint8_t* rows = codes.codes + tile.first * codes.row_bytes;
  const uint8_t* next = rows + tile.count * codes.row_bytes + tile.next * bytes;
  return {codes.code, rows + tile.column * bytes, codes.row_bytes,
          tile.next < 0 ? nullptr : next};
}

// Scores of every position, seen or not.
void scores_of(const KvAttentionKernel& kernel, const Tile& tile, const KvRows& k,
               const std::optional<KvCodes>& codes, int64_t dim, float* keys,
               float* scales) {
  const KvDecodeIsa& isa = *kernel.decode;
  if (!codes) {
    k.read(&isa, tile.first, tile.column, {keys, tile.count, dim});
    for (int64_t r = 0; r < tile.rows; ++r) {
      kernel.isa->scores(tile.queries + r * dim, keys, dim, dim, tile.count,
                         tile.scores + r * tile.stride);
    }
    return;
  }
  if (k.is_scaled()) k.scale_rows(isa, tile.first, tile.count, tile.column, scales);
  for (int64_t r = 0; r < tile.rows; r += isa.direct_heads) {
    const auto heads =
        static_cast<int>(std::min<int64_t>(isa.direct_heads, tile.rows - r));
    isa.scores(codes_of_tile(*codes, tile), tile.queries + r * dim, heads, dim,
               tile.count, k.is_scaled() ? scales : nullptr,
               tile.scores + r * tile.stride, tile.stride);
  }
}

// added[r] = factors[r] sum_j a[r, j] v[j]; changes a.
void weigh(const KvAttentionKernel& kernel, const Tile& tile, const KvRows& v,
           const std::optional<KvCodes>& codes, int64_t dim, float* values, float* scales,
           const float* factors, float* added) {
  const KvDecodeIsa& isa = *kernel.decode;
  if (!codes) {
    v.read(&isa, tile.first, tile.column, {values, tile.count, dim});
    for (int64_t r = 0; r < tile.rows; ++r) {
      kernel.isa->weighted_sum(tile.scores + r * tile.stride, values, dim, dim,
                               tile.count, factors[r], added + r * dim);
    }
    return;
  }
  if (v.is_scaled()) {
    v.scale_rows(isa, tile.first, tile.count, tile.column, scales);
    for (int64_t r = 0; r < tile.rows; ++r) {
      float* a = tile.scores + r * tile.stride;
      for (int64_t j = 0; j < tile.count; ++j) a[j] *= scales[j];
    }
  }
  for (int64_t r = 0; r < tile.rows; r += isa.direct_heads) {
    const auto heads =
        static_cast<int>(std::min<int64_t>(isa.direct_heads, tile.rows - r));
    isa.weighted_sum(codes_of_tile(*codes, tile), tile.scores + r * tile.stride,
                     tile.stride, heads, dim, tile.count, factors + r, added + r * dim);
  }
}

void attend_few(const KvAttentionKernel& kernel, const AttentionShape& shape,
                MatrixView<const float> q, const KvRows& k, const KvRows& v,
                MatrixView<float> y) {
  const AttentionKernel& float_kernel = {kernel.name, kernel.flags, kernel.panel,
                                         kernel.isa};
  const int64_t dim = shape.head_dim;
  const int64_t lanes = kernel.panel->lanes;
  const int64_t length = k.length();
  const int64_t first = length - q.rows;
  const int64_t group = shape.heads / shape.kv_heads;
  const int64_t rows = group * q.rows;
  const int64_t runs = (length + kRun - 1) / kRun;
  // Rows of the cache hold all heads: where runs alone are work enough, a task takes
  // every head of its run, and so reads memory as it lies.
  const int64_t together = runs >= kRunsEnough ? shape.kv_heads : 1;
  const int64_t parts_of_run = shape.kv_heads / together;
  // Of each run, head and row: the output so far, the maximum, the sum.
  const int64_t size = dim + 2;
  static thread_local Scratch<float> shared;
  float* parts = shared.get(static_cast<size_t>(runs * shape.kv_heads * rows * size));
  const std::optional<KvCodes> key_codes = direct_codes(kernel, k, dim);
  const std::optional<KvCodes> value_codes = direct_codes(kernel, v, dim);
  const auto one = [&, parts](int64_t i) {
    const int64_t begin = i % parts_of_run * together;
    const int64_t run = i / parts_of_run * kRun;
    static thread_local Scratch<float> scratch;
    float* keys = scratch.get(static_cast<size_t>(2 * kTile * dim + 2 * kTile +
                                                  rows * (kTile + lanes + 2 * dim + 1)));
    float* values = keys + kTile * dim;
    float* scales = values + kTile * dim;  // of keys, then of values
    float* scores = scales + 2 * kTile;    // [rows, kTile + lanes]
    float* scaled = scores + rows * (kTile + lanes);
    float* added = scaled + rows * dim;
    float* factors = added + rows * dim;
    float* mine = parts + (i / parts_of_run * shape.kv_heads + begin) * rows * size;
    for (int64_t r = 0; r < together * rows; ++r) {
      std::fill_n(mine + r * size, dim, 0.0f);
      mine[r * size + dim] = -INFINITY;
      mine[r * size + dim + 1] = 0;
    }
    for (int64_t tile = run; tile < std::min(length, run + kRun); tile += kTile) {
      const int64_t count = std::min({kTile, length - tile, run + kRun - tile});
      if (seen_of(shape, first, tile, count).begin >= count) continue;
      for (int64_t head = begin; head < begin + together; ++head) {
        for (int64_t r = 0; r < rows; ++r) {
          const float* query = q.row(r % q.rows) + (head * group + r / q.rows) * dim;
          for (int64_t d = 0; d < dim; ++d) scaled[r * dim + d] = query[d] * shape.scale;
        }
        float* outputs = mine + (head - begin) * rows * size;
        const Tile part = {
            tile,   count,         head * dim, scaled,
            scores, kTile + lanes, rows,       together > 1 ? count * head * dim : -1};
        scores_of(kernel, part, k, key_codes, dim, keys, scales);
        for (int64_t r = 0; r < rows; ++r) {
          float* a = scores + r * (kTile + lanes);
          const Seen seen = seen_of(shape, first + r % q.rows, tile, count);
          float* out = outputs + r * size;
          factors[r] = 0;
          if (seen.begin >= seen.end) {
            std::fill_n(a, count, 0.0f);
            continue;
          }
          Carried carried = {out[dim], out[dim + 1]};
          const float shrink =
              carry(float_kernel, lanes, seen, count, a, carried, &factors[r]);
          for (int64_t d = 0; d < dim; ++d) out[d] *= shrink;
          out[dim] = carried.maximum;
          out[dim + 1] = carried.sum;
        }
        weigh(kernel, part, v, value_codes, dim, values, scales + kTile, factors, added);
        for (int64_t r = 0; r < rows; ++r) {
          float* out = outputs + r * size;
          for (int64_t d = 0; d < dim; ++d) out[d] += added[r * dim + d];
        }
      }
    }
  };
  const int64_t tasks = runs * parts_of_run;
  if (rows * shape.kv_heads * length * dim < (1 << 15)) {
    for (int64_t i = 0; i < tasks; ++i) one(i);
  } else {
    parallel_for(tasks, one);
  }
  for (int64_t head = 0; head < shape.kv_heads; ++head) {
    for (int64_t r = 0; r < rows; ++r) {
      const auto part = [&](int64_t run) {
        return parts + ((run * shape.kv_heads + head) * rows + r) * size;
      };
      float maximum = -INFINITY, sum = 0;
      for (int64_t run = 0; run < runs; ++run)
        maximum = std::max(maximum, part(run)[dim]);
      float* out = y.row(r % q.rows) + (head * group + r / q.rows) * dim;
      std::fill_n(out, dim, 0.0f);
      for (int64_t run = 0; run < runs; ++run) {
        const float* from = part(run);
        const float factor = std::exp(from[dim] - maximum);
        sum += from[dim + 1] * factor;
        for (int64_t d = 0; d < dim; ++d) out[d] += from[d] * factor;
      }
      for (int64_t d = 0; d < dim; ++d) out[d] /= sum;
    }
  }
}

void attend_many(const KvAttentionKernel& kernel, const AttentionShape& shape,
                 MatrixView<const float> q, const KvRows& k, const KvRows& v,
                 MatrixView<float> y) {
  const AttentionKernel& float_kernel = {kernel.name, kernel.flags, kernel.panel,
                                         kernel.isa};
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
    const int64_t row_floats = kTile + isa.lanes;  // of scores, with room for the mask
    static thread_local Scratch<float> scratch;
    float* keys = scratch.get(static_cast<size_t>(
        kTile * (2 * dim + padded_dim) + isa.tile * (row_floats + kTile + dim + width) +
        rows * (padded_dim + 2)));
    float* panels = keys + kTile * dim;  // [kTile / width][dim, width]
    float* values = panels + kTile * dim;
    float* scores = values + kTile * padded_dim;
    float* weights = scores + isa.tile * row_floats;
    float* packed = weights + isa.tile * kTile;
    float* product = packed + isa.tile * dim;
    float* outputs = product + isa.tile * width;  // [rows, padded_dim]
    Carried* carried = reinterpret_cast<Carried*>(outputs + rows * padded_dim);
    std::fill_n(outputs, rows * padded_dim, 0.0f);
    std::fill_n(carried, rows, Carried{-INFINITY, 0});
    std::fill_n(values, kTile * padded_dim, 0.0f);

    const int64_t limit = first + begin + queries;  // positions that the last query sees
    for (int64_t tile = 0; tile < limit; tile += kTile) {
      const int64_t count = std::min(kTile, limit - tile);
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
                          static_cast<size_t>(std::min(width, kTile - b * width)) *
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
            shrinks[m] = carry(float_kernel, isa.lanes, seen, count, row,
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
