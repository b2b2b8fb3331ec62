#include "ptq/methods/method.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "ptq/error.h"
#include "ptq/one_thread.h"

namespace nibble {
namespace {

bool works_on_rows(std::string_view name) { return name == "rtn" || name == "gptq"; }

std::vector<Method>& method_table() {
  static std::vector<Method> methods = {
#define NIBBLE_METHOD(name, needs_inputs, description) \
  {#name, needs_inputs, &solve_##name, works_on_rows(#name)},
#include "ptq/methods/methods.inc"
#undef NIBBLE_METHOD
  };
  return methods;
}

}  // namespace

const std::vector<Method>& all_methods() { return method_table(); }

Status add_method(const Method& method) {
  NIBBLE_RETURN_IF_ERROR(add_method_name(method.name, method.needs_inputs));
  method_table().push_back(method);
  return ok_status();
}

const Method* find_method(const std::string& name) {
  for (const Method& method : all_methods()) {
    if (name == method.name) return &method;
  }
  return nullptr;
}

std::vector<float> dequantized(const CodedMatrix& coded) {
  std::vector<float> values(static_cast<size_t>(coded.rows * coded.cols));
  throw_if_error(
      dequantize(coded, MatrixView<float>(values.data(), coded.rows, coded.cols)));
  return values;
}

std::vector<LayerError> layer_errors(
    MatrixView<const float> weight,
    const std::vector<MatrixView<const float>>& approximations, const Hessian* inputs) {
  const OneThread one_thread;
  const size_t count = approximations.size();
  const at::Tensor hessian = inputs != nullptr ? inputs->matrix() : at::Tensor();
  constexpr int64_t kRows = 64;  // rows whose products are made at once
  const int64_t parts = (weight.rows + kRows - 1) / kRows;
  // Of W, then of W - Q for each Q: sums of squares, and traces of the outputs'.
  std::vector<std::vector<LayerError>> sums(static_cast<size_t>(parts));
  in_parallel(parts, [&](int64_t part) {
    const int64_t first = part * kRows, rows = std::min(kRows, weight.rows - first);
    at::Tensor x = at::empty({rows, weight.cols}, at::kDouble);
    double* to = x.data_ptr<double>();
    for (size_t which = 0; which <= count; ++which) {
      LayerError& sum = sums[static_cast<size_t>(part)].emplace_back();
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < weight.cols; ++c) {
          double value = weight(first + r, c);
          if (which > 0) value -= approximations[which - 1](first + r, c);
          to[r * weight.cols + c] = value;
          sum.weight += value * value;
        }
      }
      if (inputs != nullptr) sum.output = (at::mm(x, hessian) * x).sum().item<double>();
    }
  });
  const auto total = [&sums](size_t which, double LayerError::* what) {
    double result = 0;
    for (const std::vector<LayerError>& part : sums) result += part[which].*what;
    return result;
  };
  const auto relative = [&](size_t which, double LayerError::* what) {
    const double whole = total(0, what);
    return whole > 0 ? total(which, what) / whole : 0;
  };
  std::vector<LayerError> errors;
  for (size_t which = 1; which <= count; ++which) {
    errors.push_back({.weight = relative(which, &LayerError::weight)});
    if (inputs != nullptr) errors.back().output = relative(which, &LayerError::output);
  }
  return errors;
}

double weight_error(MatrixView<const float> weight, const CodedMatrix& coded) {
  const std::vector<float> values = dequantized(coded);
  return layer_errors(weight, {{values.data(), coded.rows, coded.cols}}, nullptr)[0]
      .weight;
}

double output_error(MatrixView<const float> weight, const CodedMatrix& coded,
                    const Hessian& inputs) {
  const std::vector<float> values = dequantized(coded);
  return layer_errors(weight, {{values.data(), coded.rows, coded.cols}}, &inputs)[0]
      .output;
}

}  // namespace nibble
