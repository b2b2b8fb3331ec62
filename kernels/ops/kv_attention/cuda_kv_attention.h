// One new token per sequence attends to its KV cache on a GPU, in parts of the context.
//
//   y[b, h, :] = sum_j softmax_j(scale q[b, h] . k[b, j, g]) v[b, j, g, :]
//
// with g = h / (heads / kv_heads), j from max(0, length - window) (window 0: from 0) to
// length - 1, length the rows of b's cache.
//
//   q, y     [batch, heads * head_dim] f16 or bf16; y f32 too
//   k, v     [batch, capacity, kv_heads * head_dim] f16, or codes int8 (-127 .. 127) or
//            e4m3 under one f16 scale a position and head: [batch, capacity, kv_heads],
//            the bits of the cache schemes f16, int8n/gH@f16, e4m3/gH@f16 (H = head_dim)
//   lengths  [batch] int32, each 1 to capacity
//
// Several new tokens of one sequence are a batch with one_cache: row b sees the first
// lengths[b] positions of the one cache [capacity, ..].
//
// head_dim 64, 128 or 256, in f16 32 too; heads a multiple of kv_heads.
//
// The running softmax of kv_attention.h, on tensor cores: q in f16 after division by a
// power of two (its head's largest is in [1, 2)), codes as they are, scores in f32. With
// value scales s_j the weights carry along b_j = log2(e) a_j + log2 s_j in place of a_j,
//   y = sum 2^(b_j - m) v_j / sum (2^(b_j - m) / s_j)
// so that weights meet the codes as f16 numbers of at most 1. The last block of a head
// joins the parts in their order: the same bits each run on the same kind of GPU.
//
// tolerance_spec: |y - reference| <= (16 (head_dim + 8) 2^-24 A + 2^-24 Q + 2^-10
//   + 4 (length + 8) 2^-24) max_j |v[j, d]| + half a unit in y's last place;
//   A as in attention.h, Q = |scale| max_d |q[d]| max_j sum_d |k[j, d]|: what f16 loses
//   of numbers below 2^-14 of their head's largest; 2^-10: weights as f16.
//
// plan_kv_attention decides the parts. No CUDA header is needed; cuda.cu or no_cuda.cpp
// (unsupported). Pointers are device memory, stream a cudaStream_t.
#pragma once

#include "kernels/base/status.h"
#include "kernels/cuda/device.h"
#include "kernels/ops/attention/attention.h"

namespace nibble::cuda {

enum class KvForm : uint8_t { f16, int8, e4m3 };
constexpr bool has_kv_attention(KvForm form, int64_t head_dim) {
  return head_dim == 64 || head_dim == 128 || head_dim == 256 ||
         (head_dim == 32 && form == KvForm::f16);
}

struct KvAttentionPlan {
  int splits = 1;             // of each row's own context, in runs of whole 64 positions
  int64_t partial_bytes = 0;  // when splits > 1
  int counters = 0;           // words
};
KvAttentionPlan plan_kv_attention(const AttentionShape& shape, int batch, int longest,
                                  int multiprocessors);

struct KvAttentionCall {
  AttentionShape shape;
  Float16 input = Float16::f16;
  Output output = Output::f16;
  KvForm form = KvForm::f16;
  int batch = 1;
  int64_t capacity = 0;
  bool one_cache = false;
  const void* q = nullptr;
  int64_t q_stride = 0;  // elements from row to row; 0: heads * head_dim
  const void *k = nullptr, *v = nullptr;
  const uint16_t *k_scales = nullptr, *v_scales = nullptr;  // codes only
  const int32_t* lengths = nullptr;
  void* y = nullptr;
  float* partial = nullptr;      // plan.partial_bytes
  uint32_t* counters = nullptr;  // plan.counters, 0 before and after
};

// Starts the kernel. unsupported: no CUDA in this build, or a head_dim without a kernel.
// invalid_argument: a shape or pointer (names it). internal: CUDA's own error.
Status run_kv_attention(const KvAttentionCall& call, const KvAttentionPlan& plan,
                        void* stream);

}  // namespace nibble::cuda
