// Causal attention over a KV cache of any scheme: attention/attention.h's formula on the
// rows that the cache stands for.
//
//   y = attention(shape, q, read(k), read(v))
//
//   q, y  [tokens, heads * head_dim]
//   k, v  kv_rows.h, [length, kv_heads * head_dim], the rows of this call's tokens
//   included
//
// Rows with vectors go through the cache 128 positions at a time: decode, score, and
// carry a running maximum m, sum l and output o along (Milakov and Gimelshein 2018,
// section 3):
//
//   m' = max(m, max a);  l' = l e^(m - m') + sum_j e^(a_j - m')
//   o' = o e^(m - m') + sum_j e^(a_j - m') v_j;  y = o / l at the end
//
// so neither the scores of a long context nor its decoded keys and values ever exist as a
// whole. A few queries split the positions into fixed runs of 1,024 that go in parallel
// and are joined in order. Results never depend on the thread count.
//
// Rows with int8 products multiply integer codes by 24-bit numbers: a query's values
// under its largest, and the weights e^(a_j - m) s_j of 128 positions under theirs.
//
// tolerance_spec: attention.h's, of the decoded rows; rows with int8 products with
// max_d |q| sum_d |k| in place of sum_d |q k|, and max |v| over all columns: a number of
// 24 bits is off by 2^-24 of the largest. Per-thread scratch that does not
// grow with the context; safe from any thread.
#pragma once

#include "kernels/ops/attention/attention.h"
#include "kernels/ops/kv_attention/kv_rows.h"

namespace nibble {

// The definition: reads the cache as a whole, then attention_reference. Allocates.
void kv_attention_reference(const AttentionShape& shape, MatrixView<const float> q,
                            const KvRows& k, const KvRows& v, MatrixView<float> y);

struct KvAttentionKernel {
  const char* name;
  uint32_t flags;
  const PanelIsa* panel;  // null in the reference row
  const AttentionIsa* isa;
  const KvDecodeIsa* decode;
};
const std::vector<KvAttentionKernel>& kv_attention_kernels();
const KvAttentionKernel& select_kv_attention(uint32_t cpu_flags = usable_cpu_flags());
void kv_attention(const KvAttentionKernel& kernel, const AttentionShape& shape,
                  MatrixView<const float> q, const KvRows& k, const KvRows& v,
                  MatrixView<float> y);

}  // namespace nibble
