#include <algorithm>

#include "kernels/ops/kv_attention/cuda_kv_attention.h"

namespace nibble::cuda {

KvAttentionPlan plan_kv_attention(const AttentionShape& shape, int batch, int longest,
                                  int multiprocessors) {
  constexpr int kHeads = 16, kStep = 64;  // a block's heads, positions its warps take
  const int64_t group = shape.heads / shape.kv_heads;
  const int64_t rows = shape.kv_heads * ((group + kHeads - 1) / kHeads) * batch;
  const int64_t context = std::max<int64_t>(
      1, shape.window > 0 ? std::min<int64_t>(longest, shape.window) : longest);
  const int64_t steps = (context + kStep - 1) / kStep;
  // Two or three blocks run on a multiprocessor at a time; twice as many hide their ends.
  const int64_t wanted = (6 * int64_t{multiprocessors} + rows - 1) / rows;
  const int64_t splits = std::clamp<int64_t>(wanted, 1, steps);
  const int64_t per_split = (steps + splits - 1) / splits;
  KvAttentionPlan plan;
  plan.splits = static_cast<int>((steps + per_split - 1) / per_split);
  plan.counters = static_cast<int>(rows);
  if (plan.splits > 1) {
    plan.partial_bytes = batch * shape.heads * plan.splits * (shape.head_dim + 2) * 4;
  }
  return plan;
}

}  // namespace nibble::cuda
