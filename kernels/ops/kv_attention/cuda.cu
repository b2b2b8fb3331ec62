#include "kernels/cuda/launch.h"
#include "kernels/ops/kv_attention/cuda_dispatch.h"

namespace nibble::cuda {

Status run_kv_attention(const KvAttentionCall& call, const KvAttentionPlan& plan,
                        void* stream) {
  StreamLauncher launcher{"attention", static_cast<cudaStream_t>(stream)};
  NIBBLE_RETURN_IF_ERROR(dispatch_kv_attention(call, plan, launcher));
  return launcher.status;
}

}  // namespace nibble::cuda
