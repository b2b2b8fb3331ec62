#include "export/ggml/quantize.h"

#include <cmath>

#include "export/ggml/block_rules.h"
#include "kernels/base/parallel.h"

namespace nibble {
namespace {

void make_levels(const std::vector<ScaleLevel>& levels, const CodedMatrix& q,
                 std::vector<CodedLevel>& out) {
  for (const ScaleLevel& level : levels) {
    const LevelShape shape = level_shape(level.block, q.rows, q.cols);
    out.push_back({shape.rows, shape.cols,
                   std::vector<float>(static_cast<size_t>(shape.rows * shape.cols)), 0});
  }
}

Status check_finite(const GgmlType& type, MatrixView<const float> x) {
  for (int64_t r = 0; r < x.rows; ++r) {
    for (int64_t c = 0; c < x.cols; ++c) {
      if (std::isfinite(x(r, c))) continue;
      return error(StatusCode::out_of_range, "[ggml] ", type.name, ": row ", r,
                   ", column ", c, ": a finite number is needed; found ", x(r, c));
    }
  }
  return ok_status();
}

// A scale beyond f16 has become infinity.
Status check_levels(const GgmlType& type, const CodedMatrix& q,
                    const std::vector<CodedLevel>& levels) {
  for (const CodedLevel& level : levels) {
    for (size_t i = 0; i < level.values.size(); ++i) {
      if (std::isfinite(level.values[i])) continue;
      const int64_t at = static_cast<int64_t>(i);
      return error(StatusCode::out_of_range, "[ggml] ", type.name, ": row ",
                   at / level.cols, ", column ", at % level.cols * (q.cols / level.cols),
                   ": the weights need a scale beyond f16's 65504; write them as BF16 or "
                   "F32");
    }
  }
  return ok_status();
}

}  // namespace

Result<CodedMatrix> quantize_ggml(const GgmlType& type, MatrixView<const float> x,
                                  std::span<const float> importance) {
  const BlockRule k_rule = k_block_rule(type.name);
  const BlockRule rule = k_rule != nullptr ? k_rule : simple_block_rule(type.name);
  if (rule == nullptr || x.rows < 1 || x.cols < 1 || x.cols % type.block != 0) {
    return error(StatusCode::invalid_argument, "[ggml] ", type.name,
                 ": rows of whole blocks of ", type.block,
                 rule == nullptr ? " are stored as they are" : " values are needed",
                 "; found [", x.rows, ", ", x.cols, "]");
  }
  if (!importance.empty() && static_cast<int64_t>(importance.size()) != x.cols) {
    return error(StatusCode::invalid_argument, "[ggml] ", type.name,
                 ": importance must have one weight a column, ", x.cols, "; found ",
                 importance.size());
  }
  NIBBLE_RETURN_IF_ERROR(check_finite(type, x));
  CodedMatrix q;
  q.scheme = type.scheme;
  q.rows = x.rows;
  q.cols = x.cols;
  q.codes.resize(static_cast<size_t>(x.rows * x.cols));
  make_levels(q.scheme.scales, q, q.scales);
  make_levels(q.scheme.offsets, q, q.offsets);
  const int64_t blocks = x.cols / type.block;
  const int64_t inner = type.block / q.scheme.scales[0].block.cols;
  const auto level = [](std::vector<CodedLevel>& levels, size_t k, int64_t at) {
    return levels.size() > k ? levels[k].values.data() + at : nullptr;
  };
  parallel_for(x.rows, [&](int64_t r) {
    const float* row = x.row(r);
    float square = 0;
    for (int64_t c = 0; c < x.cols; ++c) square += row[c] * row[c];
    square /= static_cast<float>(x.cols);
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t at = r * blocks + b;
      const BlockFloats in = {
          row + b * type.block,
          importance.empty() ? nullptr : importance.data() + b * type.block, square};
      const BlockCodes out = {q.codes.data() + at * type.block,
                              level(q.scales, 0, at * inner),
                              level(q.offsets, 0, at * inner), level(q.scales, 1, at),
                              level(q.offsets, 1, at)};
      rule(in, out);
    }
  });
  NIBBLE_RETURN_IF_ERROR(check_levels(type, q, q.scales));
  NIBBLE_RETURN_IF_ERROR(check_levels(type, q, q.offsets));
  return q;
}

}  // namespace nibble
