// What an instruction set gives attention, beside the panel product.
//
// Plain data and function pointers. Nothing here allocates; safe from any thread.
#pragma once

#include <cstdint>

namespace nibble {

struct AttentionIsa {
  // a[j] = exp(a[j] - max a) for j < n; returns their sum, and max a in `highest`. a has
  // room for whole vectors and holds values after n that exp turns into (nearly) 0.
  float (*softmax)(float* a, int64_t n, float* highest);
  // From the exponentials a and g, the gradient of what they weigh: a[j] *= factor, then
  // g[j] = a[j] * (g[j] - sum_i a[i] g[i]) * scale. n is whole vectors.
  void (*softmax_backward)(float* a, float* g, int64_t n, float factor, float scale);
  // a[j] = sum_d q[d] * k[j, d], j < n.  k [n, head_dim], rows `stride` apart
  void (*scores)(const float* q, const float* k, int64_t stride, int64_t head_dim,
                 int64_t n, float* a);
  // y[d] = (sum_j a[j] * v[j, d]) * factor
  void (*weighted_sum)(const float* a, const float* v, int64_t stride, int64_t head_dim,
                       int64_t n, float factor, float* y);
};

namespace avx2 {
extern const AttentionIsa attention_isa;
}
namespace avx512vnni {
extern const AttentionIsa attention_isa;
}

}  // namespace nibble
