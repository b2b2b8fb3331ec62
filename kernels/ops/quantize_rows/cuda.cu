#include "kernels/cuda/launch.h"
#include "kernels/ops/quantize_rows/cuda_kernel.h"

namespace nibble::cuda {

Status run_quantize_rows(const QuantizeRowsCall& call, void* stream) {
  StreamLauncher launcher{"quantize_rows", static_cast<cudaStream_t>(stream)};
  NIBBLE_RETURN_IF_ERROR(dispatch_quantize_rows(call, launcher));
  return launcher.status;
}

Status run_store_kv(const StoreKvCall& call, void* stream) {
  StreamLauncher launcher{"kv", static_cast<cudaStream_t>(stream)};
  NIBBLE_RETURN_IF_ERROR(dispatch_store_kv(call, launcher));
  return launcher.status;
}

}  // namespace nibble::cuda
