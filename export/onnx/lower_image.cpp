// Convolutional nets' ops in standard ONNX operators.
#include "export/onnx/lowering.h"

namespace nibble {

Status lower_conv2d(OnnxLowering& lowering, const Node& node) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string weight,
                          lowering.weight(node, Orientation::rows_first));
  std::vector<std::string> inputs = {lowering.input(node), weight};
  if (!node.parameter("bias").empty()) {
    NIBBLE_ASSIGN_OR_RETURN(const std::string bias, lowering.bias(node));
    inputs.push_back(bias);
  }
  const std::vector<int64_t> stride = node.integers("stride", {1, 1});
  const std::vector<int64_t> padding = node.integers("padding", {0, 0});
  lowering.graph().add(
      "Conv", inputs, lowering.output(node),
      {{"strides", stride},
       {"pads", std::vector<int64_t>{padding[0], padding[1], padding[0], padding[1]}},
       {"group", node.integer("groups", 1)}});
  return ok_status();
}

Status lower_batch_norm(OnnxLowering& lowering, const Node& node) {
  std::vector<std::string> inputs = {lowering.input(node)};
  for (const char* role : {"weight", "bias", "running_mean", "running_var"}) {
    NIBBLE_ASSIGN_OR_RETURN(const std::string parameter,
                            lowering.float_parameter(node.parameter(role)));
    inputs.push_back(parameter);
  }
  lowering.graph().add("BatchNormalization", inputs, lowering.output(node),
                       {{"epsilon", static_cast<float>(node.number("epsilon", 1e-5))}});
  return ok_status();
}

Status lower_relu(OnnxLowering& lowering, const Node& node) {
  lowering.graph().add("Relu", {lowering.input(node)}, lowering.output(node));
  return ok_status();
}

Status lower_leaky_relu(OnnxLowering& lowering, const Node& node) {
  lowering.graph().add("LeakyRelu", {lowering.input(node)}, lowering.output(node),
                       {{"alpha", static_cast<float>(node.number("slope", 0.01))}});
  return ok_status();
}

Status lower_shortcut_pad(OnnxLowering& lowering, const Node& node) {
  OnnxGraph& graph = lowering.graph();
  const int64_t stride = node.integer("stride", 1);
  std::string x = lowering.input(node);
  if (stride != 1) {
    constexpr int64_t kEnd = INT64_MAX;  // Slice clamps it to the dimension
    x = graph.add("Slice",
                  {x, graph.integers({0, 0}), graph.integers({kEnd, kEnd}),
                   graph.integers({2, 3}), graph.integers({stride, stride})},
                  lowering.inner(node, "strided"));
  }
  graph.add("Pad",
            {x,
             graph.integers({0, node.integer("pad_before", 0), 0, 0, 0,
                             node.integer("pad_after", 0), 0, 0}),
             graph.number(0)},
            lowering.output(node));
  return ok_status();
}

// ONNX keeps the averaged axes as 1; the Program drops them.
Status lower_global_average_pool(OnnxLowering& lowering, const Node& node) {
  OnnxGraph& graph = lowering.graph();
  graph.add("GlobalAveragePool", {lowering.input(node)}, lowering.inner(node, "mean"));
  graph.add("Flatten", {lowering.inner(node, "mean")}, lowering.output(node),
            {{"axis", int64_t{1}}});
  return ok_status();
}

Status lower_flatten(OnnxLowering& lowering, const Node& node) {
  lowering.graph().add("Flatten", {lowering.input(node)}, lowering.output(node),
                       {{"axis", int64_t{1}}});
  return ok_status();
}

}  // namespace nibble
