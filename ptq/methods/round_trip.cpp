#include "ptq/methods/round_trip.h"

#include <ATen/ATen.h>

#include "ptq/error.h"

namespace nibble {

at::Tensor round_trip(const at::Tensor& x, const QuantScheme& scheme,
                      const ScaleRule& rule, std::span<const float> importance) {
  const int64_t rows = x.size(0), cols = x.size(1);
  const MatrixView<const float> view(x.data_ptr<float>(), rows, cols);
  CodedMatrix coded = value_or_throw(choose_scales(view, scheme, rule, importance));
  throw_if_error(quantize(view, coded));
  at::Tensor values = at::empty({rows, cols}, at::kFloat);
  throw_if_error(
      dequantize(coded, MatrixView<float>(values.data_ptr<float>(), rows, cols)));
  return values;
}

bool rounds_rows_alone(const QuantScheme& scheme) {
  for (const auto* levels : {&scheme.scales, &scheme.offsets}) {
    for (const ScaleLevel& level : *levels) {
      const Block::Kind kind = level.block.kind;
      if (kind != Block::Kind::group && kind != Block::Kind::row) return false;
    }
  }
  return true;
}

at::Tensor judged_rows(const at::Tensor& weight, const QuantScheme& scheme) {
  const int64_t stride = (weight.size(0) + kJudgedRows - 1) / kJudgedRows;
  return rounds_rows_alone(scheme) ? weight.slice(0, 0, weight.size(0), stride) : weight;
}

at::Tensor to_matrix(const Tensor& tensor) {
  const std::vector<float> values = value_or_throw(to_float(tensor));
  at::Tensor matrix = at::empty({tensor.rows(), tensor.cols()}, at::kFloat);
  std::copy(values.begin(), values.end(), matrix.data_ptr<float>());
  return matrix;
}

}  // namespace nibble
