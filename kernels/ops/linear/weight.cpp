#include <cstring>

#include "kernels/base/float_types.h"
#include "kernels/ops/linear/linear.h"

namespace nibble {

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
  if (!weight.is_plain()) return dequantize_rows(weight.packed, first, x);
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
