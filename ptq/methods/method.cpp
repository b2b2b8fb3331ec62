#include "ptq/methods/method.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>

#include "ptq/error.h"
#include "ptq/one_thread.h"

namespace nibble {
namespace {

std::vector<float> dequantized(const CodedMatrix& coded) {
  std::vector<float> values(static_cast<size_t>(coded.rows * coded.cols));
  throw_if_error(
      dequantize(coded, MatrixView<float>(values.data(), coded.rows, coded.cols)));
  return values;
}

}  // namespace

namespace {

bool works_on_rows(std::string_view name) { return name == "rtn" || name == "gptq"; }
bool wants_rows(std::string_view name) { return name == "adaround"; }

std::vector<Method>& method_table() {
  static std::vector<Method> methods = {
#define NIBBLE_METHOD(name, needs_inputs, description) \
  {#name, needs_inputs, &solve_##name, works_on_rows(#name), wants_rows(#name)},
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

double weight_error(MatrixView<const float> weight, const CodedMatrix& coded) {
  const std::vector<float> values = dequantized(coded);
  double error = 0, total = 0;
  for (int64_t r = 0; r < weight.rows; ++r) {
    for (int64_t c = 0; c < weight.cols; ++c) {
      const double w = weight(r, c);
      const double difference = w - values[r * weight.cols + c];
      error += difference * difference;
      total += w * w;
    }
  }
  return total > 0 ? error / total : 0;
}

double output_error(MatrixView<const float> weight, const CodedMatrix& coded,
                    const Hessian& inputs) {
  const OneThread one_thread;
  const std::vector<float> values = dequantized(coded);
  const at::Tensor hessian = inputs.matrix();
  constexpr int64_t kRows = 64;  // rows whose products are made at once
  const int64_t parts = (weight.rows + kRows - 1) / kRows;
  std::vector<double> of_weight(static_cast<size_t>(parts)), of_error(of_weight);
  in_parallel(parts, [&](int64_t part) {
    const int64_t first = part * kRows, rows = std::min(kRows, weight.rows - first);
    at::Tensor w = at::empty({rows, weight.cols}, at::kDouble), dw = at::empty_like(w);
    double *to = w.data_ptr<double>(), *error = dw.data_ptr<double>();
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < weight.cols; ++c) {
        const int64_t i = r * weight.cols + c;
        to[i] = weight(first + r, c);
        error[i] = to[i] - values[first * weight.cols + i];
      }
    }
    const auto trace = [&](const at::Tensor& x) {
      return (at::mm(x, hessian) * x).sum().item<double>();
    };
    of_weight[part] = trace(w);
    of_error[part] = trace(dw);
  });
  const double total = std::accumulate(of_weight.begin(), of_weight.end(), 0.0);
  const double error = std::accumulate(of_error.begin(), of_error.end(), 0.0);
  return total > 0 ? error / total : 0;
}

}  // namespace nibble
