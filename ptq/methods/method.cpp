#include "ptq/methods/method.h"

#include <ATen/ATen.h>

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

std::vector<Method>& method_table() {
  static std::vector<Method> methods = {
#define NIBBLE_METHOD(name, needs_inputs, description) \
  {#name, needs_inputs, &solve_##name},
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
  std::vector<double> w(values.size()), dw(values.size());
  for (int64_t r = 0; r < weight.rows; ++r) {
    for (int64_t c = 0; c < weight.cols; ++c) {
      const int64_t i = r * weight.cols + c;
      w[i] = weight(r, c);
      dw[i] = w[i] - values[i];
    }
  }
  const at::Tensor hessian = inputs.matrix();
  const auto trace = [&](std::vector<double>& x) {
    const at::Tensor matrix =
        at::from_blob(x.data(), {weight.rows, weight.cols}, at::kDouble);
    return (at::mm(matrix, hessian) * matrix).sum().item<double>();
  };
  const double total = trace(w);
  return total > 0 ? trace(dw) / total : 0;
}

}  // namespace nibble
