#include "kernels/cuda/launch.h"
#include "kernels/ops/linear/cuda_dequantize.h"
#include "kernels/ops/linear/cuda_dispatch.h"
#include "kernels/ops/linear/cuda_forms.h"
#include "kernels/ops/linear/cuda_plain_kernel.h"
#include "kernels/ops/linear/cuda_prefill_kernel.h"

namespace nibble::cuda {

Status run_linear(const LinearCall& call, const LinearPlan& plan, void* stream) {
  NIBBLE_RETURN_IF_ERROR(check_linear_call(call, plan));
  return with_linear_form(call.form, [&]<LinearForm kForm>() {
    return run_linear_form<kForm>(call, plan, stream);
  });
}

Status run_dequantize(const DequantizeCall& call, void* stream) {
  StreamLauncher launcher{"linear", static_cast<cudaStream_t>(stream)};
  NIBBLE_RETURN_IF_ERROR(dispatch_dequantize(call, launcher));
  return launcher.status;
}

Status run_unpack_codes(const UnpackCodesCall& call, void* stream) {
  StreamLauncher launcher{"linear", static_cast<cudaStream_t>(stream)};
  NIBBLE_RETURN_IF_ERROR(dispatch_unpack_codes(call, launcher));
  return launcher.status;
}

Status run_epilogue(const EpilogueCall& call, void* stream) {
  StreamLauncher launcher{"linear", static_cast<cudaStream_t>(stream)};
  NIBBLE_RETURN_IF_ERROR(dispatch_epilogue(call, launcher));
  return launcher.status;
}

Status run_plain_linear(const PlainLinearCall& call, void* stream) {
  StreamLauncher launcher{"linear", static_cast<cudaStream_t>(stream)};
  NIBBLE_RETURN_IF_ERROR(dispatch_plain_linear(call, launcher));
  return launcher.status;
}

}  // namespace nibble::cuda
