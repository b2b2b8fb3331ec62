#include "ptq/methods/method.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>

#include "kernels/ops/gemm/gemm.h"
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

constexpr int64_t kErrorRows = 1024;  // of output_error, at most

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
  const int64_t n = weight.cols, stride = (weight.rows + kErrorRows - 1) / kErrorRows;
  const int64_t rows = (weight.rows + stride - 1) / stride;
  std::vector<float> difference(static_cast<size_t>(rows * n));
  {
    const std::vector<float> values = dequantized(coded);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < n; ++c)
        difference[r * n + c] = weight(r * stride, c) - values[r * stride * n + c];
    }
  }
  // H in f32, some of its rows at a time and of these what is not left of the diagonal's
  // block (it counts twice), against all rows of the two.
  constexpr int64_t kPanel = 512, kRows = 128;
  const auto trace = [&](MatrixView<const float> x) {
    const int64_t parts = (rows + kRows - 1) / kRows;
    std::vector<double> sums(static_cast<size_t>(parts), 0);
    for (int64_t begin = 0; begin < n; begin += kPanel) {
      const int64_t size = std::min(kPanel, n - begin);
      const int64_t width = n - begin;
      const at::Tensor panel = inputs.matrix()
                                   .narrow(0, begin, size)
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
          sums[part] += sum + 2 * right;
        }
      });
    }
    return std::accumulate(sums.begin(), sums.end(), 0.0);
  };
  const double total = trace({weight.data, rows, n, stride * weight.stride});
  const double error = trace({difference.data(), rows, n});
  return total > 0 ? error / total : 0;
}

}  // namespace nibble
