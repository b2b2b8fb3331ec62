#include "cuda_emulated_runner.h"

#include "kernels/ops/elementwise/cuda_kernel.h"
#include "kernels/ops/embedding/cuda_kernel.h"
#include "kernels/ops/fake_quantize/cuda_kernel.h"
#include "kernels/ops/kv_attention/cuda_dispatch.h"
#include "kernels/ops/linear/cuda_dequantize.h"
#include "kernels/ops/linear/cuda_dispatch.h"
#include "kernels/ops/linear/cuda_plain_kernel.h"
#include "kernels/ops/linear/cuda_prefill_kernel.h"
#include "kernels/ops/next_token/cuda_kernel.h"
#include "kernels/ops/quantize_rows/cuda_kernel.h"
#include "kernels/ops/rms_norm/cuda_kernel.h"
#include "kernels/ops/rope/cuda_kernel.h"
#include "kernels/ops/silu_mul/cuda_kernel.h"

namespace nibble::cuda {

Status EmulatedRunner::run(const LinearCall& call, const LinearPlan& plan) {
  NIBBLE_RETURN_IF_ERROR(check_linear_call(call, plan));
  return with_linear_form(call.form, [&]<LinearForm kForm>() {
    return dispatch_linear_form<kForm>(call, plan, emulator_);
  });
}
Status EmulatedRunner::run(const PlainLinearCall& call) {
  return dispatch_plain_linear(call, emulator_);
}
Status EmulatedRunner::run(const UnpackCodesCall& call) {
  return dispatch_unpack_codes(call, emulator_);
}
Status EmulatedRunner::run(const EpilogueCall& call) {
  return dispatch_epilogue(call, emulator_);
}
Status EmulatedRunner::run(const ProductCall& call) {
  const auto value = [&](const void* p, int64_t at) {
    switch (call.type) {
      case ProductType::f16:
        return float_from_f16(static_cast<const uint16_t*>(p)[at]);
      case ProductType::bf16:
        return float_from_bf16(static_cast<const uint16_t*>(p)[at]);
      case ProductType::s8:
        return static_cast<float>(static_cast<const int8_t*>(p)[at]);
      case ProductType::e4m3:
        break;
    }
    return float_from_e4m3(static_cast<const uint8_t*>(p)[at]);
  };
  for (int64_t t = 0; t < call.tokens; ++t) {
    for (int64_t n = 0; n < call.rows; ++n) {
      double sum = 0;
      for (int64_t k = 0; k < call.cols; ++k) {
        sum += static_cast<double>(value(call.x, t * call.x_stride + k)) *
               value(call.w, n * call.w_stride + k);
      }
      const int64_t at = t * call.d_stride + n;
      if (call.type == ProductType::s8) {
        static_cast<int32_t*>(call.d)[at] = static_cast<int32_t>(sum);
      } else {
        store_output(call.d, at,
                     call.sums                       ? Output::f32
                     : call.type == ProductType::f16 ? Output::f16
                                                     : Output::bf16,
                     static_cast<float>(sum));
      }
    }
  }
  return ok_status();
}
Status EmulatedRunner::run(const EmbeddingCall& call) {
  return dispatch_embedding(call, emulator_);
}
Status EmulatedRunner::run(const SiluMulCall& call) {
  return dispatch_silu_mul(call, emulator_);
}
Status EmulatedRunner::run(const AddCall& call) {
  return dispatch_elementwise(call, emulator_);
}
Status EmulatedRunner::run(const NextTokenCall& call) {
  return dispatch_next_token(call, emulator_);
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
