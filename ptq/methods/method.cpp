#include "ptq/methods/method.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>

#include "kernels/ops/gemm/gemm.h"
#include "ptq/error.h"
#include "ptq/one_thread.h"

namespace nibble {
namespace {

constexpr int64_t kErrorRows = 1024;  // of a layer's outputs, at most

bool works_on_rows(std::string_view name) {
  return name == "rtn" || name == "gptq" || name == "awq" || name == "imatrix" ||
         name == "hqq" || name == "autoround";
}
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

std::vector<float> dequantized(const CodedMatrix& coded) {
  std::vector<float> values(static_cast<size_t>(coded.rows * coded.cols));
  throw_if_error(
      dequantize(coded, MatrixView<float>(values.data(), coded.rows, coded.cols)));
  return values;
}

namespace {

// trace(X H X^T): H in f32, some of its rows at a time and of these what is not left of
// the diagonal's block (it counts twice), against all rows of X.
double output_trace(MatrixView<const float> x, const at::Tensor& hessian) {
  constexpr int64_t kPanel = 512, kRows = 128;
  const int64_t rows = x.rows, n = x.cols, parts = (rows + kRows - 1) / kRows;
  std::vector<double> sums(static_cast<size_t>(parts), 0);
  for (int64_t begin = 0; begin < n; begin += kPanel) {
    const int64_t size = std::min(kPanel, n - begin), width = n - begin;
    const at::Tensor panel = hessian.narrow(0, begin, size)
                                 .narrow(1, begin, width)
                                 .to(at::kFloat)
                                 .contiguous();
    in_parallel(parts, [&](int64_t part) {
      const int64_t first = part * kRows, count = std::min(kRows, rows - first);
      at::Tensor product = at::empty({count, width}, at::kFloat);
      gemm(select_gemm(), {{x.row(first) + begin, count, size, x.stride}},
           {{panel.const_data_ptr<float>(), size, width}},
           {product.mutable_data_ptr<float>(), count, width});
      const float* y = product.const_data_ptr<float>();
      for (int64_t r = 0; r < count; ++r) {
        const float* own = x.row(first + r) + begin;
        double sum = 0, right = 0;
        for (int64_t c = 0; c < size; ++c)
          sum += static_cast<double>(y[r * width + c]) * own[c];
        for (int64_t c = size; c < width; ++c)
          right += static_cast<double>(y[r * width + c]) * own[c];
        sums[static_cast<size_t>(part)] += sum + 2 * right;
      }
    });
  }
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

double squares(MatrixView<const float> x) {
  double sum = 0;
  for (int64_t r = 0; r < x.rows; ++r) {
    for (int64_t c = 0; c < x.cols; ++c)
      sum += static_cast<double>(x(r, c)) * static_cast<double>(x(r, c));
  }
  return sum;
}

}  // namespace

std::vector<LayerError> layer_errors(
    MatrixView<const float> weight,
    const std::vector<MatrixView<const float>>& approximations, const Hessian* inputs) {
  const OneThread one_thread;
  const int64_t stride = (weight.rows + kErrorRows - 1) / kErrorRows;
  const int64_t rows = (weight.rows + stride - 1) / stride;
  const auto sampled = [&](MatrixView<const float> x) {
    return MatrixView<const float>(x.data, rows, x.cols, stride * x.stride);
  };
  const auto relative = [](double error, double whole) {
    return whole > 0 ? error / whole : 0;
  };
  const double whole = squares(weight);
  const double outputs =
      inputs != nullptr ? output_trace(sampled(weight), inputs->matrix()) : 0;
  std::vector<LayerError> errors;
  std::vector<float> difference(static_cast<size_t>(weight.rows * weight.cols));
  const MatrixView<const float> missing(difference.data(), weight.rows, weight.cols);
  for (const MatrixView<const float>& q : approximations) {
    for (int64_t r = 0; r < weight.rows; ++r) {
      for (int64_t c = 0; c < weight.cols; ++c)
        difference[static_cast<size_t>(r * weight.cols + c)] = weight(r, c) - q(r, c);
    }
    LayerError& error = errors.emplace_back();
    error.weight = relative(squares(missing), whole);
    if (inputs != nullptr)
      error.output = relative(output_trace(sampled(missing), inputs->matrix()), outputs);
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
