#include "kernels/runtime/cuda_layer_call.h"

#include <algorithm>

namespace nibble::cuda {
namespace {

Status multiply_plain(Runner& runner, const Scratch& scratch,
                      const PlainLinearCall& call) {
  const bool has_bias = call.bias != nullptr;
  NIBBLE_RETURN_IF_ERROR(runner.run(ProductCall{
      .type = call.type == Float16::f16 ? ProductType::f16 : ProductType::bf16,
      .sums = has_bias,
      .rows = call.rows,
      .cols = call.cols,
      .tokens = call.tokens,
      .w = call.w,
      .w_stride = call.cols,
      .x = call.x,
      .x_stride = call.x_stride,
      .d = has_bias ? scratch.sums : call.y,
      .d_stride = has_bias ? call.rows : call.y_stride}));
  if (!has_bias) return ok_status();
  return runner.run(EpilogueCall{.sums = scratch.sums,
                                 .sums_stride = call.rows,
                                 .bias = call.bias,
                                 .output = call.output,
                                 .y = call.y,
                                 .y_stride = call.y_stride,
                                 .rows = call.rows,
                                 .tokens = call.tokens});
}

}  // namespace

Status LayerCall::run(Runner& runner, const Scratch& scratch, int tokens) const {
  LinearCall now = call;
  now.partial = scratch.partial;
  now.counters = scratch.counters;
  if (tokens > kMostTokens && has_products) {
    Status done = multiply(runner, scratch, tokens);
    if (done.code() != StatusCode::unsupported) return done;
    // cuBLASLt has nothing for the shape: the kernels below do.
  }
  for (int first = 0; first < tokens; first += kMostTokens) {
    now.tokens = std::min(kMostTokens, tokens - first);
    now.x =
        static_cast<const uint8_t*>(call.x) + first * call.x_stride * (is_s8() ? 1 : 2);
    now.x_scales = call.x_scales == nullptr ? nullptr : call.x_scales + first;
    now.y = static_cast<uint8_t*>(call.y) +
            first * call.y_stride * (call.output == Output::f32 ? 4 : 2);
    NIBBLE_RETURN_IF_ERROR(runner.run(
        now, plan_linear(now.form, now.rows, now.cols, now.tokens, multiprocessors)));
  }
  return ok_status();
}

Status LayerCall::multiply(Runner& runner, const Scratch& scratch, int tokens) const {
  if (is_s8()) return multiply_codes(runner, scratch, tokens);
  const bool has_row_scales = call.groups == 1 && call.scale == LinearScale::f32;
  if (x_codes != nullptr && call.form == LinearForm::e4m3 && has_row_scales) {
    const Status done = multiply_codes(runner, scratch, tokens);
    // A GPU without FP8 products, or a shape that they do not take.
    if (done.code() != StatusCode::unsupported) return done;
  }
  DequantizeCall floats = dequantize_call(call);
  floats.w = scratch.weight;
  floats.stride = weight_stride();
  NIBBLE_RETURN_IF_ERROR(runner.run(floats));
  const bool sums = needs_epilogue();
  NIBBLE_RETURN_IF_ERROR(runner.run(ProductCall{
      .type = call.input == Float16::f16 ? ProductType::f16 : ProductType::bf16,
      .sums = sums,
      .rows = call.rows,
      .cols = call.cols,
      .tokens = tokens,
      .w = scratch.weight,
      .w_stride = weight_stride(),
      .x = call.x,
      .x_stride = call.x_stride,
      .d = sums ? scratch.sums : call.y,
      .d_stride = sums ? call.rows : call.y_stride}));
  return sums ? finish(runner, scratch, tokens, /*of_codes=*/false) : ok_status();
}

// Of int8, or of FP8 codes on both sides.
Status LayerCall::multiply_codes(Runner& runner, const Scratch& scratch,
                                 int tokens) const {
  NIBBLE_RETURN_IF_ERROR(runner.run(UnpackCodesCall{.form = call.form,
                                                    .rows = call.rows,
                                                    .cols = call.cols,
                                                    .tiles = call.tiles,
                                                    .units = call.units,
                                                    .codes = call.codes,
                                                    .w = scratch.weight,
                                                    .stride = weight_stride()}));
  // Whole 16 bytes, as cuBLASLt asks: both are 0 behind the columns.
  NIBBLE_RETURN_IF_ERROR(
      runner.run(ProductCall{.type = is_s8() ? ProductType::s8 : ProductType::e4m3,
                             .sums = true,
                             .rows = call.rows,
                             .cols = static_cast<int>(weight_stride()),
                             .tokens = tokens,
                             .w = scratch.weight,
                             .w_stride = weight_stride(),
                             .x = is_s8() ? call.x : x_codes,
                             .x_stride = is_s8() ? call.x_stride : weight_stride(),
                             .d = scratch.sums,
                             .d_stride = call.rows}));
  return finish(runner, scratch, tokens, /*of_codes=*/true);
}

// of_codes: sums of codes' products, which the weight's scales are still missing from.
Status LayerCall::finish(Runner& runner, const Scratch& scratch, int tokens,
                         bool of_codes) const {
  return runner.run(EpilogueCall{
      .int_sums = is_s8(),
      .sums = scratch.sums,
      .sums_stride = call.rows,
      .w_scales = of_codes ? static_cast<const float*>(call.scales) : nullptr,
      .w_unit = is_s8() ? 1.0f : 0x1p-8f,
      .x_scales = call.x_scales,
      .bias = call.bias,
      .output = call.output,
      .y = call.y,
      .y_stride = call.y_stride,
      .rows = call.rows,
      .tokens = tokens});
}

Status run_plain_layer(Runner& runner, const Scratch& scratch,
                       const PlainLinearCall& call, bool has_products) {
  if (has_products && call.tokens > kMostTokens) {
    Status done = multiply_plain(runner, scratch, call);
    if (done.code() != StatusCode::unsupported) return done;
  }
  return runner.run(call);
}

}  // namespace nibble::cuda
