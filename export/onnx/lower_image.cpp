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

// Its value has its input's scheme, so a pair between Slice and Pad changes nothing;
// without one ONNX Runtime puts one there, and of signed codes a wrong one.
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
    x = lowering.quantized_as(node.outputs.front(), x, lowering.inner(node, "quantized"));
  }
  graph.add("Pad",
            {x,
             graph.integers({0, node.integer("pad_before", 0), 0, 0, 0,
                             node.integer("pad_after", 0), 0, 0}),
             graph.number(0)},
            lowering.output(node));
  return ok_status();
}

// ONNX keeps the averaged axes as 1; the Program drops them. A pair of its own follows
// the average, where runtimes look for one, and changes nothing for the pair after
// Flatten.
Status lower_global_average_pool(OnnxLowering& lowering, const Node& node) {
  OnnxGraph& graph = lowering.graph();
  graph.add("GlobalAveragePool", {lowering.input(node)}, lowering.inner(node, "mean"));
  const std::string mean =
      lowering.quantized_as(node.outputs.front(), lowering.inner(node, "mean"),
                            lowering.inner(node, "quantized"));
  graph.add("Flatten", {mean}, lowering.output(node), {{"axis", int64_t{1}}});
  return ok_status();
}

Status lower_max_pool(OnnxLowering& lowering, const Node& node) {
  const std::vector<int64_t> padding = node.integers("padding", {0, 0});
  lowering.graph().add(
      "MaxPool", {lowering.input(node)}, lowering.output(node),
      {{"kernel_shape", node.integers("kernel", {1, 1})},
       {"strides", node.integers("stride", {1, 1})},
       {"pads", std::vector<int64_t>{padding[0], padding[1], padding[0], padding[1]}}});
  return ok_status();
}

Status lower_concat(OnnxLowering& lowering, const Node& node) {
  std::vector<std::string> inputs;
  for (size_t i = 0; i < node.inputs.size(); ++i) inputs.push_back(lowering.input(node, i));
  lowering.graph().add("Concat", inputs, lowering.output(node), {{"axis", int64_t{1}}});
  return ok_status();
}

Status lower_softmax(OnnxLowering& lowering, const Node& node) {
  lowering.graph().add("Softmax", {lowering.input(node)}, lowering.output(node),
                       {{"axis", int64_t{-1}}});
  return ok_status();
}

Status lower_flatten(OnnxLowering& lowering, const Node& node) {
  lowering.graph().add("Flatten", {lowering.input(node)}, lowering.output(node),
                       {{"axis", int64_t{1}}});
  return ok_status();
}

}  // namespace nibble
