// The schemes of a KV cache: what its keys and its values are stored as, and what the
// queries that meet them are rounded to.
//
// Keys and values of a state are matrices [positions, kv_heads * head_dim] that grow by
// rows; a scheme must not need rows that are not there yet:
//
//   f32 f16 bf16     stored as they are
//   r, gN blocks     each position has its own scales: g64 with head_dim 64 is a scale a
//                    head and position
//   bTxC blocks      T positions share scales (C = 1: per channel); the newest, partial
//                    block of T stays f16
//   one t block      static: one scale for every position, found by calibration; what it
//                    does not reach is clamped (kv_cache_scheme of compressed-tensors)
//
// Queries are not kept: each position's are rounded as such rows would be and read back
// (FP8 and INT8 products of attention read them so). f32 unless they are named, and only
// blocks of a position (r, gN).
//
// Text: "KEYS,VALUES,QUERIES", "KEYS,VALUES", or one text for both; each a scheme or a
// short name, H being
// head_dim, or the smallest whole number of heads of 32 values (the row, if narrower):
//
//   int8  int8n/gH@f16
//   fp8   e4m3/gH@f16
//   int4  keys uint4/b32x1@f16+m/b32x1@f16, values uint4/gH@f16+m/gH@f16
//   int8-static  int8/t@bf16
//   fp8-static   e4m3/t@bf16
//
// A static scheme may bring its scale: "e4m3/t@bf16=0.0625". Without one it is what
// calibration has yet to complete: a cache cannot be made of it.
//
// invalid_argument: the text is no scheme (quotes it), or a scale that its element does
// not hold. unsupported: other blocks that need the whole tensor (c, fN, t beside more),
// shifted levels, blocks of several kinds in one scheme.
#pragma once

#include <string>
#include <string_view>

#include "kernels/scheme/quant_scheme.h"

namespace nibble {

struct KvScheme {
  QuantScheme keys, values, queries;     // default: f32
  float key_scale = 0, value_scale = 0;  // of static schemes; 0: not calibrated yet
  bool operator==(const KvScheme&) const = default;
  bool is_f32() const { return *this == KvScheme{}; }
  bool rounds_queries() const { return queries != QuantScheme{}; }
};

Result<KvScheme> parse_kv_scheme(std::string_view text, int64_t kv_heads,
                                 int64_t head_dim);
// "KEYS,VALUES,QUERIES", or as few texts as say it; kv_text: one of the first two.
std::string to_string(const KvScheme& scheme);
std::string kv_text(const QuantScheme& scheme, float scale);
// Can a cache be stored so? Can queries be rounded so?
Status validate_kv_scheme(const QuantScheme& scheme);
Status validate_query_scheme(const QuantScheme& scheme);

// One scale for every position. of a KvScheme: keys or values have such.
bool is_static_kv(const QuantScheme& scheme);
bool is_static_kv(const KvScheme& scheme);
// The scale, rounded up to the scheme's element, under which this magnitude is the
// largest that is not clamped; 1 for 0.
float static_kv_scale(const QuantScheme& scheme, float largest_magnitude);

// Positions that share scales: T of bTxC blocks, 1 of every other scheme.
int64_t kv_block_positions(const QuantScheme& scheme);

}  // namespace nibble
