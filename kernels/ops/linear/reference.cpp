#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/base/float_types.h"
#include "kernels/base/parallel.h"
#include "kernels/ops/linear/linear.h"
#include "kernels/ops/linear/row_levels.h"
#include "kernels/ops/quantize_rows/quantize_rows.h"

namespace nibble {
namespace {

// 127 * 255 * 2^16 < 2^31: the longest run of products that int32 holds.
constexpr int64_t kLongestGroup = int64_t{1} << 16;

Status check_shapes(const LinearWeight& weight, int64_t rows, int64_t cols,
                    int64_t out_rows, int64_t out_cols) {
  if (cols != weight.cols || rows != out_rows || out_cols != weight.rows) {
    return error(StatusCode::invalid_argument, "[linear] weight [", weight.rows, ", ",
                 weight.cols, "] needs x [n, ", weight.cols, "] and y [n, ", weight.rows,
                 "]; found x [", rows, ", ", cols, "] and y [", out_rows, ", ", out_cols,
                 "]");
  }
  return ok_status();
}

float rounded_to_bf16(float x) { return float_from_bf16(bf16_from_float(x)); }

// w, or the w' of bf16 activations.
Result<std::vector<double>> weight_values(const LinearWeight& weight, bool bf16) {
  std::vector<float> plain(static_cast<size_t>(weight.rows * weight.cols));
  if (!bf16 || weight.is_plain()) {
    NIBBLE_RETURN_IF_ERROR(weight_rows(
        weight, 0, MatrixView<float>(plain.data(), weight.rows, weight.cols)));
    if (bf16) {
      for (float& value : plain) value = rounded_to_bf16(value);
    }
    return std::vector<double>(plain.begin(), plain.end());
  }
  NIBBLE_ASSIGN_OR_RETURN(const CodedMatrix q, unpack(weight.packed));
  const std::vector<float> scales = expanded_scales(q);
  const std::vector<float> offsets = expanded_offsets(q);
  const bool minimum = weight.scheme.offset == OffsetKind::minimum;
  std::vector<double> w(scales.size());
  for (size_t i = 0; i < w.size(); ++i) {
    const double code = rounded_to_bf16(value_of(weight.scheme.code, q.codes[i]));
    w[i] = minimum ? scales[i] * code + offsets[i] : scales[i] * (code - offsets[i]);
  }
  return w;
}

// f32 and bf16 activations.
Status reference_float(const LinearWeight& weight, bool bf16, MatrixView<const float> x,
                       const float* bias, MatrixView<float> y) {
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<double> w, weight_values(weight, bf16));
  parallel_for(weight.rows, [&](int64_t n) {
    const double* row = w.data() + n * weight.cols;
    for (int64_t t = 0; t < x.rows; ++t) {
      double sum = 0;
      for (int64_t k = 0; k < x.cols; ++k) {
        sum += (bf16 ? rounded_to_bf16(x(t, k)) : x(t, k)) * row[k];
      }
      y(t, n) = static_cast<float>(bias ? sum + bias[n] : sum);
    }
  });
  return ok_status();
}

Status reference_s8(const LinearWeight& weight, MatrixView<const float> x,
                    const float* bias, MatrixView<float> y, const LinearInput& input) {
  NIBBLE_ASSIGN_OR_RETURN(const CodedMatrix q, unpack(weight.packed));
  const int64_t cols = weight.cols;
  const int64_t group = group_columns(weight.scheme, cols, input);
  const RowLevels levels = row_levels(q, group);
  std::vector<int8_t> codes(static_cast<size_t>(x.rows * cols));
  const int64_t width = input.group > 0 ? std::min(input.group, cols) : cols;
  const int64_t slices = (cols + width - 1) / width;
  std::vector<float> scales(static_cast<size_t>(slices * x.rows), input.scale);
  for (int64_t slice = 0; slice < slices; ++slice) {
    const int64_t first = slice * width, count = std::min(width, cols - first);
    const MatrixView<const float> from(x.data + first, x.rows, count, x.stride);
    const MatrixView<int8_t> to(codes.data() + first, x.rows, count, cols);
    if (input.scale > 0) {
      quantize_rows_by_reference(from, input.scale, input.lowest, to);
    } else {
      quantize_rows_reference(from, to, scales.data() + slice * x.rows);
    }
  }
  const bool is_signed = element_info(weight.scheme.code).lowest < 0;
  parallel_for(weight.rows, [&](int64_t n) {
    for (int64_t t = 0; t < x.rows; ++t) {
      float total = 0, value = 0;
      for (int64_t g = 0; g < levels.groups; ++g) {
        const int64_t slice = g * group / width;
        const size_t at = static_cast<size_t>(n * levels.groups + g);
        const int32_t zero =
            levels.zeros.empty() ? 0 : static_cast<int32_t>(levels.zeros[at]);
        int32_t products = 0;
        int32_t sum = 0;
        for (int64_t k = g * group; k < std::min(cols, (g + 1) * group); ++k) {
          const uint8_t byte = q.codes[static_cast<size_t>(n * cols + k)];
          const int32_t code = is_signed ? static_cast<int8_t>(byte) : byte;
          const int32_t activation = codes[static_cast<size_t>(t * cols + k)];
          products += activation * (code - zero);
          sum += activation;
        }
        value = std::fma(static_cast<float>(products), levels.scales[at], value);
        if (!levels.minima.empty()) {
          value = std::fma(static_cast<float>(sum), levels.minima[at], value);
        }
        if (g + 1 < levels.groups && (g + 1) * group / width == slice) continue;
        const float scale = scales[static_cast<size_t>(slice * x.rows + t)];
        total = slice == 0 ? value * scale : std::fma(value, scale, total);
        value = 0;
      }
      y(t, n) = bias ? total + bias[n] : total;
    }
  });
  return ok_status();
}

}  // namespace

int64_t group_columns(const QuantScheme& scheme, int64_t cols) {
  int64_t run = 0;  // gcd(0, n) = n
  for (const auto* levels : {&scheme.scales, &scheme.offsets}) {
    for (const ScaleLevel& level : *levels) {
      const int64_t width = level.block.cols;
      switch (level.block.kind) {
        case Block::Kind::tensor:
        case Block::Kind::row:
          break;
        case Block::Kind::flat:
          // Whole blocks a row, or whole rows a block. An outer block is made of whole
          // inner ones, so the inner's run is all that counts.
          if (&level == &levels->front() && cols % width != 0 && width % cols != 0) {
            return 0;
          }
          run = std::gcd(run, width);
          break;
        case Block::Kind::group:
        case Block::Kind::grid:
          run = std::gcd(run, width);
          break;
        case Block::Kind::column:
          return 0;
      }
    }
  }
  if (run == 0 || run >= cols) return std::min(cols, kLongestGroup);
  return run <= kLongestGroup ? run : std::gcd(run, kLongestGroup);
}

int64_t group_columns(const QuantScheme& scheme, int64_t cols, const LinearInput& input) {
  const int64_t own = group_columns(scheme, cols);
  if (input.group <= 0 || input.group >= cols) return own;
  // A weight's group that is the whole row ends nowhere inside it.
  if (own < cols) return std::gcd(input.group, own);
  return input.group <= kLongestGroup ? input.group : std::gcd(input.group, kLongestGroup);
}

bool has_groups(const QuantScheme& scheme, int64_t cols) {
  return cols > 0 && group_columns(scheme, cols) >= std::min<int64_t>(8, cols);
}

bool accepts_integer(const QuantScheme& scheme, int64_t cols) {
  if (scheme.is_float() || element_info(scheme.code).kind != ElementKind::integer) {
    return false;
  }
  if (scheme.offset == OffsetKind::zero_point) {
    for (const ScaleLevel& level : scheme.offsets) {
      if (level.shifted || element_info(level.element).kind != ElementKind::integer) {
        return false;
      }
    }
    if (scheme.offsets.size() != 1) return false;
  }
  return has_groups(scheme, cols);
}

RowLevels row_levels(const CodedMatrix& q, int64_t group) {
  RowLevels result;
  result.groups = (q.cols + group - 1) / group;
  const size_t count = static_cast<size_t>(q.rows * result.groups);
  const auto product = [&](const std::vector<ScaleLevel>& schemes,
                           const std::vector<CodedLevel>& levels) {
    std::vector<float> values(count);
    for (int64_t r = 0; r < q.rows; ++r) {
      for (int64_t g = 0; g < result.groups; ++g) {
        float value = 0;
        for (size_t i = 0; i < levels.size(); ++i) {
          const int64_t at = level_index(schemes[i].block, q.rows, q.cols, r, g * group);
          const float level = levels[i].values[static_cast<size_t>(at)];
          value = i == 0 ? level : value * level;
        }
        if (!levels.empty() && schemes[0].shifted) value = value + levels[0].shift;
        values[static_cast<size_t>(r * result.groups + g)] = value;
      }
    }
    return values;
  };
  result.scales = product(q.scheme.scales, q.scales);
  if (q.scheme.offset == OffsetKind::zero_point) {
    result.zeros = product(q.scheme.offsets, q.offsets);
  } else if (q.scheme.offset == OffsetKind::minimum) {
    result.minima = product(q.scheme.offsets, q.offsets);
  }
  return result;
}

Status linear_reference(const LinearWeight& weight, LinearActivation activation,
                        MatrixView<const float> x, const float* bias,
                        MatrixView<float> y, const LinearInput& input) {
  NIBBLE_RETURN_IF_ERROR(check_shapes(weight, x.rows, x.cols, y.rows, y.cols));
  if (activation != LinearActivation::s8) {
    return reference_float(weight, activation == LinearActivation::bf16, x, bias, y);
  }
  if (!accepts_integer(weight.scheme, weight.cols)) {
    return error(StatusCode::unsupported,
                 "[linear] int8 activations need integer codes with scales along rows; "
                 "found ",
                 to_string(weight.scheme), "; use float activations");
  }
  return reference_s8(weight, x, bias, y, input);
}

Status linear_magnitude(const LinearWeight& weight, MatrixView<const float> x,
                        const float* bias, MatrixView<double> magnitude) {
  NIBBLE_RETURN_IF_ERROR(
      check_shapes(weight, x.rows, x.cols, magnitude.rows, magnitude.cols));
  const int64_t cols = weight.cols;
  std::vector<double> w(static_cast<size_t>(weight.rows * cols));
  if (weight.is_plain()) {
    std::vector<float> values(w.size());
    NIBBLE_RETURN_IF_ERROR(
        weight_rows(weight, 0, MatrixView<float>(values.data(), weight.rows, cols)));
    for (size_t i = 0; i < w.size(); ++i) w[i] = std::fabs(values[i]);
  } else {
    NIBBLE_ASSIGN_OR_RETURN(const CodedMatrix q, unpack(weight.packed));
    const std::vector<float> scales = expanded_scales(q);
    const std::vector<float> offsets = expanded_offsets(q);
    for (size_t i = 0; i < w.size(); ++i) {
      const double code = std::fabs(value_of(weight.scheme.code, q.codes[i]));
      const double offset = std::fabs(offsets[i]);
      w[i] = weight.scheme.offset == OffsetKind::minimum
                 ? std::fabs(scales[i]) * code + offset
                 : std::fabs(scales[i]) * (code + offset);
    }
  }
  for (int64_t t = 0; t < x.rows; ++t) {
    for (int64_t n = 0; n < weight.rows; ++n) {
      double sum = bias ? std::fabs(bias[n]) : 0;
      for (int64_t k = 0; k < cols; ++k) {
        sum += std::fabs(static_cast<double>(x(t, k))) *
               w[static_cast<size_t>(n * cols + k)];
      }
      magnitude(t, n) = sum;
    }
  }
  return ok_status();
}

}  // namespace nibble
