// Attention of grouped query heads over keys and values: causal, over a cache, or of all
// the tokens of a sequence to each other.
//
// For query row t (position p = length - tokens + t; not causal: p = length - 1) of head
// h, with g = h / (heads / kv_heads):
//   a[j] = scale * sum_d q[t, h, d] * k[j, g, d]                j = first .. p
//   y[t, h, :] = sum_j softmax(a)[j] * v[j, g, :]
// first = 0, or with a window max(0, p + 1 - window): the last `window` positions.
//
//   q, y  [tokens, heads * head_dim]
//   k, v  [length, kv_heads * head_dim], the rows of this call's tokens included
//
// tolerance_spec: |y - reference| <= (8 (head_dim + 8) A + 2 (length + 8)) 2^-24 max_j
// |v[j, d]| with A = max(1, max_j scale * sum_d |q k|): an error e in a score changes its
// weight by a factor e^e, the exponentials and their sum round length times. Results
// never depend on the thread count. Per-thread scratch; safe from any thread.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/base/cpu.h"
#include "kernels/base/matrix_view.h"

namespace nibble {

struct AttentionShape {
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  float scale = 0;
  int64_t window = 0;  // 0: every position before
  bool causal = true;  // false: every position, and no window

  // The first position that the one at p sees, and the one after the last.
  int64_t first_seen(int64_t p) const {
    return window > 0 && p + 1 > window ? p + 1 - window : 0;
  }
  int64_t end_seen(int64_t p, int64_t length) const { return causal ? p + 1 : length; }
};

void attention_reference(const AttentionShape& shape, MatrixView<const float> q,
                         MatrixView<const float> k, MatrixView<const float> v,
                         MatrixView<float> y);  // in double

struct PanelIsa;
struct AttentionIsa;
struct AttentionKernel {
  const char* name;
  uint32_t flags;
  const PanelIsa* panel;  // null in the reference row
  const AttentionIsa* isa;
};
const std::vector<AttentionKernel>& attention_kernels();
const AttentionKernel& select_attention(uint32_t cpu_flags = usable_cpu_flags());
void attention(const AttentionKernel& kernel, const AttentionShape& shape,
               MatrixView<const float> q, MatrixView<const float> k,
               MatrixView<const float> v, MatrixView<float> y);

// The gradients of sum(dy * y) for sequences that attend to themselves, one after another
// in the rows. Nothing of the forward pass is needed: scores are computed again, some
// rows at a time.
//
//   q, dy, dq         [sequences * length, heads * head_dim]
//   k, v, dk, dv      [sequences * length, kv_heads * head_dim]
//
// tolerance_spec, with E the relative error that attention's bound gives a weight, B =
// the largest sum_d |dy v| of a query and a key, and P = the largest sum of the weights
// of one key: |dq - reference| <= 8 E scale B max |k|, |dk - reference| <= 8 E scale B P
// max |q|, |dv - reference| <= 4 E P max |dy|. Results never depend on the thread count.
// Scratch of 100 rows of scores and the panels of a key head; safe from any thread.
void attention_backward(const AttentionKernel& kernel, const AttentionShape& shape,
                        int64_t sequences, MatrixView<const float> q,
                        MatrixView<const float> k, MatrixView<const float> v,
                        MatrixView<const float> dy, MatrixView<float> dq,
                        MatrixView<float> dk, MatrixView<float> dv);
void attention_backward_reference(const AttentionShape& shape, int64_t sequences,
                                  MatrixView<const float> q, MatrixView<const float> k,
                                  MatrixView<const float> v, MatrixView<const float> dy,
                                  MatrixView<float> dq, MatrixView<float> dk,
                                  MatrixView<float> dv);  // in double

}  // namespace nibble
