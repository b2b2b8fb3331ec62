// Encoder ops in standard ONNX operators, and the inputs and masks that an encoder has.
#include <limits>

#include "export/onnx/lowering.h"

namespace nibble {
namespace {

constexpr const char* kMask = "attention_mask";

}  // namespace

void OnnxLowering::add_encoder_inputs() {
  const Program& program = artifact_.program;
  const std::vector<std::string> shape = {"batch", "sequence"};
  names_[program.inputs.front().name] = "input_ids";
  graph_.add_input("input_ids", OnnxType::int64, shape);
  graph_.add_input(kMask, OnnxType::int64, shape);
  if (program.inputs.size() > 1) {
    names_[program.inputs[1].name] = "token_type_ids";
    graph_.add_input("token_type_ids", OnnxType::int64, shape);
  }
}

std::string OnnxLowering::key_is_token() {
  const std::string name = "/is_token";
  if (!made_.insert(name).second) return name;
  graph_.add("Unsqueeze", {kMask, graph_.integers({1, 2})}, "/mask");
  return graph_.add("Greater", {"/mask", graph_.integer(0)}, name);
}

std::string OnnxLowering::padding_mask() {
  const std::string name = "/padding_mask";
  if (!made_.insert(name).second) return name;
  return graph_.add("Where",
                    {key_is_token(), graph_.number(0),
                     graph_.number(std::numeric_limits<float>::lowest())},
                    name);
}

std::string OnnxLowering::token_mask() {
  const std::string name = "/token_mask";
  if (!made_.insert(name).second) return name;
  graph_.add("Unsqueeze", {kMask, graph_.integers({2})}, "/tokens");
  return graph_.add("Cast", {"/tokens"}, name,
                    {{"to", static_cast<int64_t>(OnnxType::float32)}});
}

// [sequence, D] lacks the batch; what it is added to has it.
Status lower_position_embedding(OnnxLowering& lowering, const Node& node) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string weight,
                          lowering.weight(node, Orientation::rows_first));
  lowering.graph().add("Gather", {weight, lowering.positions()}, lowering.output(node),
                       {{"axis", int64_t{0}}});
  return ok_status();
}

Status lower_layer_norm(OnnxLowering& lowering, const Node& node) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string weight,
                          lowering.float_parameter(node.parameter("weight")));
  NIBBLE_ASSIGN_OR_RETURN(const std::string bias,
                          lowering.float_parameter(node.parameter("bias")));
  lowering.graph().add("LayerNormalization",
                       {lowering.widened(lowering.input(node)), lowering.widened(weight),
                        lowering.widened(bias)},
                       lowering.wide(lowering.output(node)),
                       {{"axis", int64_t{-1}},
                        {"epsilon", static_cast<float>(node.number("epsilon", 1e-12))}});
  lowering.narrow(lowering.output(node));
  return ok_status();
}

// x / (1 + exp(-2 u)) = x sigmoid(2 u) for the approximation by tanh.
Status lower_gelu(OnnxLowering& lowering, const Node& node) {
  OnnxGraph& graph = lowering.graph();
  const std::string x = lowering.widened(lowering.input(node));
  const std::string y = lowering.wide(lowering.output(node));
  const auto number = [&](double value) { return lowering.wide_number(value); };
  if (node.integer("tanh", 0) == 0) {
    if (lowering.is_float64()) {
      add_gelu_float64(graph, x, y);
    } else {
      graph.add("Gelu", {x}, y);
    }
    lowering.narrow(lowering.output(node));
    return ok_status();
  }
  const auto part = [&](const char* name) { return OnnxLowering::inner(node, name); };
  graph.add("Mul", {x, x}, part("square"));
  graph.add("Mul", {part("square"), number(0.044715)}, part("bent"));
  graph.add("Add", {part("bent"), number(1)}, part("factor"));
  graph.add("Mul", {x, part("factor")}, part("cubic"));
  graph.add("Mul", {part("cubic"), number(1.5957691216057308)}, part("angle"));
  graph.add("Sigmoid", {part("angle")}, part("gate"));
  graph.add("Mul", {x, part("gate")}, y);
  lowering.narrow(lowering.output(node));
  return ok_status();
}

Status lower_mean_pool(OnnxLowering& lowering, const Node& node) {
  OnnxGraph& graph = lowering.graph();
  const auto part = [&](const char* name) { return OnnxLowering::inner(node, name); };
  const std::string mask = lowering.token_mask();
  const std::string axis = graph.integers({1});
  graph.add("Mul", {lowering.input(node), mask}, part("tokens"));
  graph.add("ReduceSum", {part("tokens"), axis}, part("sum"), {{"keepdims", int64_t{0}}});
  graph.add("ReduceSum", {mask, axis}, part("count"), {{"keepdims", int64_t{0}}});
  graph.add("Max", {part("count"), graph.number(1)}, part("divisor"));
  graph.add("Div", {part("sum"), part("divisor")}, lowering.output(node));
  return ok_status();
}

Status lower_first_token(OnnxLowering& lowering, const Node& node) {
  OnnxGraph& graph = lowering.graph();
  graph.add("Gather", {lowering.input(node), graph.integer(0)}, lowering.output(node),
            {{"axis", int64_t{1}}});
  return ok_status();
}

Status lower_l2_normalize(OnnxLowering& lowering, const Node& node) {
  OnnxGraph& graph = lowering.graph();
  const auto part = [&](const char* name) { return OnnxLowering::inner(node, name); };
  const std::string x = lowering.input(node);
  graph.add("ReduceL2", {x, graph.integers({-1})}, part("norm"),
            {{"keepdims", int64_t{1}}});
  graph.add("Max", {part("norm"), graph.number(1e-12f)}, part("length"));
  graph.add("Div", {x, part("length")}, lowering.output(node));
  return ok_status();
}

}  // namespace nibble
