// From a call of decode attention to its kernel, for the GPU and for the emulator alike.
#pragma once

#include "kernels/cuda/grid.h"
#include "kernels/ops/kv_attention/cuda_kernel.h"

namespace nibble::cuda {

template <class Launcher>
Status dispatch_kv_attention(const KvAttentionCall& call, const KvAttentionPlan& plan,
                             Launcher& launcher) {
  const auto refuse = [](StatusCode code, const auto&... what) {
    return error(code, "[attention] cuda: ", what...);
  };
  const AttentionShape& shape = call.shape;
  if (shape.kv_heads < 1 || shape.heads < 1 || shape.heads % shape.kv_heads != 0) {
    return refuse(StatusCode::invalid_argument,
                  "heads must be a multiple of kv_heads; found ", shape.heads, " and ",
                  shape.kv_heads);
  }
  if (call.q == nullptr || call.k == nullptr || call.v == nullptr || call.y == nullptr ||
      call.lengths == nullptr || call.batch < 1 || call.capacity < 1 ||
      (call.form != KvForm::f16 &&
       (call.k_scales == nullptr || call.v_scales == nullptr)) ||
      (plan.splits > 1 && (call.partial == nullptr || call.counters == nullptr))) {
    return refuse(StatusCode::invalid_argument,
                  "q, k, v, y, lengths, the scales of coded caches, and for ",
                  plan.splits, " splits partial and counters are needed; one is null");
  }
  const int group = static_cast<int>(shape.heads / shape.kv_heads);
  const Grid grid = {plan.splits, static_cast<int>(shape.kv_heads) * ((group + 15) / 16),
                     call.batch};
  const KvAttentionParams params = {
      .q = static_cast<const uint16_t*>(call.q),
      .k = static_cast<const uint8_t*>(call.k),
      .v = static_cast<const uint8_t*>(call.v),
      .k_scales = call.k_scales,
      .v_scales = call.v_scales,
      .lengths = call.lengths,
      .y = call.y,
      .output = call.output,
      .partial = call.partial,
      .counters = call.counters,
      .capacity = call.one_cache ? 0 : call.capacity,
      .q_stride = call.q_stride != 0 ? call.q_stride : shape.heads * shape.head_dim,
      .heads = static_cast<int>(shape.heads),
      .kv_heads = static_cast<int>(shape.kv_heads),
      .window = static_cast<int>(shape.window),
      .splits = plan.splits,
      .scale = shape.scale * 1.44269504088896341f};  // log2(e)
  bool launched = false;
  const auto with = [&]<KvForm kForm, Float16 kInput, int kHeadDim>() {
    using Kernel = KvAttention<kForm, kInput, kHeadDim>;
    launcher.template launch<Kernel>(grid, Kernel::kSharedBytes, params);
    launched = true;
  };
  const auto with_dim = [&]<KvForm kForm, Float16 kInput>() {
    if constexpr (kForm == KvForm::f16) {
      if (shape.head_dim == 32) with.template operator()<kForm, kInput, 32>();
    }
    if (shape.head_dim == 64) with.template operator()<kForm, kInput, 64>();
    if (shape.head_dim == 128) with.template operator()<kForm, kInput, 128>();
    if (shape.head_dim == 256) with.template operator()<kForm, kInput, 256>();
  };
  const auto with_input = [&]<KvForm kForm>() {
    if (call.input == Float16::f16) {
      with_dim.template operator()<kForm, Float16::f16>();
    } else {
      with_dim.template operator()<kForm, Float16::bf16>();
    }
  };
  if (call.form == KvForm::f16) with_input.template operator()<KvForm::f16>();
  if (call.form == KvForm::int8) with_input.template operator()<KvForm::int8>();
  if (call.form == KvForm::e4m3) with_input.template operator()<KvForm::e4m3>();
  if (launched) return ok_status();
  return refuse(StatusCode::unsupported,
                "head_dim 64, 128 or 256, or 32 with an f16 cache, "
                "is needed; found ",
                shape.head_dim, "; run it on the CPU");
}

}  // namespace nibble::cuda
