// ONNX graphs read into Programs: small graphs made here, our own exports, refusals.
#include "export/onnx/import.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/runtime/executor.h"
#include "tests/export/onnx_model.h"

namespace nibble {
namespace {

using sample::fresh_directory;
using sample::take;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// A graph of one image input [1, 2, 4, 4], written down node by node.
class Graph {
 public:
  explicit Graph(int64_t opset) {
    model_.set_ir_version(4);
    model_.add_opset_import()->set_version(opset);
    value(graph().add_input(), "x", {1, 2, 4, 4});
  }
  onnx::GraphProto& graph() { return *model_.mutable_graph(); }
  static void value(onnx::ValueInfoProto* info, const char* name, std::vector<int64_t> shape) {
    info->set_name(name);
    auto* type = info->mutable_type()->mutable_tensor_type();
    type->set_elem_type(onnx::TensorProto::FLOAT);
    for (const int64_t dim : shape) type->mutable_shape()->add_dim()->set_dim_value(dim);
  }
  static onnx::NodeProto& node(onnx::GraphProto& graph, const char* op,
                               std::vector<std::string> inputs, const char* output) {
    auto* node = graph.add_node();
    node->set_op_type(op);
    for (const std::string& input : inputs) node->add_input(input);
    node->add_output(output);
    return *node;
  }
  onnx::NodeProto& node(const char* op, std::vector<std::string> inputs, const char* output) {
    return node(graph(), op, std::move(inputs), output);
  }
  static void ints(onnx::NodeProto& node, const char* name, std::vector<int64_t> values) {
    auto* attribute = node.add_attribute();
    attribute->set_name(name);
    attribute->set_type(onnx::AttributeProto::INTS);
    for (const int64_t item : values) attribute->add_ints(item);
  }
  static void integer(onnx::NodeProto& node, const char* name, int64_t item) {
    auto* attribute = node.add_attribute();
    attribute->set_name(name);
    attribute->set_type(onnx::AttributeProto::INT);
    attribute->set_i(item);
  }
  void floats(const char* name, std::vector<int64_t> shape, float first = 0.1f) {
    auto* tensor = graph().add_initializer();
    tensor->set_name(name);
    tensor->set_data_type(onnx::TensorProto::FLOAT);
    int64_t count = 1;
    for (const int64_t dim : shape) {
      tensor->add_dims(dim);
      count *= dim;
    }
    for (int64_t i = 0; i < count; ++i) tensor->add_float_data(first + 0.01f * static_cast<float>(i));
  }
  static void numbers(onnx::GraphProto& graph, const char* name, std::vector<int64_t> values) {
    auto* tensor = graph.add_initializer();
    tensor->set_name(name);
    tensor->set_data_type(onnx::TensorProto::INT64);
    tensor->add_dims(static_cast<int64_t>(values.size()));
    for (const int64_t item : values) tensor->add_int64_data(item);
  }
  void boolean(const char* name, bool item) {
    auto* tensor = graph().add_initializer();
    tensor->set_name(name);
    tensor->set_data_type(onnx::TensorProto::BOOL);
    tensor->add_int32_data(item ? 1 : 0);
  }
  Result<ImportedGraph> import(const char* output) {
    graph().clear_output();
    graph().add_output()->set_name(output);
    const auto directory = fresh_directory("import");
    std::filesystem::create_directory(directory);
    std::ofstream(directory / "model.onnx", std::ios::binary) << model_.SerializeAsString();
    auto result = import_onnx(directory / "model.onnx");
    std::filesystem::remove_all(directory);
    return result;
  }

 private:
  onnx::ModelProto model_;
};

std::vector<std::string> ops(const Program& program) {
  std::vector<std::string> names;
  for (const Node& node : program.nodes) names.push_back(node.op);
  return names;
}

// As SqueezeNet's end: two branches joined, a pool, dropout whose mask nobody reads, and
// the softmax of opset 7 over [n, c, 1, 1].
TEST(OnnxImport, BranchesPoolsAndDropoutOfOpset7) {
  Graph graph(7);
  graph.floats("w1", {3, 2, 1, 1});
  graph.floats("w3", {4, 2, 3, 3});
  graph.floats("b3", {4});
  graph.node("Conv", {"x", "w1"}, "a");
  auto& conv = graph.node("Conv", {"x", "w3", "b3"}, "b");
  Graph::ints(conv, "pads", {1, 1, 1, 1});
  Graph::integer(graph.node("Concat", {"a", "b"}, "joined"), "axis", 1);
  auto& pool = graph.node("MaxPool", {"joined"}, "pooled");
  Graph::ints(pool, "kernel_shape", {2, 2});
  Graph::ints(pool, "strides", {2, 2});
  graph.node("Dropout", {"pooled"}, "dropped").add_output("mask");
  graph.node("GlobalAveragePool", {"dropped"}, "mean");
  graph.node("Softmax", {"mean"}, "y");
  const ImportedGraph found = take(graph.import("y"));
  EXPECT_THAT(ops(found.program), ElementsAre("conv2d", "conv2d", "concat", "max_pool",
                                              "global_average_pool", "softmax"));
  EXPECT_THAT(found.program.inputs[0].shape, ElementsAre("batch", "2", "4", "4"));
  EXPECT_THAT(found.program.outputs[0].shape, ElementsAre("batch", "7"));
  EXPECT_THAT(found.program.nodes[4].inputs, ElementsAre("pooled"));
  EXPECT_EQ(found.tensors.size(), 3u);

  // And it runs, to probabilities.
  auto artifact = std::make_shared<Artifact>();
  artifact->program = found.program;
  artifact->tensors = found.tensors;
  Executor executor = take(Executor::create(artifact, {}));
  std::vector<float> image(32, 0.5f), y(7);
  image[3] = -2;
  const std::vector<int64_t> shape = {1, 2, 4, 4};
  ASSERT_TRUE(executor.forward_images(image, shape, MatrixView<float>(y.data(), 1, 7)).ok());
  double sum = 0;
  for (const float p : y) sum += p;
  EXPECT_NEAR(sum, 1, 1e-6);
}

// Reshape to the batch that Shape says, as tracing exporters write it.
TEST(OnnxImport, ShapesAreFoldedAndABiasIsAddedToItsProduct) {
  Graph graph(13);
  graph.floats("w", {32, 5});
  graph.floats("b", {5});
  Graph::numbers(graph.graph(), "zero", {0});
  Graph::numbers(graph.graph(), "rest", {-1});
  graph.node("Shape", {"x"}, "shape");
  graph.node("Gather", {"shape", "zero"}, "batch");
  Graph::integer(graph.node("Concat", {"batch", "rest"}, "flat"), "axis", 0);
  graph.node("Reshape", {"x", "flat"}, "rows");
  graph.node("MatMul", {"rows", "w"}, "product").set_name("fc");
  graph.node("Add", {"product", "b"}, "y");
  const ImportedGraph found = take(graph.import("y"));
  ASSERT_THAT(ops(found.program), ElementsAre("flatten", "linear"));
  const Node& linear = found.program.nodes[1];
  EXPECT_EQ(linear.parameter("bias"), "b");
  EXPECT_THAT(found.tensors.at(linear.parameter("weight")).shape, ElementsAre(5, 32));
  const std::vector<float> weight = take(to_float(found.tensors.at(linear.parameter("weight"))));
  EXPECT_EQ(weight[1], 0.1f + 0.01f * 5);  // column 1 of row 0 was row 1 of column 0
}

TEST(OnnxImport, IfOnAConstantIsItsBranch) {
  for (const bool taken : {true, false}) {
    Graph graph(13);
    graph.boolean("choice", taken);
    auto& choice = graph.node("If", {"choice"}, "y");
    for (const char* name : {"then_branch", "else_branch"}) {
      auto* attribute = choice.add_attribute();
      attribute->set_name(name);
      attribute->set_type(onnx::AttributeProto::GRAPH);
      const bool first = std::string(name) == "then_branch";
      Graph::node(*attribute->mutable_g(), first ? "Relu" : "LeakyRelu", {"x"}, "inner");
      attribute->mutable_g()->add_output()->set_name("inner");
    }
    EXPECT_THAT(ops(take(graph.import("y")).program),
                ElementsAre(taken ? "relu" : "leaky_relu"));
  }
}

TEST(OnnxImport, RefusesByTheNodesName) {
  struct Case {
    std::function<void(Graph&)> build;
    const char* message;
  };
  const std::vector<Case> cases = {
      {[](Graph& g) { g.node("GRU", {"x"}, "y").set_name("encoder/gru"); },
       "[onnx] encoder/gru: GRU has no form in a program"},
      {[](Graph& g) {
         g.floats("w", {3, 2, 3, 3});
         Graph::ints(g.node("Conv", {"x", "w"}, "y"), "dilations", {2, 2});
       },
       "[onnx] y: Conv needs dilations of 1; found 2"},
      {[](Graph& g) {
         g.floats("w", {3, 2, 3, 3});
         Graph::ints(g.node("Conv", {"x", "w"}, "y"), "pads", {0, 0, 1, 1});
       },
       "[onnx] y: Conv needs the same padding at both ends; found pads [0, 0, 1, 1]"},
      {[](Graph& g) { g.node("Conv", {"x", "nowhere"}, "y"); },
       "[onnx] y: Conv needs a constant weight [o, c, kh, kw]; found none"},
      {[](Graph& g) { g.node("Relu", {"nowhere"}, "y"); },
       "[onnx] y: Relu reads a value of the network as input 0; found `nowhere`, which "
       "nothing makes"},
      {[](Graph& g) { g.node("If", {"x"}, "y"); },
       "[onnx] y: If is resolved on a constant condition; found `x`"},
      {[](Graph& g) {
         g.floats("w", {3, 2, 1, 1});
         g.node("GlobalAveragePool", {"x"}, "p");
         g.node("Conv", {"p", "w"}, "y");
       },
       "[onnx] y: Conv reads an image [n, c, h, w]; found a pooled [n, c, 1, 1]"},
      {[](Graph& g) {
         Graph::integer(g.node("Softmax", {"x"}, "y"), "axis", 1);
       },
       "[onnx] y: Softmax goes over the features; found axis 1 of 4 dimensions"},
      {[](Graph& g) { g.node("FusedConv", {"x"}, "y").set_domain("com.microsoft"); },
       "[onnx] y: FusedConv is no standard operator; found com.microsoft"}};
  for (const Case& row : cases) {
    Graph graph(13);
    row.build(graph);
    const auto found = graph.import("y");
    EXPECT_EQ(found.status().code(), StatusCode::unsupported);
    EXPECT_THAT(found.status().message(), HasSubstr(row.message));
  }
  Graph old(6);
  old.node("Relu", {"x"}, "y");
  EXPECT_THAT(old.import("y").status().message(),
              HasSubstr("[onnx] opset: 7 to 21 was required; found 6"));
  const auto directory = fresh_directory("none");
  EXPECT_EQ(import_onnx(directory / "model.onnx").status().code(), StatusCode::not_found);
}

TEST(OnnxImport, ATensorOfAnotherSizeIsDamaged) {
  Graph graph(13);
  graph.floats("w", {3, 2, 1, 1});
  graph.graph().mutable_initializer(0)->set_dims(0, 4);
  graph.node("Conv", {"x", "w"}, "y");
  const auto found = graph.import("y");
  EXPECT_EQ(found.status().code(), StatusCode::data_loss);
  EXPECT_THAT(found.status().message(), HasSubstr("[onnx] w: 8 values take 32 bytes; found 24"));
}

// What we write of a float net we read: the same numbers come out.
TEST(OnnxImport, OurOwnFloatExportComesBack) {
  const Artifact artifact = sample::residual_net(21);
  const auto directory = fresh_directory("own");
  ASSERT_TRUE(take(find_exporter("onnx"))->write(artifact, directory, {}).ok());
  const ImportedGraph found = take(import_onnx(directory / "model.onnx"));
  std::filesystem::remove_all(directory);
  EXPECT_EQ(found.metadata.count("image_mean"), 1u);
  auto again = std::make_shared<Artifact>();
  again->program = found.program;
  again->tensors = found.tensors;
  const std::vector<int64_t> shape = {2, 3, 8, 8};
  std::vector<float> images;
  SplitMix64 random(4);
  for (int i = 0; i < 2 * 3 * 64; ++i) images.push_back(static_cast<float>(random.uniform() - 0.5));
  const auto logits = [&](std::shared_ptr<const Artifact> model) {
    Executor executor = take(Executor::create(std::move(model), {}));
    std::vector<float> y(20);
    EXPECT_TRUE(executor.forward_images(images, shape, MatrixView<float>(y.data(), 2, 10)).ok());
    return y;
  };
  EXPECT_EQ(logits(again), logits(std::make_shared<const Artifact>(artifact)));
}

}  // namespace
}  // namespace nibble
