#include "kernels/scheme/coded_matrix.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "kernels/base/parallel.h"
#include "kernels/scheme/element_codec.h"
#include "kernels/scheme/level_runs.h"

namespace nibble {
namespace {

// Rows are shared out in parts of about this many elements: some tens of microseconds of
// work.
constexpr int64_t kPart = 1 << 15;

int64_t rows_a_part(int64_t cols) {
  return std::max<int64_t>(1, kPart / std::max<int64_t>(1, cols));
}

Status check_levels(const CodedMatrix& q, const std::vector<ScaleLevel>& levels,
                    const std::vector<CodedLevel>& values, const char* what) {
  if (levels.size() != values.size()) {
    return error(StatusCode::invalid_argument, "[coded_matrix] ", to_string(q.scheme),
                 ": ", levels.size(), " ", what, " levels are needed; found ",
                 values.size());
  }
  for (size_t k = 0; k < levels.size(); ++k) {
    const LevelShape shape = level_shape(levels[k].block, q.rows, q.cols);
    const CodedLevel& level = values[k];
    if (level.rows != shape.rows || level.cols != shape.cols ||
        static_cast<int64_t>(level.values.size()) != shape.rows * shape.cols) {
      return error(StatusCode::invalid_argument, "[coded_matrix] ", to_string(q.scheme),
                   ": ", what, " level ", k, " of a [", q.rows, ", ", q.cols,
                   "] matrix is [", shape.rows, ", ", shape.cols, "]; found [",
                   level.rows, ", ", level.cols, "] with ", level.values.size(),
                   " values");
    }
  }
  return ok_status();
}

Status check_shapes(const CodedMatrix& q, int64_t rows, int64_t cols) {
  if (q.scheme.is_float()) {
    return error(StatusCode::invalid_argument, "[coded_matrix] ", to_string(q.scheme),
                 ": a scheme with a scale is needed; this one is stored as plain floats");
  }
  if (rows != q.rows || cols != q.cols) {
    return error(StatusCode::invalid_argument, "[coded_matrix] ", to_string(q.scheme),
                 ": the matrix must be [", q.rows, ", ", q.cols,
                 "] as the levels are; found [", rows, ", ", cols, "]");
  }
  NIBBLE_RETURN_IF_ERROR(check_levels(q, q.scheme.scales, q.scales, "scale"));
  return check_levels(q, q.scheme.offsets, q.offsets, "offset");
}

void expand_row(const std::vector<ScaleLevel>& levels,
                const std::vector<CodedLevel>& values, const CodedMatrix& q, int64_t r,
                float* out) {
  expand_levels(
      levels, values[0].shift,
      [&](size_t k, int64_t i) { return values[k].values[static_cast<size_t>(i)]; },
      q.rows, q.cols, r, out);
}

// Integer arithmetic on the bits: a comparison that vectorises, and NaN counts.
bool all_finite(const float* x, int64_t n) {
  uint32_t bad = 0;
  for (int64_t c = 0; c < n; ++c) {
    bad |= (std::bit_cast<uint32_t>(x[c]) & 0x7f800000u) == 0x7f800000u ? 1u : 0u;
  }
  return bad == 0;
}

bool all_positive(const float* x, int64_t n) {
  // 1 .. 0x7f7fffff are the bits of the finite positive floats.
  uint32_t bad = 0;
  for (int64_t c = 0; c < n; ++c) {
    bad |= std::bit_cast<uint32_t>(x[c]) - 1u >= 0x7f7fffffu ? 1u : 0u;
  }
  return bad == 0;
}

bool all_finite_and_not_zero(const float* x, int64_t n) {
  uint32_t bad = 0;
  for (int64_t c = 0; c < n; ++c) {
    bad |= (std::bit_cast<uint32_t>(x[c]) & 0x7fffffffu) - 1u >= 0x7f7fffffu ? 1u : 0u;
  }
  return bad == 0;
}

Status not_finite(const QuantScheme& scheme, const float* x, int64_t n, int64_t r) {
  int64_t c = 0;
  while (c < n && std::isfinite(x[c])) ++c;
  return error(StatusCode::out_of_range, "[coded_matrix] ", to_string(scheme), ": row ",
               r, ", column ", c, ": a finite number is needed; found ", x[c]);
}

Status bad_scale(const QuantScheme& scheme, const float* s, int64_t n, int64_t r) {
  int64_t c = 0;
  const bool either_sign = has_signed_scales(scheme);
  while (c < n && std::isfinite(s[c]) && (either_sign ? s[c] != 0 : s[c] > 0)) ++c;
  return error(StatusCode::out_of_range, "[coded_matrix] ", to_string(scheme), ": row ",
               r, ", column ", c, ": a scale must be finite and ",
               either_sign ? "not 0" : "positive", "; found ", s[c]);
}

std::vector<float> expanded(const std::vector<ScaleLevel>& levels,
                            const std::vector<CodedLevel>& values, const CodedMatrix& q) {
  std::vector<float> out(static_cast<size_t>(q.rows * q.cols), 0.0f);
  if (levels.empty() || !check_levels(q, levels, values, "").ok()) return out;
  for (int64_t r = 0; r < q.rows; ++r)
    expand_row(levels, values, q, r, out.data() + r * q.cols);
  return out;
}

}  // namespace

Status quantize(MatrixView<const float> x, CodedMatrix& q) {
  NIBBLE_RETURN_IF_ERROR(check_shapes(q, x.rows, x.cols));
  q.codes.resize(static_cast<size_t>(q.rows * q.cols));
  const int64_t step = rows_a_part(q.cols);
  const int64_t parts = (q.rows + step - 1) / step;
  std::vector<Status> outcomes(static_cast<size_t>(parts));
  const auto all_good =
      has_signed_scales(q.scheme) ? all_finite_and_not_zero : all_positive;
  parallel_for(parts, [&](int64_t part) {
    std::vector<float> scale(static_cast<size_t>(q.cols)),
        offset(static_cast<size_t>(q.cols));
    for (int64_t r = part * step; r < std::min(q.rows, (part + 1) * step); ++r) {
      Status& outcome = outcomes[static_cast<size_t>(part)];
      expand_row(q.scheme.scales, q.scales, q, r, scale.data());
      if (!q.offsets.empty())
        expand_row(q.scheme.offsets, q.offsets, q, r, offset.data());
      if (!all_finite(x.row(r), q.cols)) {
        outcome = not_finite(q.scheme, x.row(r), q.cols, r);
      } else if (!all_good(scale.data(), q.cols)) {
        outcome = bad_scale(q.scheme, scale.data(), q.cols, r);
      } else if (!all_finite(offset.data(), q.cols)) {
        outcome = not_finite(q.scheme, offset.data(), q.cols, r);
      }
      if (!outcome.ok()) return;
      quantize_row(q.scheme, x.row(r), scale.data(), offset.data(),
                   q.codes.data() + r * q.cols, q.cols);
    }
  });
  for (Status& outcome :
       outcomes) {  // the first in row order, whichever thread came first
    if (!outcome.ok()) return std::move(outcome);
  }
  return ok_status();
}

Status dequantize(const CodedMatrix& q, MatrixView<float> x) {
  NIBBLE_RETURN_IF_ERROR(check_shapes(q, x.rows, x.cols));
  if (static_cast<int64_t>(q.codes.size()) != q.rows * q.cols) {
    return error(StatusCode::invalid_argument, "[coded_matrix] ", to_string(q.scheme),
                 ": [", q.rows, ", ", q.cols, "] needs ", q.rows * q.cols,
                 " codes; found ", q.codes.size());
  }
  const int64_t step = rows_a_part(q.cols);
  parallel_for((q.rows + step - 1) / step, [&](int64_t part) {
    std::vector<float> scale(static_cast<size_t>(q.cols)),
        offset(static_cast<size_t>(q.cols));
    for (int64_t r = part * step; r < std::min(q.rows, (part + 1) * step); ++r) {
      expand_row(q.scheme.scales, q.scales, q, r, scale.data());
      if (!q.offsets.empty())
        expand_row(q.scheme.offsets, q.offsets, q, r, offset.data());
      dequantize_row(q.scheme, q.codes.data() + r * q.cols, scale.data(), offset.data(),
                     x.row(r), q.cols);
    }
  });
  return ok_status();
}

std::vector<float> expanded_scales(const CodedMatrix& q) {
  return expanded(q.scheme.scales, q.scales, q);
}

std::vector<float> expanded_offsets(const CodedMatrix& q) {
  return expanded(q.scheme.offsets, q.offsets, q);
}

}  // namespace nibble
