#include "kernels/ops/linear/linear.h"

#include <algorithm>
#include <cmath>

#include "kernels/ops/linear/linear_bf16.h"
#include "kernels/ops/linear/linear_isa.h"
#include "kernels/ops/linear/linear_tiles.h"
#include "kernels/ops/linear/repack.h"
#include "kernels/ops/linear/run.h"
#include "kernels/ops/panel/panel.h"

namespace nibble {
namespace {

bool is_any(const QuantScheme&, int64_t) { return true; }
bool is_f32(const QuantScheme& s, int64_t) {
  return s.is_float() && s.code == Element::f32;
}
bool is_bf16(const QuantScheme& s, int64_t) {
  return s.is_float() && s.code == Element::bf16;
}
bool is_f16(const QuantScheme& s, int64_t) {
  return s.is_float() && s.code == Element::f16;
}
bool is_int4(const QuantScheme& s, int64_t cols) {
  return accepts_integer(s, cols) && element_info(s.code).bits <= 4;
}
bool is_int8(const QuantScheme& s, int64_t cols) {
  return accepts_integer(s, cols) && element_info(s.code).bits > 4;
}
// NF4, FP4, E2M1, ternary, binary: at most 16 values.
bool is_table4(const QuantScheme& s, int64_t cols) {
  return !s.is_float() && element_info(s.code).kind != ElementKind::integer &&
         element_info(s.code).bits <= 4 && has_groups(s, cols);
}
bool is_fp8(const QuantScheme& s, int64_t cols) {
  return !s.is_float() && (s.code == Element::e4m3 || s.code == Element::e5m2) &&
         s.offset == OffsetKind::none && has_groups(s, cols);
}

// Codes of at most 8 bits, read through a table of what they stand for.
bool is_table8(const QuantScheme& s, int64_t cols) {
  return !s.is_float() && element_info(s.code).bits > 4 && has_groups(s, cols);
}
bool is_any4(const QuantScheme& s, int64_t cols) {
  return is_int4(s, cols) || is_table4(s, cols);
}
bool is_plain(const QuantScheme& s, int64_t) { return s.is_float(); }

}  // namespace

const std::vector<LinearKernel>& linear_kernels() {
  static const std::vector<LinearKernel> kernels = {
#include "kernels/ops/linear/kernels.inc"
  };
  return kernels;
}

const LinearKernel* select_linear(const QuantScheme& scheme, int64_t cols,
                                  LinearActivation activation, uint32_t cpu_flags) {
  for (const LinearKernel& kernel : linear_kernels()) {
    if ((kernel.flags & ~cpu_flags) == 0 && kernel.can_run(scheme, cols, activation)) {
      return &kernel;
    }
  }
  return nullptr;
}

const LinearKernel* preferred_linear(const LinearWeight& weight,
                                     LinearActivation wanted) {
  const LinearKernel* kernel = select_linear(weight.scheme, weight.cols, wanted);
  const bool slow = wanted == LinearActivation::bf16 && kernel->bf16 == nullptr;
  if (kernel != nullptr && !slow) return kernel;
  return select_linear(weight.scheme, weight.cols, LinearActivation::f32);
}

Result<PreparedLinear> prepare_linear(const LinearKernel& kernel,
                                      const LinearWeight& weight,
                                      const LinearInput& input) {
  if (!kernel.can_run(weight.scheme, weight.cols, kernel.activation)) {
    return error(StatusCode::unsupported, "[linear] ", kernel.name,
                 ": a weight of this row's schemes was required; found ",
                 to_string(weight.scheme), "; ask select_linear for a row");
  }
  if (input == LinearInput{}) return kernel.repack(kernel, weight, input);
  const bool has_scale = input.scale > 0 && std::isfinite(input.scale);
  if (kernel.activation != LinearActivation::s8 || input.group < 0 ||
      (input.scale != 0 && (!has_scale || input.group != 0)) ||
      (input.lowest != -127 && (input.lowest != -128 || !has_scale))) {
    return error(StatusCode::invalid_argument, "[linear] ", kernel.name,
                 ": int8 activations under a scale a run of columns or one calibrated scale "
                 "were required; found runs of ",
                 input.group, ", scale ", input.scale, ", codes from ", input.lowest);
  }
  if (group_columns(weight.scheme, weight.cols, input) < std::min<int64_t>(8, weight.cols)) {
    return error(StatusCode::unsupported, "[linear] int8 activations with a scale every ",
                 input.group, " columns share no runs of 8 with ", to_string(weight.scheme),
                 "; take groups that divide each other");
  }
  return kernel.repack(kernel, weight, input);
}

void run_linear(const PreparedLinear& weight, MatrixView<const float> x,
                const float* bias, MatrixView<float> y) {
  if (x.rows > 0) weight.kernel->run(weight, x, bias, y);
}

}  // namespace nibble
