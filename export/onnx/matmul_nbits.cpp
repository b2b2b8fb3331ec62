#include "export/onnx/matmul_nbits.h"

#include <algorithm>

#include "export/levels.h"
#include "export/onnx/onnx_weight.h"

namespace nibble {
namespace {

// The place of 0 among unsigned codes of so many bits.
int middle(int64_t bits) { return 1 << (bits - 1); }

int64_t bits_for(const ElementInfo& info) {
  return info.bits <= 2 ? 2 : info.bits <= 4 ? 4 : 8;
}

// Values of `bits` bits, each row from a new byte, the first in the low bits.
class BitRows {
 public:
  BitRows(int64_t bits, int64_t rows, int64_t values_per_row)
      : bits_(bits), row_bytes_((values_per_row * bits + 7) / 8) {
    raw_.assign(static_cast<size_t>(rows * row_bytes_), '\0');
  }
  void set(int64_t row, int64_t i, int value) {
    const int64_t bit = i * bits_;
    char& byte = raw_[static_cast<size_t>(row * row_bytes_ + bit / 8)];
    byte = static_cast<char>(static_cast<uint8_t>(byte) | value << (bit % 8));
  }
  std::string take() { return std::move(raw_); }

 private:
  int64_t bits_, row_bytes_;
  std::string raw_;
};

}  // namespace

Result<NBitsForm> nbits_form(const QuantScheme& scheme, int64_t rows, int64_t cols,
                             const std::string& where) {
  NIBBLE_ASSIGN_OR_RETURN(const OnnxBlocks blocks,
                          onnx_blocks(scheme, rows, cols, where));
  const ElementInfo& code = element_info(scheme.code);
  if (code.kind != ElementKind::integer) {
    return error(StatusCode::unsupported, "[onnx] ", where,
                 ": MatMulNBits has integer codes; found ", to_string(scheme),
                 "; leave --quant-format out");
  }
  NBitsForm form;
  form.bits = bits_for(code);
  // Unsigned codes without an offset have their 0 at code 0, not in the middle.
  form.has_zero_points = scheme.offset == OffsetKind::zero_point || code.lowest >= 0;
  if (scheme.offset == OffsetKind::zero_point) {
    const ElementInfo& zero = element_info(scheme.offsets.front().element);
    form.bits = std::max(form.bits, bits_for(zero));
    const int shift = code.lowest < 0 ? middle(form.bits) : 0;
    if (zero.lowest + shift < 0 || zero.highest + shift >= 1 << form.bits) {
      return error(StatusCode::unsupported, "[onnx] ", where,
                   ": a zero point must be a code of MatMulNBits' ", form.bits,
                   " bits; found ", to_string(scheme), "; store zero points as ",
                   code.text);
    }
  }
  if (blocks.group == 0) {  // a scale a row or tensor: any block will do
    form.block_size = kNBitsLowestBlock;
    while (form.block_size < cols && form.block_size < kNBitsHighestBlock) {
      form.block_size *= 2;
    }
    return form;
  }
  form.block_size = std::min(blocks.group & -blocks.group, kNBitsHighestBlock);
  if (form.block_size < kNBitsLowestBlock) {
    return error(StatusCode::unsupported, "[onnx] ", where,
                 ": MatMulNBits has blocks of 16, 32, 64 ... columns; found groups of ",
                 blocks.group, " (", to_string(scheme),
                 "); quantize with a group that is a multiple of 16, or leave "
                 "--quant-format out");
  }
  return form;
}

Result<NBitsWeight> make_nbits_weight(const CodedMatrix& q, const std::string& where) {
  NBitsWeight weight;
  NIBBLE_ASSIGN_OR_RETURN(weight.form, nbits_form(q.scheme, q.rows, q.cols, where));
  const auto [bits, block, has_zero_points] = weight.form;
  const bool is_signed = element_info(q.scheme.code).lowest < 0;
  const int shift = is_signed ? middle(bits) : 0;
  weight.blocks = (q.cols + block - 1) / block;
  BitRows codes(bits, q.rows, weight.blocks * block);
  BitRows zero_points(bits, q.rows, weight.blocks);
  weight.scales.reserve(static_cast<size_t>(q.rows * weight.blocks));
  for (int64_t r = 0; r < q.rows; ++r) {
    for (int64_t c = 0; c < q.cols; ++c) {
      const uint8_t code = q.codes[static_cast<size_t>(r * q.cols + c)];
      codes.set(r, c, is_signed ? static_cast<int8_t>(code) + shift : code);
    }
    for (int64_t b = 0; b < weight.blocks; ++b) {
      weight.scales.push_back(scale_at(q, r, b * block));
      const float zero =
          q.scheme.offset == OffsetKind::zero_point ? offset_at(q, r, b * block) : 0.0f;
      zero_points.set(r, b, static_cast<int>(zero) + shift);
    }
  }
  weight.codes = codes.take();
  if (has_zero_points) weight.zero_points = zero_points.take();
  return weight;
}

}  // namespace nibble
