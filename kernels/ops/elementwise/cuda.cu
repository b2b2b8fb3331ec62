#include "kernels/cuda/launch.h"
#include "kernels/ops/elementwise/cuda_kernel.h"

namespace nibble::cuda {

Status run_elementwise(const AddCall& call, void* stream) {
  StreamLauncher launcher{"elementwise", static_cast<cudaStream_t>(stream)};
  NIBBLE_RETURN_IF_ERROR(dispatch_elementwise(call, launcher));
  return launcher.status;
}

}  // namespace nibble::cuda
