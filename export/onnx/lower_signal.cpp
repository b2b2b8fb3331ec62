// Ops of nets over signals in standard ONNX operators.
#include "export/onnx/lowering.h"

namespace nibble {

Status lower_mul(OnnxLowering& lowering, const Node& node) {
  lowering.graph().add("Mul", {lowering.input(node), lowering.input(node, 1)},
                       lowering.output(node));
  return ok_status();
}

Status lower_sqrt(OnnxLowering& lowering, const Node& node) {
  lowering.graph().add("Sqrt", {lowering.input(node)}, lowering.output(node));
  return ok_status();
}

Status lower_sigmoid(OnnxLowering& lowering, const Node& node) {
  lowering.graph().add("Sigmoid", {lowering.input(node)}, lowering.output(node));
  return ok_status();
}

Status lower_reshape(OnnxLowering& lowering, const Node& node) {
  std::vector<int64_t> shape = node.integers("shape", {});
  shape.insert(shape.begin(), 0);  // Reshape takes the input's own size for a 0
  lowering.graph().add("Reshape",
                       {lowering.input(node), lowering.graph().integers(shape)},
                       lowering.output(node));
  return ok_status();
}

Status lower_transpose(OnnxLowering& lowering, const Node& node) {
  lowering.graph().add("Transpose", {lowering.input(node)}, lowering.output(node),
                       {{"perm", node.integers("perm", {})}});
  return ok_status();
}

Status lower_slice(OnnxLowering& lowering, const Node& node) {
  OnnxGraph& graph = lowering.graph();
  graph.add("Slice",
            {lowering.input(node), graph.integers({node.integer("start", 0)}),
             graph.integers({node.integer("end", 0)}),
             graph.integers({node.integer("axis", 0)}),
             graph.integers({node.integer("step", 1)})},
            lowering.output(node));
  return ok_status();
}

Status lower_reflect_pad(OnnxLowering& lowering, const Node& node) {
  const size_t rank = lowering.rows_of(node.inputs[0]).size() + 1;
  std::vector<int64_t> pads(2 * rank, 0);
  pads[rank - 1] = node.integer("before", 0);
  pads[2 * rank - 1] = node.integer("after", 0);
  lowering.graph().add("Pad", {lowering.input(node), lowering.graph().integers(pads)},
                       lowering.output(node), {{"mode", std::string("reflect")}});
  return ok_status();
}

// LSTM wants time first, one direction as an axis of its own and two biases, of which the
// second is zeros; it gives every h and the last c apart.
Status lower_lstm(OnnxLowering& lowering, const Node& node) {
  OnnxGraph& graph = lowering.graph();
  const auto inner = [&](const char* part) { return OnnxLowering::inner(node, part); };
  const OnnxAttributes batch_second = {{"perm", std::vector<int64_t>{1, 0, 2}}};
  const auto with_direction = [&](const std::string& x, const char* name) {
    return graph.add("Unsqueeze", {x, graph.integers({0})}, inner(name));
  };
  graph.add("Transpose", {lowering.input(node)}, inner("x"), batch_second);
  std::vector<std::string> inputs = {inner("x")};
  for (const auto& [role, name] :
       {std::pair("weight_ih", "w"), std::pair("weight_hh", "r")}) {
    NIBBLE_ASSIGN_OR_RETURN(const std::string weight,
                            lowering.weight(node, Orientation::rows_first, role));
    inputs.push_back(with_direction(weight, name));
  }
  inputs.push_back("");  // no bias
  const std::string& over_h = node.parameter("weight_hh");
  const auto packed = lowering.artifact().packed.find(over_h);
  const int64_t hidden = packed != lowering.artifact().packed.end()
                             ? packed->second.cols
                             : lowering.artifact().tensors.at(over_h).shape[1];
  if (!node.parameter("bias").empty()) {
    NIBBLE_ASSIGN_OR_RETURN(const std::string bias,
                            lowering.float_parameter(node.parameter("bias")));
    const std::string zeros = cat("/zeros:", 4 * hidden);
    if (!graph.has_initializer(zeros)) {
      graph.add_initializer(zeros, {4 * hidden},
                            std::vector<float>(static_cast<size_t>(4 * hidden), 0.0f));
    }
    graph.add("Concat", {bias, zeros}, inner("biases"), {{"axis", int64_t{0}}});
    inputs.back() = with_direction(inner("biases"), "b");
  }
  if (node.inputs.size() > 1) {
    inputs.push_back("");  // every sequence is whole
    inputs.push_back(with_direction(lowering.input(node, 1), "h"));
    inputs.push_back(with_direction(lowering.input(node, 2), "c"));
  }
  while (inputs.back().empty()) inputs.pop_back();
  graph.add("LSTM", inputs, {inner("every"), "", inner("last_c")},
            {{"hidden_size", hidden}});
  graph.add("Squeeze", {inner("every"), graph.integers({1})}, inner("every_h"));
  graph.add("Concat", {inner("every_h"), inner("last_c")}, inner("y"),
            {{"axis", int64_t{0}}});
  graph.add("Transpose", {inner("y")}, lowering.output(node), batch_second);
  return ok_status();
}

}  // namespace nibble
