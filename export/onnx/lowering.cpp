#include "export/onnx/lowering.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <set>

#include "export/onnx/matmul_nbits.h"
#include "kernels/packing/packed_tensor.h"
#include "kernels/program/layers.h"
#include "kernels/program/never_negative.h"
#include "kernels/program/rope_attributes.h"
#include "kernels/runtime/integer_node.h"

namespace nibble {
namespace {

constexpr const char* kPositionIds = "position_ids";

std::string raw_bytes(const Bytes& bytes) { return std::string(bytes.text()); }

// A convolution's or matrix's codes as [rows, cols] are enough for one scale per row or
// tensor; anything else is dequantized as a matrix and then given its shape.
bool keeps_shape(const OnnxWeight& weight) {
  return !weight.blocked &&
         (weight.scale_shape.empty() || weight.scale_shape[0] == weight.shape[0]);
}

bool integer_codes(const QuantScheme& scheme) {
  return scheme.offset == OffsetKind::none && scheme.scales.size() == 1 &&
         element_info(scheme.code).kind == ElementKind::integer &&
         (scheme.scales[0].block.kind == Block::Kind::row ||
          scheme.scales[0].block.kind == Block::Kind::tensor);
}

}  // namespace

const std::vector<OnnxOp>& all_onnx_ops() {
  static const std::vector<OnnxOp> ops = {
#define NIBBLE_ONNX_OP(op) {#op, lower_##op},
#include "export/onnx/onnx_ops.inc"
#undef NIBBLE_ONNX_OP
  };
  return ops;
}

std::string OnnxLowering::output(const Node& node) const {
  const std::string& value = node.outputs.front();
  if (artifact_.activations.count(value)) return value + ".raw";
  return names_.at(value);
}

std::string OnnxLowering::fake_quantize(const std::string& x,
                                        const ActivationScheme& activation,
                                        const std::string& codes,
                                        const std::string& output, bool from_zero) {
  // check_onnx_activation has passed, so the type exists.
  OnnxType type = onnx_code_type(activation.scheme.code, x).value();
  const std::string scale = graph_.number(activation.scale);
  if (type == OnnxType::e4m3 ||
      type == OnnxType::e5m2) {  // rounds and saturates by itself
    const std::string zero = cat("/", element_info(activation.scheme.code).text, ":0");
    if (!graph_.has_initializer(zero)) {
      graph_.add_initializer(zero, type, {}, std::string(1, '\0'));
    }
    graph_.add("QuantizeLinear", {x, scale, zero}, codes);
    return graph_.add("DequantizeLinear", {codes, scale, zero}, output);
  }
  if (options_.tensorrt) type = OnnxType::int8;  // check_tensorrt: all codes fit
  const bool is_signed = type == OnnxType::int8 || type == OnnxType::int4;
  const int bits = static_cast<int>(onnx_type_bits(type));
  const int type_lowest = is_signed ? -(1 << (bits - 1)) : 0;
  const int type_highest = is_signed ? (1 << (bits - 1)) - 1 : (1 << bits) - 1;
  const int lowest = code_lowest(activation.scheme),
            highest = code_highest(activation.scheme);

  std::string source = x;
  // Where nothing is below 0, a signed type's lower end does not matter.
  const bool low_fits =
      lowest == type_lowest || (from_zero && lowest == activation.zero_point);
  if (!low_fits || highest != type_highest) {
    // A narrower range than the type's: clamp the real number. A bound is a code times
    // the scale, so it rounds to that code again.
    const float low =
        static_cast<float>(lowest - activation.zero_point) * activation.scale;
    const float high =
        static_cast<float>(highest - activation.zero_point) * activation.scale;
    source =
        graph_.add("Clip", {x, graph_.number(low), graph_.number(high)}, codes + "/clip");
  }
  const std::string zero_point =
      cat("/", is_signed ? "int" : "uint", bits, ":", activation.zero_point);
  if (!graph_.has_initializer(zero_point)) {
    const auto byte = static_cast<char>(bits == 4 ? activation.zero_point & 0xf
                                                  : activation.zero_point);
    graph_.add_initializer(zero_point, type, {}, std::string(1, byte));
  }
  graph_.add("QuantizeLinear", {source, scale, zero_point}, codes);
  return graph_.add("DequantizeLinear", {codes, scale, zero_point}, output);
}

void OnnxLowering::quantize_value(const std::string& value) {
  const auto found = artifact_.activations.find(value);
  if (found == artifact_.activations.end()) return;
  const bool is_input = artifact_.program.producer(value) == nullptr;
  const std::string raw = is_input ? names_.at(value) : value + ".raw";
  if (is_input) names_[value] = value + ".dequantized";
  if (codes_ != nullptr) return codes_->quantize(value, raw);
  fake_quantize(raw, found->second, value + ".codes", names_.at(value),
                never_negative(artifact_.program, value));
}

std::string OnnxLowering::quantized_as(const std::string& value, const std::string& x,
                                       const std::string& output) {
  const auto found = artifact_.activations.find(value);
  if (found == artifact_.activations.end()) return x;
  return fake_quantize(x, found->second, output + ".codes", output,
                       never_negative(artifact_.program, value));
}

std::string OnnxLowering::read(const std::string& value) {
  const std::string& name = names_.at(value);
  const bool in_codes = codes_ != nullptr && codes_->has_codes(value);
  return in_codes ? codes_->floats(value, name) : name;
}

std::string OnnxLowering::input(const Node& node, size_t i) {
  const std::string name = read(node.inputs[i]);
  // A tied head's scheme stands by the tensor's name; the embedding reads ids.
  if (i != 0 || node.op == "embedding" || node.op == "position_embedding") return name;
  const char* role = node.op == "lstm" ? "weight_ih" : "weight";
  const auto layer = artifact_.layers.find(node.parameter(role));
  if (layer == artifact_.layers.end() || !layer->second.input) return name;
  return fake_quantize(name, *layer->second.input, inner(node, "input.codes"),
                       inner(node, "input"),
                       never_negative(artifact_.program, node.inputs[0]));
}

std::optional<float> OnnxLowering::input_scale(const Node& node) const {
  const ActivationScheme* activation = nullptr;
  const auto value = artifact_.activations.find(node.inputs.front());
  if (value != artifact_.activations.end()) activation = &value->second;
  const auto layer = artifact_.layers.find(node.parameter("weight"));
  if (layer != artifact_.layers.end() && layer->second.input)
    activation = &*layer->second.input;
  if (activation == nullptr || activation->dynamic || activation->zero_point != 0 ||
      element_info(activation->scheme.code).kind != ElementKind::integer) {
    return {};
  }
  return activation->scale;
}

Result<std::string> OnnxLowering::float_parameter(const std::string& name) {
  const auto found = artifact_.tensors.find(name);
  if (found == artifact_.tensors.end()) {
    return error(StatusCode::not_found, "[onnx] ", name,
                 ": every parameter must be in the artifact; found none of this name");
  }
  const Tensor& tensor = found->second;
  const bool narrow = tensor.dtype == DType::f16 || tensor.dtype == DType::bf16;
  if (!graph_.has_initializer(name)) {
    if (narrow) {
      const OnnxType type =
          tensor.dtype == DType::f16 ? OnnxType::float16 : OnnxType::bfloat16;
      graph_.add_initializer(name, type, tensor.shape, raw_bytes(tensor.bytes));
      graph_.add("Cast", {name}, name + ".f32",
                 {{"to", static_cast<int64_t>(OnnxType::float32)}});
    } else if (tensor.dtype == DType::f32) {
      graph_.add_initializer(name, OnnxType::float32, tensor.shape,
                             raw_bytes(tensor.bytes));
    } else {
      NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> values, to_float(tensor));
      graph_.add_initializer(name, tensor.shape, values);
    }
  }
  return narrow ? name + ".f32" : name;
}

Result<std::string> OnnxLowering::weight(const Node& node, Orientation orientation,
                                         const std::string& role) {
  const std::string& tensor = node.parameter(role);
  const bool columns_first = orientation == Orientation::columns_first;
  const auto packed = artifact_.packed.find(tensor);
  if (packed == artifact_.packed.end()) {
    NIBBLE_ASSIGN_OR_RETURN(std::string value, float_parameter(tensor));
    if (!columns_first) return value;
    const std::string transposed = tensor + ".transposed";
    if (made_.insert(transposed).second) {
      graph_.add("Transpose", {value}, transposed,
                 {{"perm", std::vector<int64_t>{1, 0}}});
    }
    return transposed;
  }
  // A tensor that a Gather and a MatMul share is stored in both orders: a MatMul's
  // weights must lie [K, N] to run as integers.
  std::string& dequantized = weights_[{tensor, orientation}];
  if (!dequantized.empty()) return dequantized;
  const std::string base =
      graph_.has_initializer(tensor) ? tensor + "@" + node.name : tensor;
  dequantized = base + ".dequantized";

  NIBBLE_ASSIGN_OR_RETURN(const CodedMatrix codes, unpack(packed->second));
  NIBBLE_ASSIGN_OR_RETURN(OnnxWeight weight,
                          make_onnx_weight(codes, orientation, tensor, options_.opset));
  const std::vector<int64_t>& shape = packed->second.shape;
  const bool reshaped = shape.size() != 2 && !keeps_shape(weight);
  graph_.add_initializer(base, weight.type,
                         shape.size() == 2 || reshaped ? weight.shape : shape,
                         std::move(weight.codes));
  std::string scale = base + ".scale";
  if (weight.scale_type == OnnxType::float32) {
    graph_.add_initializer(scale, weight.scale_shape, weight.scales);
  } else {
    graph_.add_initializer(scale, weight.scale_type, weight.scale_shape,
                           std::move(weight.scale_codes));
  }
  if (weight.outer_scale != 0) {
    scale = graph_.add("DequantizeLinear", {scale, graph_.number(weight.outer_scale)},
                       scale + ".dequantized");
  }
  std::vector<std::string> inputs = {base, scale};
  if (!weight.zero_points.empty()) {
    graph_.add_initializer(base + ".zero_point", weight.type, weight.scale_shape,
                           std::move(weight.zero_points));
    inputs.push_back(base + ".zero_point");
  }
  graph_.add("DequantizeLinear", inputs, reshaped ? base + ".matrix" : dequantized,
             weight.attributes);
  if (reshaped)
    graph_.add("Reshape", {base + ".matrix", graph_.integers(shape)}, dequantized);
  return dequantized;
}

std::vector<std::string> OnnxLowering::rows_of(const std::string& value) const {
  const std::vector<int64_t>& shape = shapes_.at(value);
  std::vector<std::string> rows;
  for (size_t i = 0; i + 1 < shape.size(); ++i) {
    rows.push_back(shape[i] != kUnknownSize ? std::to_string(shape[i])
                   : i == 0                 ? "batch"
                                            : "sequence");
  }
  return rows;
}

// Act-order: the codes' columns are the weight's in another order, and so must x's be.
Result<std::string> OnnxLowering::in_code_order(const std::string& tensor,
                                                const std::string& x) {
  const auto layer = artifact_.layers.find(tensor);
  if (layer == artifact_.layers.end() || layer->second.extras.permutation.empty())
    return x;
  const std::string& name = layer->second.extras.permutation;
  const auto order = artifact_.tensors.find(name);
  if (order == artifact_.tensors.end()) {
    return error(StatusCode::not_found, "[onnx] ", name, ": the permutation of ", tensor,
                 " must be in the artifact; found none of this name");
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<int32_t> columns, to_int32(order->second));
  const std::string indices = "/" + name;
  if (!graph_.has_initializer(indices)) {
    std::string raw(columns.size() * sizeof(int32_t), '\0');
    if (!raw.empty()) std::memcpy(raw.data(), columns.data(), raw.size());
    graph_.add_initializer(indices, OnnxType::int32,
                           {static_cast<int64_t>(columns.size())}, std::move(raw));
  }
  const std::string ordered = x + "/" + name;
  if (!made_.insert(ordered).second) return ordered;
  return graph_.add("Gather", {x, indices}, ordered, {{"axis", int64_t{-1}}});
}

Result<std::string> OnnxLowering::product(const Node& node, const std::string& role,
                                          const std::string& x,
                                          const std::vector<std::string>& rows,
                                          const std::string& output) {
  const std::string& tensor = node.parameter(role);
  NIBBLE_ASSIGN_OR_RETURN(const std::string ordered, in_code_order(tensor, x));
  const auto packed = artifact_.packed.find(tensor);
  if (!options_.matmul_nbits || packed == artifact_.packed.end()) {
    NIBBLE_ASSIGN_OR_RETURN(const std::string floats,
                            weight(node, Orientation::columns_first, role));
    return graph_.add("MatMul", {ordered, floats}, output);
  }
  const PackedTensor& p = packed->second;
  NIBBLE_ASSIGN_OR_RETURN(const NBitsForm form,
                          nbits_form(p.scheme, p.rows, p.cols, tensor));
  std::string& base = nbits_[tensor];
  if (base.empty()) {
    base = graph_.has_initializer(tensor) ? tensor + "@" + node.name : tensor;
    NIBBLE_ASSIGN_OR_RETURN(const CodedMatrix codes, unpack(p));
    NIBBLE_ASSIGN_OR_RETURN(NBitsWeight weight, make_nbits_weight(codes, tensor));
    graph_.add_initializer(base, OnnxType::uint8,
                           {p.rows, weight.blocks, form.block_size * form.bits / 8},
                           std::move(weight.codes));
    graph_.add_initializer(base + ".scale", {p.rows, weight.blocks}, weight.scales);
    if (form.has_zero_points) {
      graph_.add_initializer(base + ".zero_point", OnnxType::uint8,
                             {p.rows, (weight.blocks * form.bits + 7) / 8},
                             std::move(weight.zero_points));
    }
  }
  std::vector<std::string> inputs = {ordered, base, base + ".scale"};
  if (form.has_zero_points) inputs.push_back(base + ".zero_point");
  std::vector<std::string> shape = rows;
  shape.push_back(std::to_string(p.rows));
  return graph_.add_contrib("MatMulNBits", inputs, output, shape,
                            {{"K", p.cols},
                             {"N", p.rows},
                             {"bits", form.bits},
                             {"block_size", form.block_size},
                             {"accuracy_level", options_.accuracy_level}});
}

Result<std::string> OnnxLowering::bias(const Node& node) {
  const std::string& name = node.parameter("bias");
  const auto packed = artifact_.packed.find(node.parameter("weight"));
  const std::optional<float> s_x = input_scale(node);
  if (!s_x || options_.tensorrt || packed == artifact_.packed.end() ||
      !integer_codes(packed->second.scheme) || artifact_.program.is_language_model()) {
    return float_parameter(name);
  }
  const std::string base = graph_.has_initializer(name) ? name + "@" + node.name : name;
  const auto tensor = artifact_.tensors.find(name);
  if (tensor == artifact_.tensors.end())
    return float_parameter(name);  // the same not_found
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> values, to_float(tensor->second));
  NIBBLE_ASSIGN_OR_RETURN(const CodedMatrix q, unpack(packed->second));
  const std::vector<float>& s_w = q.scales.front().values;
  std::string raw(values.size() * sizeof(int32_t), '\0');
  for (size_t c = 0; c < values.size(); ++c) {
    const int32_t code = integer_bias(values[c], *s_x, s_w[s_w.size() == 1 ? 0 : c]);
    std::memcpy(raw.data() + c * sizeof(code), &code, sizeof(code));
  }
  std::vector<float> scales;
  for (float s : s_w) scales.push_back(*s_x * s);
  const bool per_tensor = scales.size() == 1;
  graph_.add_initializer(base, OnnxType::int32, {static_cast<int64_t>(values.size())},
                         std::move(raw));
  graph_.add_initializer(base + ".scale",
                         per_tensor
                             ? std::vector<int64_t>{}
                             : std::vector<int64_t>{static_cast<int64_t>(scales.size())},
                         scales);
  return graph_.add("DequantizeLinear", {base, base + ".scale"}, base + ".dequantized",
                    per_tensor ? OnnxAttributes{} : OnnxAttributes{{"axis", int64_t{0}}});
}

std::string OnnxLowering::positions() {
  const std::string name = "/positions";
  if (!made_.insert(name).second) return name;
  const std::string scalar = graph_.integers({0});  // Squeeze's axis
  const auto length = [&](const std::string& of, int64_t axis,
                          const std::string& output) {
    graph_.add("Shape", {of}, output + "/shape", {{"start", axis}, {"end", axis + 1}});
    return graph_.add("Squeeze", {output + "/shape", scalar}, output);
  };
  const std::string sequence = length("input_ids", 1, "/sequence_length");
  const std::string past = artifact_.program.states.empty()
                               ? graph_.integer(0)
                               : length("past_key_values.0.key", 2, "/past_length");
  graph_.add("Add", {past, sequence}, "/total_length");
  return graph_.add("Range", {past, "/total_length", graph_.integer(1)}, name);
}

std::string OnnxLowering::causal_mask(int64_t window) {
  const std::string base = window > 0 ? cat("/window:", window) : "";
  const std::string name = base + "/causal_mask";
  const std::string queries = positions();
  if (!made_.insert(name).second) return name;
  if (made_.insert("/visible").second) {
    graph_.add("Range", {graph_.integer(0), "/total_length", graph_.integer(1)},
               "/key_positions");
    graph_.add("Unsqueeze", {queries, graph_.integers({1})}, "/query_positions");
    graph_.add("LessOrEqual", {"/key_positions", "/query_positions"}, "/not_after");
    graph_.add("And", {"/not_after", key_is_token()}, "/visible");
  }
  if (window > 0) {
    graph_.add("Sub", {"/query_positions", graph_.integer(window)}, base + "/hidden");
    graph_.add("Greater", {"/key_positions", base + "/hidden"}, base + "/near");
    graph_.add("And", {"/visible", base + "/near"}, base + "/visible");
  }
  return graph_.add("Where",
                    {base + "/visible", graph_.number(0),
                     graph_.number(std::numeric_limits<float>::lowest())},
                    name);
}

OnnxLowering::Rotation OnnxLowering::rotation(const Node& rope) {
  const RopeShape shape = rope_shape(rope);
  std::string base = cat("/rope:", shape.theta, ":", shape.head_dim);
  if (!shape.scaling.empty()) {
    base += cat(":", shape.scaling, ":", shape.factor, ":", shape.low_frequency_factor,
                ":", shape.high_frequency_factor, ":", shape.original_context);
  }
  const Rotation result{base + "/cos", base + "/sin"};
  if (!made_.insert(base).second) return result;
  const std::vector<double> frequencies = rope_frequencies(shape);
  const int64_t half = shape.head_dim / 2, context = artifact_.program.context_length;
  std::vector<float> cosines, sines;
  cosines.reserve(static_cast<size_t>(context * half));
  sines.reserve(static_cast<size_t>(context * half));
  for (int64_t position = 0; position < context; ++position) {
    for (int64_t i = 0; i < half; ++i) {
      const double angle =
          static_cast<double>(position) * frequencies[static_cast<size_t>(i)];
      cosines.push_back(static_cast<float>(std::cos(angle)));
      sines.push_back(static_cast<float>(std::sin(angle)));
    }
  }
  graph_.add_initializer(result.cos + "_table", {context, half}, cosines);
  graph_.add_initializer(result.sin + "_table", {context, half}, sines);
  for (const std::string& name : {result.cos, result.sin}) {
    graph_.add("Gather", {name + "_table", kPositionIds}, name, {{"axis", int64_t{0}}});
  }
  return result;
}

OnnxLowering::Past OnnxLowering::past(const std::string& state) const {
  for (size_t i = 0; i < artifact_.program.states.size(); ++i) {
    if (artifact_.program.states[i].name != state) continue;
    return {cat("past_key_values.", i, ".key"), cat("past_key_values.", i, ".value"),
            cat("present.", i, ".key"), cat("present.", i, ".value")};
  }
  return {};
}

Status OnnxLowering::add_inputs() {
  const Program& program = artifact_.program;
  if (program.is_encoder()) {
    // The executor batches without padding; here a mask says which tokens are there.
    add_encoder_inputs();
  } else if (program.is_language_model()) {
    names_[program.inputs.front().name] = "input_ids";
    names_[program.outputs.front().name] = "logits";
    graph_.add_input("input_ids", OnnxType::int64, {"batch", "sequence"});
    graph_.add_input("attention_mask", OnnxType::int64,
                     {"batch", program.states.empty() ? "sequence" : "total_sequence"});
    const bool has_positions =
        std::any_of(program.nodes.begin(), program.nodes.end(),
                    [](const Node& node) { return node.op == "rope"; });
    if (has_positions) {
      graph_.add_input(kPositionIds, OnnxType::int64, {"batch", "sequence"});
    }
    for (size_t i = 0; i < program.states.size(); ++i) {
      const ProgramState& state = program.states[i];
      for (const char* part : {"key", "value"}) {
        graph_.add_input(cat("past_key_values.", i, ".", part), OnnxType::float32,
                         {"batch", std::to_string(state.kv_heads), "past_sequence",
                          std::to_string(state.head_dim)});
      }
    }
  } else {
    for (const ProgramValue& input : program.inputs) {
      const OnnxType type = input.dtype == DType::i64   ? OnnxType::int64
                            : input.dtype == DType::i32 ? OnnxType::int32
                                                        : OnnxType::float32;
      graph_.add_input(input.name, type, input.shape);
    }
  }
  for (const ProgramValue& input : program.inputs) {
    names_.emplace(input.name, input.name);
    quantize_value(input.name);
  }
  return ok_status();
}

Status OnnxLowering::add_outputs() {
  const Program& program = artifact_.program;
  if (!program.is_language_model() || program.is_encoder()) {
    for (const ProgramValue& output : program.outputs) {
      graph_.add_output(read(output.name), OnnxType::float32, output.shape);
    }
    return ok_status();
  }
  graph_.add_output("logits", OnnxType::float32,
                    {"batch", "sequence", std::to_string(program.vocabulary)});
  for (size_t i = 0; i < program.states.size(); ++i) {
    const ProgramState& state = program.states[i];
    for (const char* part : {"key", "value"}) {
      graph_.add_output(cat("present.", i, ".", part), OnnxType::float32,
                        {"batch", std::to_string(state.kv_heads), "total_sequence",
                         std::to_string(state.head_dim)});
    }
  }
  return ok_status();
}

Status OnnxLowering::run() {
  NIBBLE_RETURN_IF_ERROR(can_lower(artifact_, options_));
  Shapes given;
  for (const auto& [name, tensor] : artifact_.tensors) given[name] = tensor.shape;
  for (const auto& [name, packed] : artifact_.packed) given[name] = packed.shape;
  NIBBLE_RETURN_IF_ERROR(check_shapes(artifact_.program, given, &shapes_));
  if (options_.qoperator)
    codes_ = std::make_unique<QOperatorLowering>(artifact_, graph_, shapes_);
  NIBBLE_RETURN_IF_ERROR(add_inputs());
  for (const Node& node : artifact_.program.nodes) {
    for (const std::string& value : node.outputs) names_.emplace(value, value);
    if (codes_ != nullptr) {
      NIBBLE_ASSIGN_OR_RETURN(const bool lowered, codes_->lower(node, output(node)));
      if (lowered) continue;
    }
    for (const OnnxOp& row : all_onnx_ops()) {
      if (node.op == row.op) NIBBLE_RETURN_IF_ERROR(row.lower(*this, node));
    }
    for (const std::string& value : node.outputs) quantize_value(value);
  }
  return add_outputs();
}

namespace {

Status can_lower_layer(const Artifact& artifact, const Node& node,
                       const std::string& tensor, const PackedTensor& packed,
                       const LoweringOptions& options) {
  NIBBLE_RETURN_IF_ERROR(
      onnx_blocks(packed.scheme, packed.rows, packed.cols, tensor).status());
  const auto layer = artifact.layers.find(tensor);
  if (layer == artifact.layers.end()) return ok_status();
  if (layer->second.input && node.op != "embedding") {
    const ActivationScheme& input = *layer->second.input;
    NIBBLE_RETURN_IF_ERROR(
        input.dynamic ? check_onnx_dynamic(input, node)
                      : check_onnx_activation(input, cat("the input of ", node.name),
                                              options.tensorrt));
  }
  const LayerExtras& extras = layer->second.extras;
  const bool reads_dynamic = layer->second.input && layer->second.input->dynamic;
  if (!extras.permutation.empty() && (node.op == "embedding" || node.op == "conv2d" ||
                                      node.op == "position_embedding" || reads_dynamic)) {
    return error(StatusCode::unsupported, "[onnx] ", tensor,
                 ": its columns must be in their own order, as those of a ",
                 reads_dynamic ? "layer with dynamic activations" : node.op,
                 "; found a permutation; quantize without act-order");
  }
  if (extras.low_rank_a.empty() && extras.low_rank_b.empty()) return ok_status();
  return error(StatusCode::unsupported, "[onnx] ", tensor,
               ": a layer must be its codes and scales alone; found a low-rank part ",
               extras.low_rank_a, "; merge it, or export to the nibble format");
}

// All layers that MatMulNBits cannot hold, not the first alone: one setting may serve
// all.
Status can_matmul_nbits(const Artifact& artifact) {
  constexpr size_t kNamed = 8;
  std::vector<std::string> refused;
  std::set<std::string> seen;
  for (const Node& node : artifact.program.nodes) {
    if (node.op != "linear" && node.op != "moe") continue;
    for (const Layer& layer : layers_of(node)) {
      const auto packed = artifact.packed.find(layer.tensor);
      if (packed == artifact.packed.end() || !seen.insert(layer.tensor).second) continue;
      const PackedTensor& p = packed->second;
      const Status held = nbits_form(p.scheme, p.rows, p.cols, layer.tensor).status();
      const auto scheme = artifact.layers.find(layer.tensor);
      const auto value = artifact.activations.find(node.inputs.front());
      const ActivationScheme* input =
          scheme != artifact.layers.end() && scheme->second.input ? &*scheme->second.input
          : value != artifact.activations.end()                   ? &value->second
                                                                  : nullptr;
      if (!held.ok()) {
        refused.push_back(held.message());
      } else if (input != nullptr) {
        refused.push_back(cat("[onnx] ", layer.tensor,
                              ": MatMulNBits reads floats; found inputs in ",
                              to_string(input->scheme), "; leave --quant-format out"));
      }
    }
  }
  if (seen.empty()) {
    return error(StatusCode::invalid_argument,
                 "[onnx] MatMulNBits: a quantized matrix was required; found none; "
                 "quantize first, or leave --quant-format out");
  }
  if (refused.empty()) return ok_status();
  if (refused.size() == 1) return error(StatusCode::unsupported, refused[0]);
  std::string list;
  for (size_t i = 0; i < std::min(refused.size(), kNamed); ++i) {
    list += "\n  " + refused[i];
  }
  if (refused.size() > kNamed) list += cat("\n  and ", refused.size() - kNamed, " more");
  return error(StatusCode::unsupported, "[onnx] MatMulNBits cannot hold ", refused.size(),
               " of ", seen.size(), " quantized matrices:", list);
}

}  // namespace

Status can_lower(const Artifact& artifact, const LoweringOptions& options) {
  const Program& program = artifact.program;
  NIBBLE_RETURN_IF_ERROR(check_program(program));
  if (program.is_language_model() && !program.is_encoder() &&
      (program.inputs.size() != 1 || program.outputs.size() != 1)) {
    return error(StatusCode::unsupported, "[onnx] ", program.architecture,
                 ": a language model must have one input and one output; found ",
                 program.inputs.size(), " and ", program.outputs.size(),
                 "; export to the nibble format");
  }
  for (const Node& node : program.nodes) {
    bool known = false;
    for (const OnnxOp& row : all_onnx_ops()) known = known || node.op == row.op;
    if (!known) {
      return error(StatusCode::unsupported, "[onnx] ", node.name, ": op ", node.op,
                   " has no ONNX form; export to the nibble format");
    }
    const std::string state = node.text("state", "");
    if (node.op == "attention" && program.is_encoder() && node.integer("causal", 1) != 0) {
      return error(StatusCode::unsupported, "[onnx] ", node.name,
                   ": every attention of an encoder must see all tokens (causal = 0); "
                   "found a causal one; export to the nibble format");
    }
    if (node.op == "attention" && state.empty() != program.states.empty()) {
      return error(StatusCode::unsupported, "[onnx] ", node.name,
                   ": every attention must keep a cache, or none; found both; "
                   "export to the nibble format");
    }
    const std::vector<Layer> layers = layers_of(node);
    for (const auto& [role, tensor] : node.parameters) {
      const auto packed = artifact.packed.find(tensor);
      if (packed == artifact.packed.end() || (!layers.empty() && role == "bias"))
        continue;
      if (layers.empty()) {
        return error(StatusCode::unsupported, "[onnx] ", tensor, ": the ", role, " of ",
                     node.op, " must be float; found ", to_string(packed->second.scheme),
                     "; keep it float");
      }
      NIBBLE_RETURN_IF_ERROR(can_lower_layer(artifact, node, tensor, packed->second, options));
    }
  }
  for (const auto& [value, activation] : artifact.activations) {
    NIBBLE_RETURN_IF_ERROR(check_onnx_activation(activation, cat("value ", value), options.tensorrt));
  }
  if (options.tensorrt) NIBBLE_RETURN_IF_ERROR(check_tensorrt(artifact, options));
  if (options.qoperator) NIBBLE_RETURN_IF_ERROR(check_qoperator(artifact));
  return options.matmul_nbits ? can_matmul_nbits(artifact) : ok_status();
}

}  // namespace nibble
