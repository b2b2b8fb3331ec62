// Reads an ONNX directory's parameters back: codes and scales from what DequantizeLinear,
// MatMulNBits or an operator on codes (QLinearConv, QLinearMatMul, QGemm) reads, or
// MatMulInteger and the product that follows it.
//
// Shares nothing with the writer but onnx.proto: what a weight means is found by
// following the graph (the operator that reads the dequantized value says which axis is
// the rows). An initializer's name up to an `@` is the checkpoint's tensor name; names
// that begin with `/` are the graph's own constants.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <set>

#include "export/formats/readers.h"
#include "export/onnx/import_tensor.h"
#include "kernels/base/float_types.h"
#include "kernels/scheme/level_runs.h"
#include "onnx.pb.h"

namespace nibble {
namespace {

constexpr int64_t kMaxElements = int64_t{1}
                                 << 40;  // far beyond any tensor; products stay small

struct Reader {
  std::filesystem::path directory;
  const onnx::GraphProto* graph = nullptr;
  std::map<std::string, const onnx::TensorProto*> initializers;
  std::map<std::string, const onnx::NodeProto*>
      consumers;  // the first that reads a value
  std::map<std::string, const onnx::NodeProto*> dequantizers;  // by what they make

  template <class... Parts>
  static Status damaged(const std::string& where, const Parts&... parts) {
    return error(StatusCode::data_loss, "[onnx] ", where, ": ", parts...,
                 "; export the model again");
  }

  Result<std::string> raw(const onnx::TensorProto& tensor) const;
  Result<std::vector<float>> scales(const onnx::TensorProto& tensor) const;
  Result<std::vector<uint8_t>> codes(const onnx::TensorProto& tensor) const;
  Result<CodedMatrix> coded(const onnx::NodeProto& dequantize) const;
  Result<const onnx::TensorProto*> integer_scale(const onnx::NodeProto& product) const;
  Result<CodedMatrix> integer_coded(const onnx::NodeProto& product) const;
  Result<CodedMatrix> nbits_coded(const onnx::NodeProto& product) const;
  Result<CodedMatrix> qlinear_coded(const onnx::NodeProto& node) const;
};

// The operators whose fourth input is a weight in codes, its scale and zero point next.
bool reads_weight_codes(const std::string& op) {
  return op == "QLinearConv" || op == "QLinearMatMul" || op == "QGemm";
}

Result<int64_t> count_of(const onnx::TensorProto& tensor) {
  int64_t count = 1;
  for (int64_t dim : tensor.dims()) {
    if (dim < 0 || (dim > 0 && count > kMaxElements / dim)) {
      return Reader::damaged(tensor.name(), "dimensions must be sane; found ", dim);
    }
    count *= dim;
  }
  return count;
}

int64_t bits_of(int32_t type) {
  switch (type) {
    case onnx::TensorProto::UINT4:
    case onnx::TensorProto::INT4:
    case onnx::TensorProto::FLOAT4E2M1:
      return 4;
    case onnx::TensorProto::UINT8:
    case onnx::TensorProto::INT8:
    case onnx::TensorProto::FLOAT8E4M3FN:
    case onnx::TensorProto::FLOAT8E5M2:
    case onnx::TensorProto::FLOAT8E8M0:
      return 8;
    case onnx::TensorProto::FLOAT16:
    case onnx::TensorProto::BFLOAT16:
      return 16;
    case onnx::TensorProto::FLOAT:
    case onnx::TensorProto::INT32:
      return 32;
    case onnx::TensorProto::INT64:
      return 64;
    default:
      return 0;
  }
}

Result<std::string> Reader::raw(const onnx::TensorProto& tensor) const {
  NIBBLE_ASSIGN_OR_RETURN(const int64_t count, count_of(tensor));
  const int64_t bits = bits_of(tensor.data_type());
  if (bits == 0) {
    return error(StatusCode::unsupported, "[onnx] ", tensor.name(), ": data type ",
                 tensor.data_type(), " is not one that nibble writes");
  }
  std::string bytes;
  if (tensor.data_location() == onnx::TensorProto::EXTERNAL) {
    NIBBLE_ASSIGN_OR_RETURN(bytes, external_bytes(tensor, directory));
  } else {
    bytes = tensor.raw_data();
  }
  const int64_t needed = (count * bits + 7) / 8;
  if (static_cast<int64_t>(bytes.size()) != needed) {
    return damaged(tensor.name(), count, " values of ", bits, " bits take ", needed,
                   " bytes; found ", bytes.size());
  }
  return bytes;
}

// f32, or the powers of two that E8M0 bytes stand for.
Result<std::vector<float>> Reader::scales(const onnx::TensorProto& tensor) const {
  if (tensor.data_type() == onnx::TensorProto::FLOAT8E8M0) {
    NIBBLE_ASSIGN_OR_RETURN(const std::string bytes, raw(tensor));
    std::vector<float> values;
    for (const char byte : bytes) {
      const int exponent = static_cast<uint8_t>(byte);
      if (exponent == 255)
        return damaged(tensor.name(), "a scale must be a number; found E8M0's NaN");
      values.push_back(std::ldexp(1.0f, exponent - 127));
    }
    return values;
  }
  if (tensor.data_type() != onnx::TensorProto::FLOAT) {
    return damaged(tensor.name(), "scales must be f32; found data type ",
                   tensor.data_type());
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::string bytes, raw(tensor));
  std::vector<float> values(bytes.size() / sizeof(float));
  if (!values.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

// One code a byte, signed 4-bit codes sign-extended.
Result<std::vector<uint8_t>> Reader::codes(const onnx::TensorProto& tensor) const {
  NIBBLE_ASSIGN_OR_RETURN(const std::string bytes, raw(tensor));
  NIBBLE_ASSIGN_OR_RETURN(const int64_t count, count_of(tensor));
  std::vector<uint8_t> values(static_cast<size_t>(count));
  const bool half = bits_of(tensor.data_type()) == 4;
  const bool is_signed = tensor.data_type() == onnx::TensorProto::INT4;
  for (size_t i = 0; i < values.size(); ++i) {
    const auto byte = static_cast<uint8_t>(bytes[half ? i / 2 : i]);
    uint8_t code = byte;
    if (half) code = i % 2 == 0 ? byte & 0xf : byte >> 4;
    if (is_signed && code >= 8) code = static_cast<uint8_t>(code | 0xf0);
    values[i] = code;
  }
  return values;
}

const std::map<int32_t, Element>& code_elements() {
  static const std::map<int32_t, Element> elements = {
      {onnx::TensorProto::INT4, Element::int4},
      {onnx::TensorProto::UINT4, Element::uint4},
      {onnx::TensorProto::INT8, Element::int8},
      {onnx::TensorProto::UINT8, Element::uint8},
      {onnx::TensorProto::FLOAT8E4M3FN, Element::e4m3},
      {onnx::TensorProto::FLOAT8E5M2, Element::e5m2},
      {onnx::TensorProto::FLOAT4E2M1, Element::e2m1}};
  return elements;
}

// Stored values [outer, inner] as [inner, outer].
template <class T>
std::vector<T> transpose(const std::vector<T>& values, int64_t outer, int64_t inner) {
  std::vector<T> result(values.size());
  for (int64_t i = 0; i < outer; ++i) {
    for (int64_t j = 0; j < inner; ++j) {
      result[static_cast<size_t>(j * outer + i)] =
          values[static_cast<size_t>(i * inner + j)];
    }
  }
  return result;
}

// The same numbers, whatever zero the codes are counted from: MatMulNBits and
// DequantizeLinear may differ in that. Every reader here makes one level.
bool same_numbers(const CodedMatrix& a, const CodedMatrix& b) {
  const auto at = [](const CodedMatrix& q, const std::vector<ScaleLevel>& levels,
                     const std::vector<CodedLevel>& values, size_t i) {
    if (values.empty()) return 0.0f;
    const auto cols = static_cast<size_t>(q.cols);
    return values[0].values[static_cast<size_t>(
        level_index(levels[0].block, q.rows, q.cols, static_cast<int64_t>(i / cols),
                    static_cast<int64_t>(i % cols)))];
  };
  const auto distance = [&](const CodedMatrix& q, size_t i) {
    const bool is_signed = element_info(q.scheme.code).lowest < 0;
    const int code = is_signed ? static_cast<int8_t>(q.codes[i]) : q.codes[i];
    return static_cast<float>(code) - at(q, q.scheme.offsets, q.offsets, i);
  };
  if (a.rows != b.rows || a.cols != b.cols) return false;
  for (size_t i = 0; i < a.codes.size(); ++i) {
    if (distance(a, i) != distance(b, i)) return false;
    if (at(a, a.scheme.scales, a.scales, i) != at(b, b.scheme.scales, b.scales, i))
      return false;
  }
  return true;
}

Result<CodedMatrix> Reader::coded(const onnx::NodeProto& node) const {
  const onnx::TensorProto& tensor = *initializers.at(node.input(0));
  const std::string& name = tensor.name();
  int64_t axis = 1, block = 0;
  for (const auto& attribute : node.attribute()) {
    if (attribute.name() == "axis") axis = attribute.i();
    if (attribute.name() == "block_size") block = attribute.i();
  }
  if (tensor.dims_size() < 2) {
    return damaged(name, "a weight has two dimensions or more; found ",
                   tensor.dims_size());
  }
  const int64_t outer = tensor.dims(0);
  NIBBLE_ASSIGN_OR_RETURN(const int64_t count, count_of(tensor));
  const int64_t inner = outer == 0 ? 0 : count / outer;
  const auto consumer = consumers.find(node.output(0));
  const bool turned = consumer != consumers.end() &&
                      consumer->second->op_type() == "MatMul" &&
                      consumer->second->input(1) == node.output(0);

  CodedMatrix q;
  q.scheme.code = code_elements().at(tensor.data_type());
  q.rows = turned ? inner : outer;
  q.cols = turned ? outer : inner;
  NIBBLE_ASSIGN_OR_RETURN(q.codes, codes(tensor));
  if (turned) q.codes = transpose(q.codes, outer, inner);

  // What the scale's shape and axis mean as a block of the matrix [rows, cols]. It may be
  // dequantized itself, from codes with one scale of their own.
  const auto constant = [&](const onnx::NodeProto& of,
                            int i) -> const onnx::TensorProto* {
    const auto found =
        of.input_size() <= i ? initializers.end() : initializers.find(of.input(i));
    return found == initializers.end() ? nullptr : found->second;
  };
  const auto outer_node =
      node.input_size() < 2 ? dequantizers.end() : dequantizers.find(node.input(1));
  const bool two_levels = outer_node != dequantizers.end();
  const onnx::TensorProto* found_scale =
      two_levels ? constant(*outer_node->second, 0) : constant(node, 1);
  if (found_scale == nullptr)
    return damaged(name, "DequantizeLinear needs a constant scale");
  const onnx::TensorProto& s = *found_scale;
  const onnx::TensorProto* outer_scale =
      two_levels ? constant(*outer_node->second, 1) : nullptr;
  if (two_levels && (s.data_type() != onnx::TensorProto::FLOAT8E4M3FN ||
                     outer_scale == nullptr || outer_scale->dims_size() != 0)) {
    return damaged(name, "scales in codes must be FLOAT8E4M3FN under one f32 scale");
  }
  ScaleLevel level;
  level.element = two_levels                                       ? Element::e4m3
                  : s.data_type() == onnx::TensorProto::FLOAT8E8M0 ? Element::e8m0
                                                                   : Element::f32;
  bool turn_scale = false;
  if (s.dims_size() == 0) {
    level.block.kind = Block::Kind::tensor;
  } else if (s.dims_size() == 1) {
    const bool of_rows = (axis == 0) != turned;
    level.block.kind = of_rows ? Block::Kind::row : Block::Kind::column;
    if (axis > 1 || axis < 0) return damaged(name, "axis must be 0 or 1; found ", axis);
  } else {
    if (s.dims_size() != 2 || block < 1 || (axis == 0) != turned) {
      return damaged(name, "blocks must lie along the reduced axis; found axis ", axis,
                     ", block_size ", block);
    }
    level.block = Block{Block::Kind::group, 1, block};
    turn_scale = turned;
  }
  const LevelShape shape = level_shape(level.block, q.rows, q.cols);
  const auto finish_level = [&](std::vector<float> values) -> Result<CodedLevel> {
    if (static_cast<int64_t>(values.size()) != shape.rows * shape.cols) {
      return damaged(name, "needs ", shape.rows * shape.cols, " scales; found ",
                     values.size());
    }
    if (turn_scale) values = transpose(values, shape.cols, shape.rows);
    return CodedLevel{shape.rows, shape.cols, std::move(values), 0};
  };
  q.scheme.scales = {level};
  std::vector<float> values;
  if (two_levels) {
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<uint8_t> bytes, codes(s));
    for (const uint8_t byte : bytes) values.push_back(float_from_e4m3(byte));
  } else {
    NIBBLE_ASSIGN_OR_RETURN(values, scales(s));
  }
  NIBBLE_ASSIGN_OR_RETURN(CodedLevel scale_level, finish_level(std::move(values)));
  q.scales.push_back(std::move(scale_level));
  if (two_levels) {
    NIBBLE_ASSIGN_OR_RETURN(std::vector<float> outer_values, scales(*outer_scale));
    q.scheme.scales.push_back({{Block::Kind::tensor, 1, 1}, Element::f32, false});
    q.scales.push_back(CodedLevel{1, 1, std::move(outer_values), 0});
  }

  if (node.input_size() > 2) {
    const auto zero = initializers.find(node.input(2));
    if (zero == initializers.end() || zero->second->data_type() != tensor.data_type()) {
      return damaged(name, "a zero point must be a constant of the codes' type");
    }
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<uint8_t> zeros, codes(*zero->second));
    const bool is_signed = tensor.data_type() == onnx::TensorProto::INT4 ||
                           tensor.data_type() == onnx::TensorProto::INT8;
    std::vector<float> points;
    for (uint8_t z : zeros) points.push_back(is_signed ? static_cast<int8_t>(z) : z);
    q.scheme.offset = OffsetKind::zero_point;
    q.scheme.offsets = {{level.block, q.scheme.code, false}};
    NIBBLE_ASSIGN_OR_RETURN(CodedLevel zero_level, finish_level(std::move(points)));
    q.offsets.push_back(std::move(zero_level));
  }
  return q;
}

// MatMulInteger -> Cast to float -> Mul with a constant: that is the weight's scale.
Result<const onnx::TensorProto*> Reader::integer_scale(
    const onnx::NodeProto& product) const {
  const auto next = [&](const onnx::NodeProto* node,
                        const char* op) -> const onnx::NodeProto* {
    const auto found = node == nullptr || node->output_size() == 0
                           ? consumers.end()
                           : consumers.find(node->output(0));
    const bool fits = found != consumers.end() && found->second->op_type() == op;
    return fits ? found->second : nullptr;
  };
  const onnx::NodeProto* scaled = next(next(&product, "Cast"), "Mul");
  const auto scale = scaled == nullptr || scaled->input_size() < 2
                         ? initializers.end()
                         : initializers.find(scaled->input(1));
  if (scale == initializers.end()) {
    return damaged(product.input(1),
                   "codes of a MatMulInteger need a constant scale after it; found none");
  }
  return scale->second;
}

// Codes [cols, rows] and a scale a row, or one.
Result<CodedMatrix> Reader::integer_coded(const onnx::NodeProto& product) const {
  const onnx::TensorProto& tensor = *initializers.at(product.input(1));
  NIBBLE_ASSIGN_OR_RETURN(const onnx::TensorProto* scale, integer_scale(product));
  if (tensor.dims_size() != 2 || scale->dims_size() > 1) {
    return damaged(tensor.name(), "a MatMulInteger's weight has two dimensions and its "
                   "scale one; found ", tensor.dims_size(), " and ", scale->dims_size());
  }
  CodedMatrix q;
  q.scheme.code = code_elements().at(tensor.data_type());
  q.rows = tensor.dims(1);
  q.cols = tensor.dims(0);
  NIBBLE_ASSIGN_OR_RETURN(std::vector<uint8_t> stored, codes(tensor));
  q.codes = transpose(stored, q.cols, q.rows);
  ScaleLevel level;
  level.element = Element::f32;
  level.block.kind = scale->dims_size() == 0 ? Block::Kind::tensor : Block::Kind::row;
  q.scheme.scales = {level};
  NIBBLE_ASSIGN_OR_RETURN(std::vector<float> values, scales(*scale));
  const LevelShape shape = level_shape(level.block, q.rows, q.cols);
  if (static_cast<int64_t>(values.size()) != shape.rows * shape.cols) {
    return damaged(tensor.name(), "needs ", shape.rows * shape.cols, " scales; found ",
                   values.size());
  }
  q.scales.push_back(CodedLevel{shape.rows, shape.cols, std::move(values), 0});
  return q;
}

// MatMulNBits: bytes [N, blocks, block_size * bits / 8] and a scale (and zero point) a
// block; codes count from 0, which without zero points stands for -2^(bits - 1).
Result<CodedMatrix> Reader::nbits_coded(const onnx::NodeProto& product) const {
  const onnx::TensorProto& tensor = *initializers.at(product.input(1));
  const std::string& name = tensor.name();
  int64_t cols = 0, rows = 0, bits = 4, block = 0;
  for (const auto& attribute : product.attribute()) {
    if (attribute.name() == "K") cols = attribute.i();
    if (attribute.name() == "N") rows = attribute.i();
    if (attribute.name() == "bits") bits = attribute.i();
    if (attribute.name() == "block_size") block = attribute.i();
  }
  if ((bits != 2 && bits != 4 && bits != 8) || block < 16 || block > kMaxElements ||
      (block & (block - 1)) != 0) {
    return damaged(name,
                   "MatMulNBits has 2, 4 or 8 bits and blocks of 16, 32, 64 ...; found ",
                   bits, " bits, block_size ", block);
  }
  if (rows < 1 || cols < 1 || rows > kMaxElements || cols > kMaxElements / rows) {
    return damaged(name, "MatMulNBits has N and K from 1; found ", rows, " and ", cols);
  }
  const int64_t blocks = (cols + block - 1) / block, bytes = block * bits / 8;
  if (tensor.data_type() != onnx::TensorProto::UINT8 || tensor.dims_size() != 3 ||
      tensor.dims(0) != rows || tensor.dims(1) != blocks || tensor.dims(2) != bytes) {
    return damaged(name, "MatMulNBits reads uint8 [", rows, ", ", blocks, ", ", bytes,
                   "]; found another type or shape");
  }
  // Value i of a row of packed values that begins with a byte.
  const auto value = [&](const std::string& packed, int64_t row_bytes, int64_t r,
                         int64_t i) {
    const auto byte =
        static_cast<uint8_t>(packed[static_cast<size_t>(r * row_bytes + i * bits / 8)]);
    return (byte >> (i * bits % 8)) & ((1 << bits) - 1);
  };
  const bool has_zero_points = product.input_size() > 3 && !product.input(3).empty();
  const int shift = has_zero_points ? 0 : 1 << (bits - 1);

  CodedMatrix q;
  q.rows = rows;
  q.cols = cols;
  q.scheme.code = bits == 2         ? has_zero_points ? Element::uint2 : Element::int2
                  : bits == 4       ? has_zero_points ? Element::uint4 : Element::int4
                  : has_zero_points ? Element::uint8
                                    : Element::int8;
  NIBBLE_ASSIGN_OR_RETURN(const std::string packed, raw(tensor));
  q.codes.resize(static_cast<size_t>(rows * cols));
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      q.codes[static_cast<size_t>(r * cols + c)] =
          static_cast<uint8_t>(value(packed, blocks * bytes, r, c) - shift);
    }
  }
  const auto constant = [&](int i) -> Result<const onnx::TensorProto*> {
    const auto found = initializers.find(product.input(i));
    if (found != initializers.end()) return found->second;
    return damaged(name, "MatMulNBits needs constant scales and zero points; found `",
                   product.input(i), "`");
  };
  const ScaleLevel level{{Block::Kind::group, 1, block}, Element::f32, false};
  NIBBLE_ASSIGN_OR_RETURN(const onnx::TensorProto* scale, constant(2));
  NIBBLE_ASSIGN_OR_RETURN(std::vector<float> values, scales(*scale));
  if (static_cast<int64_t>(values.size()) != rows * blocks) {
    return damaged(name, "needs ", rows * blocks, " scales; found ", values.size());
  }
  q.scheme.scales = {level};
  q.scales.push_back(CodedLevel{rows, blocks, std::move(values), 0});
  if (!has_zero_points) return q;

  NIBBLE_ASSIGN_OR_RETURN(const onnx::TensorProto* zero, constant(3));
  const int64_t row_bytes = (blocks * bits + 7) / 8;
  NIBBLE_ASSIGN_OR_RETURN(const std::string zeros, raw(*zero));
  if (zero->data_type() != onnx::TensorProto::UINT8 ||
      static_cast<int64_t>(zeros.size()) != rows * row_bytes) {
    return damaged(name, "needs uint8 zero points of ", rows * row_bytes,
                   " bytes; found ", zeros.size());
  }
  std::vector<float> points;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t b = 0; b < blocks; ++b) {
      points.push_back(static_cast<float>(value(zeros, row_bytes, r, b)));
    }
  }
  q.scheme.offset = OffsetKind::zero_point;
  q.scheme.offsets = {{level.block, q.scheme.code, false}};
  q.offsets.push_back(CodedLevel{rows, blocks, std::move(points), 0});
  return q;
}

// QLinearConv [rows, ...], QGemm [rows, cols] (transB) or QLinearMatMul [cols, rows]:
// int8 codes, a scale (and zero point) a row, or one.
Result<CodedMatrix> Reader::qlinear_coded(const onnx::NodeProto& node) const {
  const onnx::TensorProto& tensor = *initializers.at(node.input(3));
  const std::string& name = tensor.name();
  const auto scale = initializers.find(node.input(4));
  const auto zero = initializers.find(node.input(5));
  if (tensor.data_type() != onnx::TensorProto::INT8 || tensor.dims_size() < 2 ||
      scale == initializers.end() || zero == initializers.end()) {
    return damaged(name, node.op_type(),
                   " reads int8 codes of two dimensions or more, a constant scale and a "
                   "constant zero point; found others");
  }
  int64_t turned = node.op_type() == "QLinearMatMul" ? 1 : 0;
  if (node.op_type() == "QGemm") {
    turned = 1;
    for (const auto& attribute : node.attribute()) {
      if (attribute.name() == "transB") turned = attribute.i() == 0 ? 1 : 0;
    }
  }
  const int64_t outer = tensor.dims(0);
  NIBBLE_ASSIGN_OR_RETURN(const int64_t count, count_of(tensor));
  const int64_t inner = outer == 0 ? 0 : count / outer;
  CodedMatrix q;
  q.scheme.code = Element::int8;
  q.rows = turned != 0 ? inner : outer;
  q.cols = turned != 0 ? outer : inner;
  NIBBLE_ASSIGN_OR_RETURN(q.codes, codes(tensor));
  if (turned != 0) q.codes = transpose(q.codes, outer, inner);

  ScaleLevel level;
  level.element = Element::f32;
  level.block.kind =
      scale->second->dims_size() == 0 ? Block::Kind::tensor : Block::Kind::row;
  const LevelShape shape = level_shape(level.block, q.rows, q.cols);
  NIBBLE_ASSIGN_OR_RETURN(std::vector<float> values, scales(*scale->second));
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<uint8_t> zeros, codes(*zero->second));
  if (static_cast<int64_t>(values.size()) != shape.rows * shape.cols ||
      zero->second->data_type() != onnx::TensorProto::INT8 ||
      (zeros.size() != values.size() && zeros.size() != 1)) {
    return damaged(name, "needs ", shape.rows * shape.cols,
                   " scales and as many int8 zero points; found ", values.size(), " and ",
                   zeros.size());
  }
  q.scheme.scales = {level};
  q.scales.push_back(CodedLevel{shape.rows, shape.cols, std::move(values), 0});
  if (std::all_of(zeros.begin(), zeros.end(), [](uint8_t z) { return z == 0; })) return q;
  std::vector<float> points;
  for (int64_t i = 0; i < shape.rows * shape.cols; ++i) {
    const uint8_t code = zeros[zeros.size() == 1 ? 0 : static_cast<size_t>(i)];
    points.push_back(static_cast<int8_t>(code));
  }
  q.scheme.offset = OffsetKind::zero_point;
  q.scheme.offsets = {{level.block, q.scheme.code, false}};
  q.offsets.push_back(CodedLevel{shape.rows, shape.cols, std::move(points), 0});
  return q;
}

Result<std::string> read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    return error(StatusCode::not_found, "[onnx] ", path.string(),
                 ": the file must exist");
  }
  return std::string(std::istreambuf_iterator<char>(file), {});
}

}  // namespace

Result<Decoded> read_onnx(const std::filesystem::path& directory) {
  return read_onnx_file(directory / "model.onnx");
}

Result<Decoded> read_onnx_file(const std::filesystem::path& path) {
  const std::filesystem::path directory = path.parent_path();
  NIBBLE_ASSIGN_OR_RETURN(const std::string bytes, read_file(path));
  onnx::ModelProto model;
  if (bytes.size() > static_cast<size_t>(std::numeric_limits<int>::max()) ||
      !model.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
    return Reader::damaged(path.string(), "must be an ONNX model; ",
                           bytes.size(), " bytes do not parse");
  }
  Reader reader{directory, &model.graph(), {}, {}, {}};
  Decoded decoded;
  if (auto config = read_file(directory / "config.json"); config.ok()) {
    decoded.config_json = std::move(config).value();
  }
  for (const auto& tensor : model.graph().initializer()) {
    reader.initializers[tensor.name()] = &tensor;
  }
  std::map<std::string, const onnx::NodeProto*> dequantized;  // codes -> DequantizeLinear
  std::map<std::string, const onnx::NodeProto*> products;     // codes -> MatMulInteger
  std::map<std::string, const onnx::NodeProto*> nbits;        // codes -> MatMulNBits
  std::map<std::string, const onnx::NodeProto*> qlinear;      // codes -> QLinearConv ...
  std::set<std::string> levels;                               // scales and zero points
  for (const auto& node : model.graph().node()) {
    for (const std::string& input : node.input()) reader.consumers.emplace(input, &node);
    if (node.op_type() == "MatMulInteger" && node.input_size() > 1) {
      products[node.input(1)] = &node;
    }
    if (node.op_type() == "MatMulNBits" && node.input_size() > 2) {
      nbits[node.input(1)] = &node;
      for (int i = 2; i < std::min(node.input_size(), 4); ++i)
        levels.insert(node.input(i));
    }
    if (reads_weight_codes(node.op_type()) && node.input_size() > 5) {
      qlinear[node.input(3)] = &node;
      for (const int i : {4, 5}) levels.insert(node.input(i));
    }
    if (node.op_type() != "DequantizeLinear" || node.input_size() < 2) continue;
    dequantized[node.input(0)] = &node;
    if (node.output_size() > 0) reader.dequantizers[node.output(0)] = &node;
    for (int i = 1; i < node.input_size(); ++i) levels.insert(node.input(i));
  }
  // Scales that are dequantized themselves are no weights.
  for (const auto& [codes, node] : dequantized) {
    const auto outer = reader.dequantizers.find(node->input(1));
    if (outer != reader.dequantizers.end()) levels.insert(outer->second->input(0));
  }
  for (const auto& [codes, node] : products) {
    if (!reader.initializers.count(codes)) continue;  // a product of two values
    NIBBLE_ASSIGN_OR_RETURN(const onnx::TensorProto* scale, reader.integer_scale(*node));
    levels.insert(scale->name());
  }
  for (const auto& tensor : model.graph().initializer()) {
    if (tensor.name().rfind('/', 0) == 0 || levels.count(tensor.name())) continue;
    const std::string name = tensor.name().substr(0, tensor.name().find('@'));
    if (code_elements().count(tensor.data_type())) {
      const auto node = dequantized.find(tensor.name());
      const auto product = products.find(tensor.name());
      const auto packed = nbits.find(tensor.name());
      const auto on_codes = qlinear.find(tensor.name());
      if (node == dequantized.end() && product == products.end() &&
          packed == nbits.end() && on_codes == qlinear.end()) {
        return Reader::damaged(
            name,
            "codes must go through DequantizeLinear, MatMulNBits, "
            "MatMulInteger, QLinearConv, QLinearMatMul or QGemm; found "
            "none");
      }
      NIBBLE_ASSIGN_OR_RETURN(
          CodedMatrix q,
          packed != nbits.end()       ? reader.nbits_coded(*packed->second)
          : on_codes != qlinear.end() ? reader.qlinear_coded(*on_codes->second)
          : node != dequantized.end() ? reader.coded(*node->second)
                                      : reader.integer_coded(*product->second));
      const auto [first, fresh] = decoded.coded.emplace(name, q);
      if (!fresh && !same_numbers(first->second, q)) {
        return Reader::damaged(name,
                               "is stored twice, once a reading order, with equal codes "
                               "and scales; found different ones");
      }
      continue;
    }
    NIBBLE_ASSIGN_OR_RETURN(const std::string values, reader.raw(tensor));
    Tensor value;
    switch (tensor.data_type()) {
      case onnx::TensorProto::FLOAT:
        value.dtype = DType::f32;
        break;
      case onnx::TensorProto::FLOAT16:
        value.dtype = DType::f16;
        break;
      case onnx::TensorProto::BFLOAT16:
        value.dtype = DType::bf16;
        break;
      case onnx::TensorProto::INT32:
        value.dtype = DType::i32;
        break;
      default:
        return error(StatusCode::unsupported, "[onnx] ", name, ": data type ",
                     tensor.data_type(), " is not one that nibble writes");
    }
    value.shape.assign(tensor.dims().begin(), tensor.dims().end());
    value.bytes = Bytes::copy_of(values.data(), values.size());
    decoded.floats.emplace(name, std::move(value));
  }
  return decoded;
}

}  // namespace nibble
