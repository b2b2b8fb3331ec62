#include "kernels/cuda/launch.h"
#include "kernels/ops/rms_norm/cuda_kernel.h"

namespace nibble::cuda {

Status run_rms_norm(const RmsNormCall& call, void* stream) {
  StreamLauncher launcher{"rms_norm", static_cast<cudaStream_t>(stream)};
  NIBBLE_RETURN_IF_ERROR(dispatch_rms_norm(call, launcher));
  return launcher.status;
}

}  // namespace nibble::cuda
