// The schemes of a KV cache: what its keys and its values are stored as.
//
// Keys and values of a state are matrices [positions, kv_heads * head_dim] that grow by
// rows; a scheme must not need rows that are not there yet:
//
//   f32 f16 bf16     stored as they are
//   r, gN blocks     each position has its own scales: g64 with head_dim 64 is a scale a
//                    head and position
//   bTxC blocks      T positions share scales (C = 1: per channel); the newest, partial
//                    block of T stays f16
//
// Text: "KEYS,VALUES", or one text for both; each a scheme or a short name, H being
// head_dim, or the smallest whole number of heads of 32 values (the row, if narrower):
//
//   int8  int8n/gH@f16
//   fp8   e4m3/gH@f16
//   int4  keys uint4/b32x1@f16+m/b32x1@f16, values uint4/gH@f16+m/gH@f16
//
// invalid_argument: the text is no scheme (quotes it). unsupported: blocks that need the
// whole tensor (t, c, fN), shifted levels, blocks of several kinds in one scheme.
#pragma once

#include <string>
#include <string_view>

#include "kernels/scheme/quant_scheme.h"

namespace nibble {

struct KvScheme {
  QuantScheme keys, values;  // default: f32
  bool operator==(const KvScheme&) const = default;
  bool is_f32() const { return *this == KvScheme{}; }
};

Result<KvScheme> parse_kv_scheme(std::string_view text, int64_t kv_heads,
                                 int64_t head_dim);
// "KEYS,VALUES", or one text where they are equal.
std::string to_string(const KvScheme& scheme);
// Can a cache of rows of this width be stored so?
Status validate_kv_scheme(const QuantScheme& scheme);

// Positions that share scales: T of bTxC blocks, 1 of every other scheme.
int64_t kv_block_positions(const QuantScheme& scheme);

}  // namespace nibble
