// What attention over a KV cache, of few queries and of many, does from tile to tile.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "kernels/ops/attention/attention_isa.h"
#include "kernels/ops/kv_attention/kv_attention.h"

namespace nibble {

// Positions that go together: keys and values of a head of 128 decoded take 128 KiB, half
// an L2.
inline constexpr int64_t kKvTile = KvBytes::kPositions;

// What a query row carries from tile to tile.
struct Carried {
  float maximum, sum;
};

// Positions [begin, end) of a tile at `tile` that the query at position p sees.
struct Seen {
  int64_t begin, end;
};
inline Seen seen_of(const AttentionShape& shape, int64_t p, int64_t tile, int64_t count) {
  return {std::clamp<int64_t>(shape.first_seen(p) - tile, 0, count),
          std::clamp<int64_t>(p + 1 - tile, 0, count)};
}

// Scores of the seen positions to weights e^(a - m'), others 0; what was carried so far
// shrinks by the factor that comes back. a has room for `lanes` more.
inline float carry(const AttentionIsa& isa, int64_t lanes, const Seen& seen,
                   int64_t count, float* a, Carried& carried, float* scale) {
  // exp() of it is as good as 0 beside the row's largest term, which is exp(0) = 1.
  constexpr float kMasked = -1e30f;
  for (int64_t j = 0; j < seen.begin; ++j) a[j] = kMasked;
  for (int64_t j = seen.end; j < count + lanes; ++j) a[j] = kMasked;
  float highest;
  const float sum = isa.softmax(a, seen.end, &highest);
  for (int64_t j = 0; j < seen.begin; ++j) a[j] = 0;
  for (int64_t j = seen.end; j < count; ++j) a[j] = 0;
  float shrink = 1;
  *scale = 1;
  if (highest > carried.maximum) {
    shrink = std::exp(carried.maximum - highest);
    carried.maximum = highest;
  } else {
    *scale = std::exp(highest - carried.maximum);
  }
  carried.sum = carried.sum * shrink + sum * *scale;
  return shrink;
}

// Fewer than 4 queries: straight from the codes where the instruction set can.
void attend_few(const KvAttentionKernel& kernel, const AttentionShape& shape,
                MatrixView<const float> q, const KvRows& k, const KvRows& v,
                MatrixView<float> y);

}  // namespace nibble
