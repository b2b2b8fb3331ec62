#include "kernels/cuda/launch.h"
#include "kernels/ops/silu_mul/cuda_kernel.h"

namespace nibble::cuda {

Status run_silu_mul(const SiluMulCall& call, void* stream) {
  StreamLauncher launcher{"silu_mul", static_cast<cudaStream_t>(stream)};
  NIBBLE_RETURN_IF_ERROR(dispatch_silu_mul(call, launcher));
  return launcher.status;
}

}  // namespace nibble::cuda
