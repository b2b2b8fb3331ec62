// From a call to its kernel, for the GPU and for the emulator alike.
//
//   Launcher has template <class Kernel> void launch(Grid, shared bytes, Params)
//
// unsupported: a combination that pack_linear does not make. invalid_argument: shapes.
#pragma once

#include "kernels/cuda/grid.h"
#include "kernels/ops/linear/cuda_kernel.h"
#include "kernels/ops/linear/cuda_linear.h"

namespace nibble::cuda {

inline Status check_linear_call(const LinearCall& call, const LinearPlan& plan) {
  const auto refuse = [](const auto&... what) {
    return error(StatusCode::invalid_argument, "[linear] cuda: ", what...);
  };
  if (call.tokens < 1 || call.tokens > kMostTokens ||
      call.tokens > 8 * plan.token_tiles) {
    return refuse("1 to ", std::min(kMostTokens, 8 * plan.token_tiles),
                  " tokens are needed; found ", call.tokens, "; cut the call");
  }
  if (call.x_stride < call.cols || call.y_stride < call.rows) {
    return refuse("strides of x and y of at least ", call.cols, " and ", call.rows,
                  " are needed; found ", call.x_stride, " and ", call.y_stride);
  }
  if (call.codes == nullptr || call.scales == nullptr || call.x == nullptr ||
      call.y == nullptr ||
      (call.form == LinearForm::int8_s8 && call.x_scales == nullptr) ||
      (plan.splits > 1 && (call.partial == nullptr || call.counters == nullptr))) {
    return refuse("codes, scales, x, y, for int8 activations x_scales, and for ",
                  plan.splits, " splits partial and counters are needed; one is null");
  }
  return ok_status();
}

inline LinearParams linear_params(const LinearCall& call, const LinearPlan& plan) {
  LinearParams p = {};
  p.codes = static_cast<const uint8_t*>(call.codes);
  p.scales = static_cast<const uint8_t*>(call.scales);
  p.zeros = static_cast<const uint8_t*>(call.zeros);
  for (size_t i = 0; i < 16; ++i) p.table[i] = call.table[i];
  p.x = static_cast<const uint8_t*>(call.x);
  p.x_stride = call.x_stride * (call.form == LinearForm::int8_s8 ? 1 : 2);
  p.x_aligned = reinterpret_cast<uintptr_t>(p.x) % 16 == 0 && p.x_stride % 16 == 0;
  p.x_scales = call.x_scales;
  p.bias = call.bias;
  p.y = call.y;
  p.y_stride = call.y_stride;
  p.output = call.output;
  p.rows = call.rows;
  p.cols = call.cols;
  p.tiles = call.tiles;
  p.units = call.units;
  p.groups = call.groups;
  p.tokens = call.tokens;
  p.group_inverse = group_inverse(call.group, call.groups);
  p.stages = plan.stages;
  p.stages_per_split = plan.stages_per_split;
  p.splits = plan.splits;
  p.partial = static_cast<uint32_t*>(call.partial);
  p.counters = call.counters;
  return p;
}

// One form's kernels, so that each may be compiled in a file of its own.
template <LinearForm kForm, class Launcher>
Status dispatch_linear_form(const LinearCall& call, const LinearPlan& plan,
                            Launcher& launcher) {
  const LinearParams params = linear_params(call, plan);
  const Grid grid = {plan.row_blocks, plan.splits};
  bool launched = false;
  const auto with_tiles = [&]<Float16 kInput, LinearScale kScale, int kFlush>() {
    const auto with = [&]<int kTokenTiles>() {
      using Kernel = LinearMma<kForm, kInput, kScale, kFlush, kTokenTiles>;
      launcher.template launch<Kernel>(grid, Kernel::kSharedBytes, params);
      launched = true;
    };
    if (plan.token_tiles == 1) with.template operator()<1>();
    if (plan.token_tiles == 2) with.template operator()<2>();
    if (plan.token_tiles == 4) with.template operator()<4>();
    if (plan.token_tiles == 8) with.template operator()<8>();
  };
  // A sum of 128 columns where the group allows, else of 32.
  const bool is_wide = call.group % (4 * kSlab) == 0 || call.groups == 1;
  const auto with_flush = [&]<Float16 kInput, LinearScale kScale>() {
    if (is_wide) {
      with_tiles.template operator()<kInput, kScale, 4>();
    } else {
      with_tiles.template operator()<kInput, kScale, 1>();
    }
  };
  const auto with_scale = [&]<Float16 kInput>() {
    if (call.scale == LinearScale::f32) {
      with_flush.template operator()<kInput, LinearScale::f32>();
    }
    if constexpr (is_4_bit(kForm)) {
      if (call.scale == LinearScale::f16) {
        with_flush.template operator()<kInput, LinearScale::f16>();
      }
    }
    if constexpr (kForm == LinearForm::table4) {
      if (call.scale == LinearScale::e8m0 && !is_wide) {
        with_tiles.template operator()<kInput, LinearScale::e8m0, 1>();
      }
    }
  };
  if constexpr (kForm == LinearForm::int8_s8) {
    with_tiles.template operator()<Float16::f16, LinearScale::f32, 4>();
  } else if (call.input == Float16::f16) {
    with_scale.template operator()<Float16::f16>();
  } else {
    with_scale.template operator()<Float16::bf16>();
  }
  if (launched) return ok_status();
  return error(StatusCode::unsupported, "[linear] cuda: scales of type ",
               static_cast<int>(call.scale), " in groups of ", call.group,
               " have no kernel; pack_linear makes none of these");
}

// Calls function.template operator()<form>() for the call's form.
template <class Function>
Status with_linear_form(LinearForm form, Function&& function) {
  switch (form) {
    case LinearForm::int4:
      return function.template operator()<LinearForm::int4>();
    case LinearForm::table4:
      return function.template operator()<LinearForm::table4>();
    case LinearForm::int8:
      return function.template operator()<LinearForm::int8>();
    case LinearForm::e4m3:
      return function.template operator()<LinearForm::e4m3>();
    case LinearForm::e5m2:
      return function.template operator()<LinearForm::e5m2>();
    case LinearForm::int8_s8:
      break;
  }
  return function.template operator()<LinearForm::int8_s8>();
}

}  // namespace nibble::cuda
