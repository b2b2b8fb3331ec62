#include "kernels/cuda/launch.h"
#include "kernels/ops/fake_quantize/cuda_kernel.h"

namespace nibble::cuda {

Status run_fake_quantize(const FakeQuantizeCall& call, void* stream) {
  StreamLauncher launcher{"fake_quantize", static_cast<cudaStream_t>(stream)};
  NIBBLE_RETURN_IF_ERROR(dispatch_fake_quantize(call, launcher));
  return launcher.status;
}

Status run_fake_quantize_gradient(const FakeQuantizeGradientCall& call, void* stream) {
  StreamLauncher launcher{"fake_quantize", static_cast<cudaStream_t>(stream)};
  NIBBLE_RETURN_IF_ERROR(dispatch_fake_quantize_gradient(call, launcher));
  return launcher.status;
}

}  // namespace nibble::cuda
