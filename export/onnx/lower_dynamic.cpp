// Linear layers with dynamic activations (int8n/r@f32): the runtime's arithmetic
// (ops/linear/linear.h, activation s8) in standard operators.
//
//   a = max |x| over the features, s = a / 127 (1 where that is 0), q = clip(round(x / s))
//   weights of int8 codes with one scale a row:   y = (float(MatMulInteger(q, w)) s_w) s
//   any other weight:                             y = MatMul(q s, dequantized w)
//
// DynamicQuantizeLinear is not this: it has one scale a tensor, so that a token's codes
// would depend on the others of its batch.
#include "export/onnx/lowering.h"
#include "kernels/packing/packed_tensor.h"

namespace nibble {
namespace {

const OnnxAttributes kKeep = {{"keepdims", int64_t{1}}};

}  // namespace

bool OnnxLowering::reads_dynamic(const Node& node) const {
  const auto layer = artifact_.layers.find(node.parameter("weight"));
  return layer != artifact_.layers.end() && layer->second.input &&
         layer->second.input->dynamic;
}

OnnxLowering::TokenCodes OnnxLowering::token_codes(const std::string& x) {
  const TokenCodes result{x + ".token_codes", x + ".token_scale"};
  if (!made_.insert(result.codes).second) return result;
  const std::string base = x + ".token_";
  graph_.add("Abs", {x}, base + "abs");
  graph_.add("ReduceMax", {base + "abs", graph_.integers({-1})}, base + "highest", kKeep);
  graph_.add("Div", {base + "highest", graph_.number(127)}, base + "step");
  graph_.add("Equal", {base + "step", graph_.number(0)}, base + "is_zero");
  graph_.add("Where", {base + "is_zero", graph_.number(1), base + "step"}, result.scale);
  graph_.add("Div", {x, result.scale}, base + "ratio");
  graph_.add("Round", {base + "ratio"}, base + "rounded");  // half to even
  graph_.add("Clip", {base + "rounded", graph_.number(-127), graph_.number(127)},
             result.codes);
  return result;
}

// The weight's codes as MatMulInteger takes them, when they are int8 with one scale a row
// or a tensor and nothing else; their name, or "".
Result<std::string> OnnxLowering::integer_weight(const Node& node) {
  const std::string& tensor = node.parameter("weight");
  const auto packed = artifact_.packed.find(tensor);
  if (packed == artifact_.packed.end()) return std::string();
  const PackedTensor& p = packed->second;
  NIBBLE_ASSIGN_OR_RETURN(const OnnxBlocks blocks,
                          onnx_blocks(p.scheme, p.rows, p.cols, tensor));
  if (blocks.type != OnnxType::int8 || blocks.group != 0 ||
      p.scheme.offset != OffsetKind::none) {
    return std::string();
  }
  NIBBLE_ASSIGN_OR_RETURN(const CodedMatrix codes, unpack(p));
  NIBBLE_ASSIGN_OR_RETURN(
      OnnxWeight weight, make_onnx_weight(codes, Orientation::columns_first, tensor));
  const std::string base =
      graph_.has_initializer(tensor) ? tensor + "@" + node.name : tensor;
  graph_.add_initializer(base, weight.type, weight.shape, std::move(weight.codes));
  graph_.add_initializer(base + ".scale", weight.scale_shape, weight.scales);
  return base;
}

Result<std::string> OnnxLowering::dynamic_product(const Node& node) {
  const TokenCodes x = token_codes(names_.at(node.inputs.front()));
  NIBBLE_ASSIGN_OR_RETURN(const std::string integer, integer_weight(node));
  const auto part = [&](const char* name) { return inner(node, name); };
  if (integer.empty()) {
    NIBBLE_ASSIGN_OR_RETURN(const std::string floats,
                            weight(node, Orientation::columns_first));
    graph_.add("Mul", {x.codes, x.scale}, part("input"));
    return graph_.add("MatMul", {part("input"), floats}, part("product"));
  }
  const std::string codes = x.codes + ".int8";
  if (made_.insert(codes).second) {
    graph_.add("Cast", {x.codes}, codes, {{"to", static_cast<int64_t>(OnnxType::int8)}});
  }
  graph_.add("MatMulInteger", {codes, integer}, part("sum"));
  graph_.add("Cast", {part("sum")}, part("count"),
             {{"to", static_cast<int64_t>(OnnxType::float32)}});
  graph_.add("Mul", {part("count"), integer + ".scale"}, part("scaled"));
  return graph_.add("Mul", {part("scaled"), x.scale}, part("product"));
}

Status check_onnx_dynamic(const ActivationScheme& activation, const Node& node) {
  if (node.op == "linear" && to_string(activation.scheme) == "int8n/r@f32") {
    return ok_status();
  }
  return error(StatusCode::unsupported, "[onnx] the input of ", node.name,
               ": dynamic activations must be int8n/r@f32, of a linear layer; found ",
               to_string(activation.scheme), " of a ", node.op,
               "; calibrate static scales, or leave the activations float");
}

}  // namespace nibble
