#include "export/onnx/qoperator.h"

#include <algorithm>
#include <cstring>

#include "export/onnx/onnx_weight.h"
#include "kernels/packing/packed_tensor.h"
#include "kernels/program/layers.h"
#include "kernels/program/moves_codes.h"
#include "kernels/runtime/integer_node.h"

namespace nibble {
namespace {

const ActivationScheme* activation_of(const Artifact& artifact,
                                      const std::string& value) {
  const auto found = artifact.activations.find(value);
  return found == artifact.activations.end() ? nullptr : &found->second;
}

// Signed codes lie in uint8 so much higher.
int lift_of(const ActivationScheme& activation) {
  return element_info(activation.scheme.code).lowest < 0 ? 128 : 0;
}
int lowest_of(const ActivationScheme& a) { return code_lowest(a.scheme) + lift_of(a); }
int highest_of(const ActivationScheme& a) { return code_highest(a.scheme) + lift_of(a); }
bool fills_a_byte(const ActivationScheme& a) {
  return lowest_of(a) == 0 && highest_of(a) == 255;
}

// The value whose codes a node makes: its own, or that of the ReLU that alone reads it.
// "" where nothing quantizes it.
std::string target_of(const Artifact& artifact, const Node& node) {
  const std::string& value = node.outputs.front();
  if (artifact.activations.count(value)) return value;
  for (const ProgramValue& output : artifact.program.outputs) {
    if (output.name == value) return "";
  }
  const std::vector<const Node*> readers = artifact.program.consumers(value);
  if (readers.size() != 1 || readers[0]->op != "relu") return "";
  const std::string& relu = readers[0]->outputs.front();
  const ActivationScheme* activation = activation_of(artifact, relu);
  const bool clamps_at_zero =
      activation != nullptr && code_lowest(activation->scheme) >= activation->zero_point;
  return clamps_at_zero ? relu : "";
}

bool is_static_integer(const ActivationScheme* activation) {
  return activation != nullptr && !activation->dynamic &&
         element_info(activation->scheme.code).kind == ElementKind::integer &&
         element_info(activation->scheme.code).bits <= 8;
}

const ActivationScheme* own_input(const Artifact& artifact, const std::string& weight) {
  const auto layer = artifact.layers.find(weight);
  return layer == artifact.layers.end() || !layer->second.input ? nullptr
                                                                : &*layer->second.input;
}

// Why a quantized layer has no such operator; "" when it has.
std::string refusal(const Artifact& artifact, const Node& node, const Layer& layer) {
  const PackedTensor& packed = artifact.packed.at(layer.tensor);
  const QuantScheme& scheme = packed.scheme;
  const ActivationScheme* own = own_input(artifact, layer.tensor);
  const ActivationScheme* value = activation_of(artifact, node.inputs.front());
  if (node.op != "conv2d" && node.op != "linear") {
    return cat("QOperator has convolutions and matrices; found the op ", node.op);
  }
  if (!is_static_integer(value) || (own != nullptr && !is_static_integer(own))) {
    const ActivationScheme* found = is_static_integer(value) ? own : value;
    return cat("QOperator reads static integer codes; found inputs in ",
               found == nullptr ? std::string("floats") : to_string(found->scheme),
               found != nullptr && found->dynamic ? ", dynamic" : "");
  }
  const ElementInfo& code = element_info(scheme.code);
  const bool fits = code.kind == ElementKind::integer && code.lowest < 0 &&
                    scheme.offset == OffsetKind::none && scheme.scales.size() == 1 &&
                    !scheme.scales[0].shifted &&
                    (scheme.scales[0].block.kind == Block::Kind::row ||
                     scheme.scales[0].block.kind == Block::Kind::tensor);
  if (!fits) {
    return cat(
        "QOperator has symmetric integer weights with a scale a row or tensor; found ",
        to_string(scheme));
  }
  if (node.op == "conv2d" && target_of(artifact, node).empty()) {
    return cat("QLinearConv makes codes; found ", node.outputs.front(), " in floats");
  }
  return "";
}

template <class T>
std::string raw_bytes(const std::vector<T>& values) {
  std::string raw(values.size() * sizeof(T), '\0');
  if (!raw.empty()) std::memcpy(raw.data(), values.data(), raw.size());
  return raw;
}

}  // namespace

Status check_qoperator(const Artifact& artifact) {
  constexpr size_t kNamed = 8;
  std::vector<std::string> refused;
  int64_t layers = 0;
  for (const Node& node : artifact.program.nodes) {
    for (const Layer& layer : layers_of(node)) {
      if (!artifact.packed.count(layer.tensor)) continue;
      ++layers;
      const std::string reason = refusal(artifact, node, layer);
      if (!reason.empty()) refused.push_back(cat("[onnx] ", layer.tensor, ": ", reason));
    }
  }
  if (layers == 0) {
    return error(StatusCode::invalid_argument,
                 "[onnx] QOperator: a quantized layer was required; found none; quantize "
                 "with w8a8-static first, or leave --quant-format out");
  }
  if (refused.empty()) return ok_status();
  std::string list = cat("[onnx] QOperator cannot hold ", refused.size(), " of ", layers,
                         " quantized layers; leave --quant-format out:");
  for (size_t i = 0; i < std::min(refused.size(), kNamed); ++i)
    list += "\n  " + refused[i];
  if (refused.size() > kNamed) list += cat("\n  and ", refused.size() - kNamed, " more");
  return error(StatusCode::unsupported, list);
}

std::string QOperatorLowering::byte(int code) {
  const std::string name = cat("/uint8:", code);
  if (!graph_.has_initializer(name))
    graph_.add_initializer(name, OnnxType::uint8, {},
                           std::string(1, static_cast<char>(code)));
  return name;
}

QOperatorLowering::Codes QOperatorLowering::scheme_of(const ActivationScheme& activation,
                                                      const std::string& name) {
  return {name, graph_.number(activation.scale),
          byte(activation.zero_point + lift_of(activation))};
}

std::vector<std::string> QOperatorLowering::dimensions(const std::string& value) const {
  std::vector<std::string> result;
  for (const int64_t size : shapes_.at(value))
    result.push_back(size == kUnknownSize ? "batch" : std::to_string(size));
  return result;
}

std::string QOperatorLowering::wide(const ActivationScheme& activation,
                                    const std::string& codes) {
  return fills_a_byte(activation) ? codes : codes + ".wide";
}

void QOperatorLowering::narrow(const ActivationScheme& activation,
                               const std::string& codes) {
  if (fills_a_byte(activation)) return;
  graph_.add("Clip",
             {wide(activation, codes), byte(lowest_of(activation)),
              byte(highest_of(activation))},
             codes);
}

QOperatorLowering::Codes QOperatorLowering::quantized(const ActivationScheme& activation,
                                                      const std::string& x,
                                                      const std::string& codes) {
  const Codes result = scheme_of(activation, codes);
  graph_.add("QuantizeLinear", {x, result.scale, result.zero}, wide(activation, codes));
  narrow(activation, codes);
  return result;
}

void QOperatorLowering::quantize(const std::string& value, const std::string& x) {
  codes_[value] = quantized(artifact_.activations.at(value), x, value + ".codes");
}

std::string QOperatorLowering::floats(const std::string& value, const std::string& name) {
  const Codes& codes = codes_.at(value);
  if (made_.insert(name).second)
    graph_.add("DequantizeLinear", {codes.name, codes.scale, codes.zero}, name);
  return name;
}

// A layer with an input scheme of its own reads the value's numbers in other codes.
QOperatorLowering::Codes QOperatorLowering::input(const Node& node) {
  const Codes& codes = codes_.at(node.inputs.front());
  const ActivationScheme* own = own_input(artifact_, node.parameter("weight"));
  if (own == nullptr) return codes;
  const std::string base = node.name + "/input";
  graph_.add("DequantizeLinear", {codes.name, codes.scale, codes.zero}, base);
  return quantized(*own, base, base + ".codes");
}

Status QOperatorLowering::lower_layer(const Node& node, const std::string& value,
                                      const std::string& output) {
  const std::string& tensor = node.parameter("weight");
  const PackedTensor& packed = artifact_.packed.at(tensor);
  NIBBLE_ASSIGN_OR_RETURN(const CodedMatrix q, unpack(packed));
  const std::vector<float>& scales = q.scales.front().values;
  const bool is_conv = node.op == "conv2d";
  const std::vector<int64_t>& read = shapes_.at(node.inputs.front());
  if (!is_conv && read.size() != 2) {
    return error(StatusCode::unsupported, "[onnx] ", tensor,
                 ": QGemm reads a matrix; found ", shape_text(read),
                 "; leave --quant-format out");
  }
  const std::string& bias_name = node.parameter("bias");
  const bool by_columns =
      !is_conv && bias_name.empty() && !value.empty();  // QLinearMatMul
  // Two layers may share a tensor; each has it in the order that it reads.
  const std::string base =
      graph_.has_initializer(tensor) ? tensor + "@" + node.name : tensor;
  std::string raw(q.codes.begin(), q.codes.end());  // int8, whatever fewer bits they need
  std::vector<int64_t> shape =
      is_conv ? packed.shape : std::vector<int64_t>{q.rows, q.cols};
  if (by_columns) {
    shape = {q.cols, q.rows};
    for (int64_t r = 0; r < q.rows; ++r) {
      for (int64_t c = 0; c < q.cols; ++c) {
        raw[static_cast<size_t>(c * q.rows + r)] =
            static_cast<char>(q.codes[static_cast<size_t>(r * q.cols + c)]);
      }
    }
  }
  graph_.add_initializer(base, OnnxType::int8, shape, std::move(raw));
  const bool per_row = q.scheme.scales.front().block.kind == Block::Kind::row;
  const std::vector<int64_t> scale_shape =
      per_row ? std::vector<int64_t>{q.rows} : std::vector<int64_t>{};
  graph_.add_initializer(base + ".scale", scale_shape, scales);
  const std::string zeros = per_row ? cat("/int8:0[", q.rows, "]") : "/int8:0";
  if (!graph_.has_initializer(zeros)) {
    graph_.add_initializer(zeros, OnnxType::int8, scale_shape,
                           std::string(per_row ? static_cast<size_t>(q.rows) : 1, '\0'));
  }

  const Codes x = input(node);
  std::vector<std::string> inputs = {x.name, x.scale,         x.zero,
                                     base,   base + ".scale", zeros};
  std::string bias;
  if (!bias_name.empty()) {
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> values,
                            to_float(artifact_.tensors.at(bias_name)));
    const ActivationScheme* own = own_input(artifact_, tensor);
    const float s_x =
        own != nullptr ? own->scale : artifact_.activations.at(node.inputs.front()).scale;
    std::vector<int32_t> codes;
    for (size_t c = 0; c < values.size(); ++c)
      codes.push_back(integer_bias(values[c], s_x, scales[scales.size() == 1 ? 0 : c]));
    bias = graph_.has_initializer(bias_name) ? bias_name + "@" + node.name : bias_name;
    graph_.add_initializer(bias, OnnxType::int32, {static_cast<int64_t>(codes.size())},
                           raw_bytes(codes));
  }
  Codes y;
  if (!value.empty()) {
    const ActivationScheme& made = artifact_.activations.at(value);
    y = scheme_of(made, wide(made, value + ".codes"));
  }
  if (is_conv) {
    inputs.insert(inputs.end(), {y.scale, y.zero});
    if (!bias.empty()) inputs.push_back(bias);
    const std::vector<int64_t> padding = node.integers("padding", {0, 0});
    graph_.add(
        "QLinearConv", inputs, y.name,
        {{"strides", node.integers("stride", {1, 1})},
         {"pads", std::vector<int64_t>{padding[0], padding[1], padding[0], padding[1]}},
         {"group", node.integer("groups", 1)}});
    return ok_status();
  }
  if (by_columns) {
    inputs.insert(inputs.end(), {y.scale, y.zero});
    graph_.add("QLinearMatMul", inputs, y.name);
    return ok_status();
  }
  const std::vector<std::string> rows = dimensions(node.outputs.front());
  const OnnxAttributes attributes = {
      {"alpha", 1.0f}, {"transA", int64_t{0}}, {"transB", int64_t{1}}};
  if (!bias.empty()) inputs.push_back(bias);  // without one nothing follows: by_columns
  if (value.empty()) {
    graph_.add_contrib("QGemm", inputs, output, rows, attributes);
  } else {
    inputs.insert(inputs.end(), {y.scale, y.zero});
    graph_.add_contrib("QGemm", inputs, y.name, rows, attributes, OnnxType::uint8);
  }
  return ok_status();
}

// Ops whose value has the codes and the scale of their input.
Result<bool> QOperatorLowering::lower_moving(const Node& node) {
  const std::string& value = node.outputs.front();
  const ActivationScheme* from = activation_of(artifact_, node.inputs.front());
  const ActivationScheme* to = activation_of(artifact_, value);
  if (from == nullptr || to == nullptr || !(*from == *to)) return false;
  const Codes x = codes_.at(node.inputs.front());
  const std::string output = value + ".codes";
  if (node.op == "flatten") {
    graph_.add("Flatten", {x.name}, output, {{"axis", int64_t{1}}});
  } else if (node.op == "max_pool") {
    const std::vector<int64_t> padding = node.integers("padding", {0, 0});
    graph_.add(
        "MaxPool", {x.name}, output,
        {{"kernel_shape", node.integers("kernel", {1, 1})},
         {"strides", node.integers("stride", {1, 1})},
         {"pads", std::vector<int64_t>{padding[0], padding[1], padding[0], padding[1]}}});
  } else {
    std::string strided = x.name;
    if (const int64_t stride = node.integer("stride", 1); stride != 1) {
      constexpr int64_t kEnd = INT64_MAX;  // Slice clamps it to the dimension
      strided =
          graph_.add("Slice",
                     {x.name, graph_.integers({0, 0}), graph_.integers({kEnd, kEnd}),
                      graph_.integers({2, 3}), graph_.integers({stride, stride})},
                     node.name + "/strided");
    }
    graph_.add("Pad",
               {strided,
                graph_.integers({0, node.integer("pad_before", 0), 0, 0, 0,
                                 node.integer("pad_after", 0), 0, 0}),
                x.zero},
               output);
  }
  codes_[value] = {output, x.scale, x.zero};
  return true;
}

bool QOperatorLowering::lower_values(const Node& node, const std::string& value) {
  const ActivationScheme& made = artifact_.activations.at(value);
  const Codes y = scheme_of(made, wide(made, value + ".codes"));
  const std::vector<std::string> shape = dimensions(value);
  std::vector<std::string> inputs;
  for (const std::string& read : node.inputs) {
    const Codes& x = codes_.at(read);
    inputs.insert(inputs.end(), {x.name, x.scale, x.zero});
  }
  if (node.op == "concat") {  // y's come first
    inputs.insert(inputs.begin(), {y.scale, y.zero});
    graph_.add_contrib("QLinearConcat", inputs, y.name, shape, {{"axis", int64_t{1}}},
                       OnnxType::uint8);
    return true;
  }
  inputs.insert(inputs.end(), {y.scale, y.zero});
  if (node.op == "add") {
    graph_.add_contrib("QLinearAdd", inputs, y.name, shape, {}, OnnxType::uint8);
  } else if (node.op == "leaky_relu") {
    graph_.add_contrib("QLinearLeakyRelu", inputs, y.name, shape,
                       {{"alpha", static_cast<float>(node.number("slope", 0.01))}},
                       OnnxType::uint8);
  } else if (node.op == "global_average_pool") {
    // ONNX keeps the averaged axes as 1.
    std::vector<std::string> kept = shape;
    kept.insert(kept.end(), {"1", "1"});
    graph_.add_contrib("QLinearGlobalAveragePool", inputs, node.name + "/mean.codes",
                       kept, {{"channels_last", int64_t{0}}}, OnnxType::uint8);
    graph_.add("Flatten", {node.name + "/mean.codes"}, y.name, {{"axis", int64_t{1}}});
  } else {
    return false;
  }
  return true;
}

Result<bool> QOperatorLowering::lower(const Node& node, const std::string& output) {
  if (fused_.count(node.name)) return true;
  for (const std::string& value : node.inputs) {
    if (!has_codes(value)) return false;
  }
  const std::string value = target_of(artifact_, node);
  const bool is_layer = (node.op == "conv2d" || node.op == "linear") &&
                        artifact_.packed.count(node.parameter("weight"));
  if (is_layer) {
    NIBBLE_RETURN_IF_ERROR(lower_layer(node, value, output));
    if (value.empty()) return true;
  } else if (value.empty()) {
    return false;
  } else if (moves_codes(node)) {
    return lower_moving(node);
  } else if (!lower_values(node, value)) {
    return false;
  }
  const ActivationScheme& made = artifact_.activations.at(value);
  codes_[value] = scheme_of(made, value + ".codes");
  narrow(made, value + ".codes");
  if (value != node.outputs.front())
    fused_.insert(artifact_.program.producer(value)->name);
  return true;
}

}  // namespace nibble
