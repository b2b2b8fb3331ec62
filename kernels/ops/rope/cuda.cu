#include "kernels/cuda/launch.h"
#include "kernels/ops/rope/cuda_kernel.h"

namespace nibble::cuda {

Status run_rope(const RopeCall& call, void* stream) {
  StreamLauncher launcher{"rope", static_cast<cudaStream_t>(stream)};
  NIBBLE_RETURN_IF_ERROR(dispatch_rope(call, launcher));
  return launcher.status;
}

}  // namespace nibble::cuda
