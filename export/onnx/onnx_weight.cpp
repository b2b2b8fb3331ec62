#include "export/onnx/onnx_weight.h"

#include <numeric>

#include "export/levels.h"
#include "kernels/scheme/element_codec.h"

namespace nibble {
namespace {

Status cannot(const std::string& where, const std::string& required,
              const QuantScheme& scheme, const std::string& advice) {
  return error(StatusCode::unsupported, "[onnx] ", where, ": ", required, "; found ",
               to_string(scheme), "; ", advice);
}

// Makes blocks fine enough for one more level. False: the level's blocks run over row
// ends.
bool refine(const Block& block, int64_t rows, int64_t cols, OnnxBlocks* blocks) {
  const auto split = [&](int64_t width) {
    if (width < cols) blocks->group = std::gcd(blocks->group, width);
  };
  switch (block.kind) {
    case Block::Kind::tensor:
      return true;
    case Block::Kind::row:
      blocks->per_row = true;
      return true;
    case Block::Kind::column:
      split(1);
      return true;
    case Block::Kind::group:
      blocks->per_row = true;
      split(block.cols);
      return true;
    case Block::Kind::grid:
      blocks->per_row = blocks->per_row || block.rows < rows;
      split(block.cols);
      return true;
    case Block::Kind::flat:
      if (block.cols >= rows * cols) return true;
      blocks->per_row = true;
      if (block.cols % cols == 0) return true;
      split(block.cols);
      return cols % block.cols == 0;
  }
  return false;
}

// Codes (one a byte) to ONNX's raw bytes, read in the order of the initializer's
// elements.
class RawWriter {
 public:
  RawWriter(OnnxType type, int64_t count) : half_(onnx_type_bits(type) == 4) {
    raw_.resize(static_cast<size_t>(half_ ? (count + 1) / 2 : count), '\0');
  }
  void push(uint8_t code) {
    if (half_) {
      const int shift = next_ % 2 == 0 ? 0 : 4;
      raw_[next_ / 2] = static_cast<char>(static_cast<uint8_t>(raw_[next_ / 2]) |
                                          ((code & 0xf) << shift));
    } else {
      raw_[next_] = static_cast<char>(code);
    }
    ++next_;
  }
  std::string take() { return std::move(raw_); }

 private:
  bool half_;
  size_t next_ = 0;
  std::string raw_;
};

}  // namespace

Result<OnnxType> onnx_code_type(Element element, const std::string& where) {
  const ElementInfo& info = element_info(element);
  if (info.kind == ElementKind::integer) {
    if (info.lowest < 0) return info.bits <= 4 ? OnnxType::int4 : OnnxType::int8;
    return info.bits <= 4 ? OnnxType::uint4 : OnnxType::uint8;
  }
  if (element == Element::e4m3) return OnnxType::e4m3;
  if (element == Element::e5m2) return OnnxType::e5m2;
  if (element == Element::e2m1) return OnnxType::e2m1;
  return error(StatusCode::unsupported, "[onnx] ", where,
               ": codes must be int2..8, uint2..8, e4m3, e5m2 or e2m1; found ", info.text,
               "; export to the nibble format, or quantize with another element");
}

Result<OnnxBlocks> onnx_blocks(const QuantScheme& scheme, int64_t rows, int64_t cols,
                               const std::string& where) {
  OnnxBlocks blocks;
  NIBBLE_ASSIGN_OR_RETURN(blocks.type, onnx_code_type(scheme.code, where));
  if (scheme.offset == OffsetKind::minimum) {
    return cannot(where, "DequantizeLinear has a zero point, not a minimum", scheme,
                  "quantize with +z, or without an offset");
  }
  if (scheme.offset == OffsetKind::zero_point) {
    const ElementInfo& zero = element_info(scheme.offsets.front().element);
    const bool is_signed = blocks.type == OnnxType::int4 || blocks.type == OnnxType::int8;
    const int64_t bits = onnx_type_bits(blocks.type);
    const auto span = static_cast<float>(1 << (is_signed ? bits - 1 : bits));
    if (zero.lowest < (is_signed ? -span : 0) || zero.highest > span - 1) {
      return cannot(where,
                    cat("a zero point must fit the ONNX type of the codes, ",
                        is_signed ? "int" : "uint", bits),
                    scheme, cat("store zero points as ", element_info(scheme.code).text));
    }
  }
  for (const auto* levels : {&scheme.scales, &scheme.offsets}) {
    for (const ScaleLevel& level : *levels) {
      if (!refine(level.block, rows, cols, &blocks)) {
        return cannot(
            where,
            cat("blocks must not run over the ends of the rows of ", cols, " columns"),
            scheme, "use groups along the row (gN)");
      }
    }
  }
  // Scales per column alone are one axis; wider column blocks need the blocked form.
  if (blocks.group > 1) blocks.per_row = true;
  return blocks;
}

// What the scales of a 4-bit float are stored as: the element of its groups, where ONNX
// has it and no other level is in it.
OnnxType scale_type_of(const QuantScheme& scheme, int64_t opset) {
  if (scheme.code != Element::e2m1 || scheme.scales[0].shifted ||
      scheme.scales[0].block.kind != Block::Kind::group) {
    return OnnxType::float32;
  }
  const Element element = scheme.scales[0].element;
  if (scheme.scales.size() == 1 && element == Element::e8m0 && opset >= kOnnxE8m0Opset)
    return OnnxType::e8m0;
  const bool under_one = scheme.scales.size() == 2 && !scheme.scales[1].shifted &&
                         scheme.scales[1].block.kind == Block::Kind::tensor;
  return under_one && element == Element::e4m3 ? OnnxType::e4m3 : OnnxType::float32;
}

Result<OnnxWeight> make_onnx_weight(const CodedMatrix& q, Orientation orientation,
                                    const std::string& where, int64_t opset) {
  NIBBLE_ASSIGN_OR_RETURN(const OnnxBlocks blocks,
                          onnx_blocks(q.scheme, q.rows, q.cols, where));
  const bool rows_first = orientation == Orientation::rows_first;
  const int64_t row_axis = rows_first ? 0 : 1;
  const int64_t groups =
      blocks.group == 0 ? 1 : (q.cols + blocks.group - 1) / blocks.group;
  const int64_t scale_rows = blocks.per_row ? q.rows : 1;

  OnnxWeight weight;
  weight.type = blocks.type;
  weight.blocked = blocks.group > 0 && blocks.per_row;
  weight.shape = rows_first ? std::vector<int64_t>{q.rows, q.cols}
                            : std::vector<int64_t>{q.cols, q.rows};
  if (weight.blocked) {
    weight.scale_shape = rows_first ? std::vector<int64_t>{q.rows, groups}
                                    : std::vector<int64_t>{groups, q.rows};
    weight.attributes = {{"axis", 1 - row_axis}, {"block_size", blocks.group}};
  } else if (blocks.group > 0) {
    weight.scale_shape = {q.cols};
    weight.attributes = {{"axis", 1 - row_axis}};
  } else if (blocks.per_row) {
    weight.scale_shape = {q.rows};
    weight.attributes = {{"axis", row_axis}};
  }

  weight.scale_type = scale_type_of(q.scheme, opset);
  const ScaleLevel& innermost = q.scheme.scales[0];
  if (weight.scale_type == OnnxType::e4m3) weight.outer_scale = q.scales[1].values[0];
  // FLOAT8E8M0 alone is no type of what is dequantized.
  if (weight.scale_type == OnnxType::e8m0)
    weight.attributes["output_dtype"] = static_cast<int64_t>(OnnxType::float32);

  const int64_t count = scale_rows * groups;
  weight.scales.reserve(static_cast<size_t>(count));
  RawWriter zero_points(weight.type, count);
  const int64_t outer = rows_first ? scale_rows : groups;
  const int64_t inner = rows_first ? groups : scale_rows;
  for (int64_t i = 0; i < outer; ++i) {
    for (int64_t j = 0; j < inner; ++j) {
      const int64_t r = rows_first ? i : j;
      const int64_t c = (rows_first ? j : i) * blocks.group;
      if (weight.scale_type == OnnxType::float32) {
        weight.scales.push_back(scale_at(q, r, c));
      } else {
        const int64_t index = level_index(innermost.block, q.rows, q.cols, r, c);
        const float value = q.scales[0].values[static_cast<size_t>(index)];
        weight.scale_codes.push_back(
            static_cast<char>(bits_of_value(innermost.element, value)));
      }
      if (q.scheme.offset == OffsetKind::zero_point) {
        const float zero = offset_at(q, r, c);
        zero_points.push(static_cast<uint8_t>(static_cast<int>(zero)));
      }
    }
  }
  if (q.scheme.offset == OffsetKind::zero_point) weight.zero_points = zero_points.take();

  RawWriter codes(weight.type, q.rows * q.cols);
  if (rows_first) {
    for (uint8_t code : q.codes) codes.push(code);
  } else {
    for (int64_t c = 0; c < q.cols; ++c) {
      for (int64_t r = 0; r < q.rows; ++r) {
        codes.push(q.codes[static_cast<size_t>(r * q.cols + c)]);
      }
    }
  }
  weight.codes = codes.take();
  return weight;
}

Status check_onnx_activation(const ActivationScheme& activation, const std::string& where,
                             bool tensorrt) {
  const QuantScheme& scheme = activation.scheme;
  if (activation.dynamic) {
    return cannot(where, "activations must have static scales (QuantizeLinear)", scheme,
                  "calibrate static scales, or leave the activations float");
  }
  const bool expressible =
      (element_info(scheme.code).kind == ElementKind::integer ||
       scheme.code == Element::e4m3 || scheme.code == Element::e5m2) &&
      scheme.offset == OffsetKind::none && scheme.scales.size() == 1 &&
      scheme.scales.front().block.kind == Block::Kind::tensor;
  if (!expressible) {
    return cannot(where, "activations must be integers or FP8 with one scale per tensor",
                  scheme, cat("use ", kSignedActivation, " or ", kUnsignedActivation));
  }
  // Its optimizer takes DequantizeLinear -> MatMul of FP8 for one of integers and then
  // refuses the model (1.31).
  if (!tensorrt && element_info(scheme.code).kind != ElementKind::integer) {
    return cannot(where, "ONNX Runtime cannot run products of FP8 activations", scheme,
                  "export with --target tensorrt, or leave the activations float");
  }
  return ok_status();
}

}  // namespace nibble
