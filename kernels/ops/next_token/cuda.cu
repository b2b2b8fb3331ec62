#include "kernels/cuda/launch.h"
#include "kernels/ops/next_token/cuda_kernel.h"

namespace nibble::cuda {

Status run_next_token(const NextTokenCall& call, void* stream) {
  StreamLauncher launcher{"next_token", static_cast<cudaStream_t>(stream)};
  NIBBLE_RETURN_IF_ERROR(dispatch_next_token(call, launcher));
  return launcher.status;
}

}  // namespace nibble::cuda
