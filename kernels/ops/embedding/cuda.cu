#include "kernels/cuda/launch.h"
#include "kernels/ops/embedding/cuda_kernel.h"

namespace nibble::cuda {

Status run_embedding(const EmbeddingCall& call, void* stream) {
  StreamLauncher launcher{"embedding", static_cast<cudaStream_t>(stream)};
  NIBBLE_RETURN_IF_ERROR(dispatch_embedding(call, launcher));
  return launcher.status;
}

}  // namespace nibble::cuda
