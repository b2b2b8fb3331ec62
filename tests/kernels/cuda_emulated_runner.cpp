#include "cuda_emulated_runner.h"

#include "kernels/ops/fake_quantize/cuda_kernel.h"
#include "kernels/ops/kv_attention/cuda_dispatch.h"
#include "kernels/ops/linear/cuda_dequantize.h"
#include "kernels/ops/linear/cuda_dispatch.h"
#include "kernels/ops/quantize_rows/cuda_kernel.h"
#include "kernels/ops/rms_norm/cuda_kernel.h"
#include "kernels/ops/rope/cuda_kernel.h"

namespace nibble::cuda {

Status EmulatedRunner::run(const LinearCall& call, const LinearPlan& plan) {
  NIBBLE_RETURN_IF_ERROR(check_linear_call(call, plan));
  return with_linear_form(call.form, [&]<LinearForm kForm>() {
    return dispatch_linear_form<kForm>(call, plan, emulator_);
  });
}
Status EmulatedRunner::run(const DequantizeCall& call) {
  return dispatch_dequantize(call, emulator_);
}
Status EmulatedRunner::run(const KvAttentionCall& call, const KvAttentionPlan& plan) {
  return dispatch_kv_attention(call, plan, emulator_);
}
Status EmulatedRunner::run(const RmsNormCall& call) {
  return dispatch_rms_norm(call, emulator_);
}
Status EmulatedRunner::run(const RopeCall& call) {
  return dispatch_rope(call, emulator_);
}
Status EmulatedRunner::run(const QuantizeRowsCall& call) {
  return dispatch_quantize_rows(call, emulator_);
}
Status EmulatedRunner::run(const StoreKvCall& call) {
  return dispatch_store_kv(call, emulator_);
}
Status EmulatedRunner::run(const FakeQuantizeCall& call) {
  return dispatch_fake_quantize(call, emulator_);
}
Status EmulatedRunner::run(const FakeQuantizeGradientCall& call) {
  return dispatch_fake_quantize_gradient(call, emulator_);
}

}  // namespace nibble::cuda
