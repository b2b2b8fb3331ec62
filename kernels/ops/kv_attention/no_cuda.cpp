#include "kernels/ops/kv_attention/cuda_kv_attention.h"

namespace nibble::cuda {

Status run_kv_attention(const KvAttentionCall&, const KvAttentionPlan&, void*) {
  return error(StatusCode::unsupported,
               "[attention] this build has no CUDA; build the preset `cuda`");
}

}  // namespace nibble::cuda
