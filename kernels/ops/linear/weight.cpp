#include <cstring>

#include "kernels/base/float_types.h"
#include "kernels/ops/linear/linear.h"
#include "kernels/packing/packed_bits.h"
#include "kernels/ops/scratch.h"
#include "kernels/scheme/element_codec.h"
#include "kernels/scheme/level_runs.h"

namespace nibble {
namespace {

void expand_row(const std::vector<ScaleLevel>& levels,
                const std::vector<PackedLevel>& values, const PackedTensor& packed,
                int64_t r, float* out) {
  if (levels.empty()) return;
  const auto value = [&](size_t k, int64_t i) {
    const Element element = levels[k].element;
    const int64_t cols = level_shape(levels[k].block, packed.rows, packed.cols).cols;
    const std::byte* row =
        values[k].values.data() + i / cols * packed_row_bytes(element, cols);
    return value_of_bits(element, bits_at(reinterpret_cast<const uint8_t*>(row),
                                          element_info(element).bits, i % cols));
  };
  expand_levels(levels, values[0].shift, value, packed.rows, packed.cols, r, out);
}

// The floats of dequantize_rows without what it allocates: a token asks for one row.
void packed_row(const PackedTensor& packed, int64_t r, float* x) {
  const int64_t cols = packed.cols;
  static thread_local Scratch<float> level_scratch;
  static thread_local Scratch<uint8_t> code_scratch;
  float* const scale = level_scratch.get(static_cast<size_t>(2 * cols));
  float* const offset = scale + cols;
  uint8_t* const codes = code_scratch.get(static_cast<size_t>(cols));
  const ElementInfo& info = element_info(packed.scheme.code);
  const bool is_signed = info.kind == ElementKind::integer && info.lowest < 0;
  const uint32_t sign = is_signed ? 1u << (info.bits - 1) : 0u;
  const uint8_t* from = reinterpret_cast<const uint8_t*>(packed.codes.data()) +
                        r * packed_row_bytes(packed.scheme.code, cols);
  if (info.bits == 8) {
    std::memcpy(codes, from, static_cast<size_t>(cols));
  } else {
    for (int64_t c = 0; c < cols; ++c) {
      codes[c] = static_cast<uint8_t>((bits_at(from, info.bits, c) ^ sign) - sign);
    }
  }
  expand_row(packed.scheme.scales, packed.scales, packed, r, scale);
  expand_row(packed.scheme.offsets, packed.offsets, packed, r, offset);
  dequantize_row(packed.scheme, codes, scale, offset, x, cols);
}

}  // namespace

int64_t LinearWeight::bytes() const {
  return is_plain() ? static_cast<int64_t>(plain.bytes.size()) : packed.bytes();
}

Result<LinearWeight> linear_weight(const Tensor& tensor) {
  LinearWeight weight;
  weight.rows = tensor.rows();
  weight.cols = tensor.cols();
  weight.plain = tensor;
  switch (tensor.dtype) {
    case DType::f32:
      weight.scheme.code = Element::f32;
      break;
    case DType::bf16:
      weight.scheme.code = Element::bf16;
      break;
    case DType::f16:
      weight.scheme.code = Element::f16;
      break;
    case DType::f64: {
      NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> values, to_float(tensor));
      weight.plain = make_tensor(tensor.shape, values);
      weight.scheme.code = Element::f32;
      break;
    }
    default:
      return error(StatusCode::unsupported,
                   "[linear] a plain weight must be F32, F16, BF16 or F64; found ",
                   dtype_name(tensor.dtype), "; convert it");
  }
  const size_t needed =
      static_cast<size_t>(weight.plain.numel() * dtype_bytes(weight.plain.dtype));
  if (weight.plain.bytes.size() != needed) {
    return error(StatusCode::data_loss, "[linear] a weight of shape ",
                 shape_text(tensor.shape), " takes ", needed, " bytes; found ",
                 weight.plain.bytes.size());
  }
  return weight;
}

Result<LinearWeight> linear_weight(const PackedTensor& packed) {
  NIBBLE_RETURN_IF_ERROR(check_packed(packed));
  LinearWeight weight;
  weight.scheme = packed.scheme;
  weight.rows = packed.rows;
  weight.cols = packed.cols;
  weight.packed = packed;
  return weight;
}

Status weight_rows(const LinearWeight& weight, int64_t first, MatrixView<float> x) {
  if (!weight.is_plain()) {
    if (x.rows == 1 && x.cols == weight.cols && first >= 0 && first < weight.rows) {
      packed_row(weight.packed, first, x.data);
      return ok_status();
    }
    return dequantize_rows(weight.packed, first, x);
  }
  if (first < 0 || first + x.rows > weight.rows || x.cols != weight.cols) {
    return error(StatusCode::invalid_argument, "[linear] rows ", first, " .. ",
                 first + x.rows, " of ", x.cols, " columns were asked of a weight [",
                 weight.rows, ", ", weight.cols, "]");
  }
  const int64_t bytes = dtype_bytes(weight.plain.dtype);
  for (int64_t r = 0; r < x.rows; ++r) {
    const std::byte* in = weight.plain.bytes.data() + (first + r) * x.cols * bytes;
    float* out = x.row(r);
    if (weight.plain.dtype == DType::f32) {
      std::memcpy(out, in, static_cast<size_t>(x.cols * bytes));
      continue;
    }
    const bool is_bf16 = weight.plain.dtype == DType::bf16;
    for (int64_t c = 0; c < x.cols; ++c) {
      uint16_t bits;
      std::memcpy(&bits, in + c * 2, 2);  // files may be unaligned
      out[c] = is_bf16 ? float_from_bf16(bits) : float_from_f16(bits);
    }
  }
  return ok_status();
}

}  // namespace nibble
