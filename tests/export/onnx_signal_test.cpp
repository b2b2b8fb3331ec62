// ONNX graphs of nets over signals read into Programs: sizes and branches folded away,
// convolutions over one dimension, an LSTM with its state; and what we write of them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "export/onnx/import.h"
#include "kernels/runtime/executor.h"
#include "tests/export/onnx_model.h"

namespace nibble {
namespace {

using sample::fresh_directory;
using sample::take;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

using Ints = std::vector<int64_t>;

// A graph written down node by node.
class Graph {
 public:
  explicit Graph(int64_t opset = 15) {
    model_.set_ir_version(8);
    model_.add_opset_import()->set_version(opset);
  }
  onnx::GraphProto& graph() { return *model_.mutable_graph(); }
  // Dimensions: numbers or symbols.
  void input(const char* name, std::vector<std::string> shape, bool integers = false) {
    auto* info = graph().add_input();
    info->set_name(name);
    auto* type = info->mutable_type()->mutable_tensor_type();
    type->set_elem_type(integers ? onnx::TensorProto::INT64 : onnx::TensorProto::FLOAT);
    auto* dims = type->mutable_shape();
    for (const std::string& dim : shape) {
      const bool number = dim.find_first_not_of("0123456789") == std::string::npos;
      if (number) dims->add_dim()->set_dim_value(std::stoll(dim));
      if (!number) dims->add_dim()->set_dim_param(dim);
    }
  }
  static onnx::NodeProto& node(onnx::GraphProto& graph, const char* op,
                               std::vector<std::string> inputs,
                               std::vector<std::string> outputs) {
    auto* node = graph.add_node();
    node->set_op_type(op);
    for (const std::string& input : inputs) node->add_input(input);
    for (const std::string& output : outputs) node->add_output(output);
    return *node;
  }
  onnx::NodeProto& node(const char* op, std::vector<std::string> inputs,
                        std::vector<std::string> outputs) {
    return node(graph(), op, std::move(inputs), std::move(outputs));
  }
  static onnx::NodeProto& ints(onnx::NodeProto& node, const char* name, Ints values) {
    auto* attribute = node.add_attribute();
    attribute->set_name(name);
    attribute->set_type(onnx::AttributeProto::INTS);
    for (const int64_t item : values) attribute->add_ints(item);
    return node;
  }
  static onnx::NodeProto& integer(onnx::NodeProto& node, const char* name,
                                  int64_t value) {
    auto* attribute = node.add_attribute();
    attribute->set_name(name);
    attribute->set_type(onnx::AttributeProto::INT);
    attribute->set_i(value);
    return node;
  }
  static onnx::NodeProto& text(onnx::NodeProto& node, const char* name,
                               const char* value) {
    auto* attribute = node.add_attribute();
    attribute->set_name(name);
    attribute->set_type(onnx::AttributeProto::STRING);
    attribute->set_s(value);
    return node;
  }
  void floats(const char* name, Ints shape, double limit = 0.5) {
    SplitMix64 random(++seed_);
    const Tensor tensor = sample::random_tensor(shape, limit, random);
    auto* proto = graph().add_initializer();
    proto->set_name(name);
    proto->set_data_type(onnx::TensorProto::FLOAT);
    for (const int64_t dim : shape) proto->add_dims(dim);
    proto->set_raw_data(std::string(tensor.bytes.text()));
  }
  void number(const char* name, float value) {
    auto* proto = graph().add_initializer();
    proto->set_name(name);
    proto->set_data_type(onnx::TensorProto::FLOAT);
    proto->add_float_data(value);
  }
  void numbers(const char* name, Ints values, bool scalar = false) {
    auto* proto = graph().add_initializer();
    proto->set_name(name);
    proto->set_data_type(onnx::TensorProto::INT64);
    if (!scalar) proto->add_dims(static_cast<int64_t>(values.size()));
    for (const int64_t item : values) proto->add_int64_data(item);
  }
  // An If whose branches hold what `fill` puts there under the name given to it.
  void choose(const char* condition, const char* output,
              const std::function<void(onnx::GraphProto&, bool taken,
                                       const std::string&)>& fill) {
    auto& choice = node("If", {condition}, {output});
    choice.set_name(cat("choice/", output));
    for (const bool taken : {true, false}) {
      auto* attribute = choice.add_attribute();
      attribute->set_name(taken ? "then_branch" : "else_branch");
      attribute->set_type(onnx::AttributeProto::GRAPH);
      const std::string inner = cat(output, taken ? "/then" : "/else");
      fill(*attribute->mutable_g(), taken, inner);
      attribute->mutable_g()->add_output()->set_name(inner);
    }
  }
  Result<ImportedGraph> import(std::vector<std::string> outputs,
                               const std::map<std::string, int64_t>& sizes = {}) {
    graph().clear_output();
    for (const std::string& output : outputs) graph().add_output()->set_name(output);
    const auto directory = fresh_directory("signal");
    std::filesystem::create_directory(directory);
    std::ofstream(directory / "model.onnx", std::ios::binary)
        << model_.SerializeAsString();
    auto result = import_onnx(directory / "model.onnx", sizes);
    std::filesystem::remove_all(directory);
    return result;
  }

 private:
  onnx::ModelProto model_;
  uint64_t seed_ = 0;
};

std::vector<std::string> ops(const Program& program) {
  std::vector<std::string> names;
  for (const Node& node : program.nodes) names.push_back(node.op);
  return names;
}

Artifact artifact_of(const ImportedGraph& graph) {
  Artifact artifact;
  artifact.program = graph.program;
  artifact.tensors = graph.tensors;
  artifact.config_json = "{}\n";
  return artifact;
}

// What a voice detector's export looks like, smaller: 12 samples mirrored at the end, a
// transform as a convolution, magnitudes, a convolution, an LSTM cell whose rank, state
// and gates' order are found out at run time, a probability and the next state; and a
// sample rate that is asked for and not used.
void build_detector(Graph& g) {
  g.input("input", {"batch", "sequence"});
  g.input("state", {"2", "batch", "3"});
  g.input("sr", {}, true);
  g.floats("basis", {8, 1, 4});
  g.floats("conv.weight", {5, 4, 3});
  g.floats("conv.bias", {5});
  g.floats("cell.weight_ih", {12, 5});
  g.floats("cell.weight_hh", {12, 3});
  g.floats("cell.bias", {24});
  g.floats("out.weight", {1, 3, 1});
  g.number("two", 2);
  g.numbers("half", {4}), g.numbers("zero", {0}), g.numbers("one", {1}),
      g.numbers("minus", {-1});
  g.numbers("end", {INT64_MAX}), g.numbers("rank", {2}, true),
      g.numbers("nothing", {0}, true);
  g.numbers("first", {0}, true), g.numbers("second", {1}, true);
  g.numbers("pads", {0, 0, 0, 4});
  Graph::text(g.node("Pad", {"input", "pads"}, {"padded"}), "mode", "reflect");
  g.node("Unsqueeze", {"padded", "one"}, {"signal"});
  Graph::ints(g.node("Conv", {"signal", "basis"}, {"spectrum"}), "strides", {4});
  g.node("Slice", {"spectrum", "zero", "half", "one"}, {"real"});
  g.node("Slice", {"spectrum", "half", "end", "one"}, {"imaginary"});
  g.node("Pow", {"real", "two"}, {"real2"});
  g.node("Pow", {"imaginary", "two"}, {"imaginary2"});
  g.node("Add", {"real2", "imaginary2"}, {"power"});
  g.node("Sqrt", {"power"}, {"magnitude"});
  auto& conv = g.node("Conv", {"magnitude", "conv.weight", "conv.bias"}, {"features"});
  Graph::ints(Graph::ints(conv, "pads", {1, 1}), "strides", {4});
  g.node("Relu", {"features"}, {"active"});
  // One frame is left: squeezed, if so.
  g.node("Shape", {"active"}, {"sizes"});
  g.node("Gather", {"sizes", "minus"}, {"frames"});
  g.node("Equal", {"frames", "one"}, {"is_one"});
  g.choose("is_one", "frame",
           [](onnx::GraphProto& branch, bool taken, const std::string& out) {
             if (taken) Graph::node(branch, "Squeeze", {"active", "minus"}, {out});
             if (!taken) Graph::node(branch, "GRU", {"active"}, {out});
           });
  // The cell's rank decides whether a batch is added.
  g.node("Shape", {"frame"}, {"frame_sizes"});
  g.node("Size", {"frame_sizes"}, {"frame_rank"});
  g.node("Equal", {"frame_rank", "rank"}, {"has_batch"});
  g.node("Not", {"has_batch"}, {"lacks_batch"});
  g.choose("lacks_batch", "x",
           [](onnx::GraphProto& branch, bool taken, const std::string& out) {
             if (taken) Graph::node(branch, "Unsqueeze", {"frame", "zero"}, {out});
             if (!taken) Graph::node(branch, "Identity", {"frame"}, {out});
           });
  // Rows of the gates in ONNX's order, of torch's: i, f, g, o -> i, o, f, g.
  g.numbers("r3", {3}), g.numbers("r9", {9}), g.numbers("r12", {12});
  for (const char* name : {"ih", "hh"}) {
    const std::string w = cat("cell.weight_", name);
    const auto part = [&](const char* from, const char* to, const char* tag) {
      g.node("Slice", {w, from, to, "zero"}, {w + tag});
      return w + tag;
    };
    const std::vector<std::string> parts = {
        part("zero", "r3", ".i"), part("r9", "r12", ".o"), part("r3", "r9", ".fg")};
    Graph::integer(g.node("Concat", parts, {w + ".iofg"}), "axis", 0);
    g.node("Unsqueeze", {w + ".iofg", "zero"}, {w + ".onnx"});
  }
  g.node("Unsqueeze", {"cell.bias", "zero"}, {"biases"});
  g.node("Gather", {"state", "first"}, {"h"});
  g.node("Gather", {"state", "second"}, {"c"});
  for (const char* name : {"x", "h", "c"})
    g.node("Unsqueeze", {name, "zero"}, {cat(name, "0")});
  auto& cell = g.node(
      "LSTM",
      {"x0", "cell.weight_ih.onnx", "cell.weight_hh.onnx", "biases", "", "h0", "c0"},
      {"every", "last_h", "last_c"});
  Graph::integer(cell, "hidden_size", 3).set_name("/decoder/LSTM");
  Graph::integer(g.node("Concat", {"last_h", "last_c"}, {"both"}), "axis", 0);
  g.node("Mul", {"sr", "nothing"}, {"silence"});
  Graph::integer(g.node("Cast", {"silence"}, {"quiet"}), "to", onnx::TensorProto::FLOAT);
  g.node("Add", {"both", "quiet"}, {"stateN"});
  g.node("Squeeze", {"last_h", "zero"}, {"h1"});
  g.node("Unsqueeze", {"h1", "minus"}, {"h2"});
  g.node("Relu", {"h2"}, {"h3"});
  g.node("Conv", {"h3", "out.weight"}, {"logit"});
  g.node("Sigmoid", {"logit"}, {"probability"});
  g.node("Squeeze", {"probability", "one"}, {"p1"});
  Graph::integer(Graph::ints(g.node("ReduceMean", {"p1"}, {"p2"}), "axes", {1}),
                 "keepdims", 0);
  g.node("Unsqueeze", {"p2", "one"}, {"output"});
}

ImportedGraph detector() {
  Graph g;
  build_detector(g);
  return take(g.import({"output", "stateN"}, {{"sequence", 12}}));
}

TEST(OnnxSignal, ADetectorIsReadWithoutItsShapeArithmetic) {
  const ImportedGraph found = detector();
  const Program& program = found.program;
  EXPECT_THAT(
      ops(program),
      ElementsAre("transpose", "reflect_pad", "reshape", "conv2d", "slice", "slice",
                  "mul", "mul", "add", "sqrt", "conv2d", "relu", "slice", "slice",
                  "reshape", "reshape", "reshape", "lstm", "slice", "slice", "concat",
                  "relu", "reshape", "conv2d", "sigmoid", "reshape", "transpose"));
  ASSERT_EQ(program.inputs.size(), 3u);
  EXPECT_THAT(program.inputs[0].shape, ElementsAre("batch", "12"));
  EXPECT_THAT(program.inputs[1].shape, ElementsAre("2", "batch", "3"));
  EXPECT_EQ(program.inputs[2].dtype, DType::i64);  // and nobody reads it
  ASSERT_EQ(program.outputs.size(), 2u);
  EXPECT_EQ(program.outputs[0].name, "output");
  EXPECT_THAT(program.outputs[0].shape, ElementsAre("batch", "1"));
  EXPECT_EQ(program.outputs[1].name, "stateN");
  EXPECT_THAT(program.outputs[1].shape, ElementsAre("2", "batch", "3"));
  const Result<Program> printed = parse_program(print_program(program));
  ASSERT_TRUE(printed.ok()) << printed.status().message();
  EXPECT_EQ(*printed, program);
  // Rows 9 to 11 of torch's are 3 to 5 of ONNX's.
  const std::vector<float> turned =
      take(to_float(found.tensors.at("decoder/LSTM.weight_ih")));
  Graph g;
  build_detector(g);
  for (const auto& proto : g.graph().initializer()) {
    if (proto.name() != "cell.weight_ih") continue;
    std::vector<float> stored(60);
    std::memcpy(stored.data(), proto.raw_data().data(), proto.raw_data().size());
    EXPECT_EQ(turned[3 * 5], stored[9 * 5]);
    EXPECT_EQ(turned[11 * 5 + 4], stored[8 * 5 + 4]);
  }
}

std::vector<NetOutput> run(const Artifact& artifact, int64_t n, uint64_t seed) {
  Executor net = take(Executor::create(std::make_shared<const Artifact>(artifact), {}));
  SplitMix64 random(seed);
  const std::vector<float> x = take(to_float(sample::random_tensor({n * 12}, 1, random)));
  const std::vector<float> state =
      take(to_float(sample::random_tensor({2 * n * 3}, 1, random)));
  return take(net.forward_values(
      std::vector<NetInput>{{"input", {n, 12}, x}, {"state", {2, n, 3}, state}}));
}

// What we write of it comes back as a net with the same values, float and quantized.
TEST(OnnxSignal, OurOwnExportComesBack) {
  const Artifact artifact = artifact_of(detector());
  const auto directory = fresh_directory("own");
  ASSERT_TRUE(take(find_exporter("onnx"))->write(artifact, directory, {}).ok());
  const Artifact again = artifact_of(take(import_onnx(directory / "model.onnx")));
  std::filesystem::remove_all(directory);
  EXPECT_EQ(again.program.inputs, artifact.program.inputs);
  EXPECT_EQ(again.program.outputs, artifact.program.outputs);
  for (const int64_t n : {1, 3}) {
    const std::vector<NetOutput> a = run(artifact, n, 5), b = run(again, n, 5);
    ASSERT_EQ(a.size(), 2u);
    for (size_t i = 0; i < 2; ++i) {
      EXPECT_EQ(a[i].shape, b[i].shape);
      EXPECT_EQ(a[i].values, b[i].values);
    }
  }
}

TEST(OnnxSignal, QuantizedMatricesOfAnLstmAreDequantizedInTheGraph) {
  const Artifact quantized = sample::quantized(artifact_of(detector()), "int8n/r@f32");
  EXPECT_EQ(quantized.packed.size(), 5u);
  const auto model = sample::exported(quantized);
  const onnx::NodeProto* lstm = nullptr;
  for (const auto& node : model->proto.graph().node()) {
    if (node.op_type() == "LSTM") lstm = &node;
  }
  ASSERT_NE(lstm, nullptr);
  for (int i = 1; i < 3; ++i) {
    const onnx::NodeProto& whole = model->producer(lstm->input(i));
    EXPECT_EQ(whole.op_type(), "Unsqueeze");
    const onnx::NodeProto& floats = model->producer(whole.input(0));
    EXPECT_EQ(floats.op_type(), "DequantizeLinear");
    EXPECT_EQ(model->initializers.at(floats.input(0))->data_type(),
              onnx::TensorProto::INT8);
  }
  // Eight bits change little.
  const std::vector<NetOutput> a = run(artifact_of(detector()), 2, 9),
                               b = run(quantized, 2, 9);
  for (size_t i = 0; i < 2; ++i) {
    double difference = 0;
    for (size_t k = 0; k < a[i].values.size(); ++k)
      difference =
          std::max(difference, std::abs(double{a[i].values[k]} - b[i].values[k]));
    EXPECT_LT(difference, 0.02);
    EXPECT_GT(difference, 1e-6);
  }
}

// A net of one three-dimensional input, features turned for the LSTM, averaged over time.
TEST(OnnxSignal, ASequenceNetOfOneInput) {
  Graph g;
  g.input("x", {"n", "4", "6"});
  g.floats("w", {1, 8, 4}), g.floats("r", {1, 8, 2});
  Graph::ints(g.node("Transpose", {"x"}, {"time_first"}), "perm", {2, 0, 1});
  Graph::integer(g.node("LSTM", {"time_first", "w", "r"}, {"every"}), "hidden_size", 2);
  g.numbers("one", {1});
  g.node("Squeeze", {"every", "one"}, {"h"});
  Graph::ints(g.node("Transpose", {"h"}, {"back"}), "perm", {1, 2, 0});
  Graph::integer(Graph::ints(g.node("ReduceMean", {"back"}, {"y"}), "axes", {-1}),
                 "keepdims", 0);
  const ImportedGraph found = take(g.import({"y"}));
  EXPECT_THAT(ops(found.program), ElementsAre("transpose", "lstm", "slice", "transpose",
                                              "reshape", "global_average_pool"));
  EXPECT_THAT(found.program.outputs[0].shape, ElementsAre("batch", "2"));
  Executor net =
      take(Executor::create(std::make_shared<const Artifact>(artifact_of(found)), {}));
  std::vector<float> x(2 * 24, 0.25f), y(4);
  const Ints shape = {2, 4, 6};
  EXPECT_TRUE(net.forward_images(x, shape, MatrixView<float>(y.data(), 2, 2)).ok());
  EXPECT_EQ(y[0], y[2]);
  EXPECT_NE(y[0], 0);
}

TEST(OnnxSignal, RefusesByName) {
  struct Case {
    std::function<void(Graph&)> build;
    std::map<std::string, int64_t> sizes;
    StatusCode code;
    const char* message;
  };
  const auto plain = [](Graph& g) { g.input("x", {"n", "4", "6"}); };
  const std::vector<Case> cases = {
      {[](Graph& g) { build_detector(g); },
       {},
       StatusCode::unsupported,
       "[onnx] input input: sizes after the batch must be fixed; found `sequence`; give "
       "it with "
       "--size sequence=N"},
      {[](Graph& g) { build_detector(g); },
       {{"sequence", 12}, {"length", 3}},
       StatusCode::invalid_argument,
       "[onnx] --size length: an open size of the inputs other than the batch, or an "
       "integer "
       "input, was required; found none of this name; there are sequence, sr"},
      // 28 samples leave two frames: the other branch, which holds a GRU.
      {[](Graph& g) { build_detector(g); },
       {{"sequence", 28}},
       StatusCode::unsupported,
       "[onnx] frame/else: GRU has no form in a program"},
      {[&](Graph& g) {
         plain(g);
         g.floats("w", {2, 8, 6}), g.floats("r", {2, 8, 2});
         Graph::ints(g.node("Transpose", {"x"}, {"t"}), "perm", {1, 0, 2});
         Graph::text(g.node("LSTM", {"t", "w", "r"}, {"output"}), "direction",
                     "bidirectional");
       },
       {},
       StatusCode::unsupported,
       "[onnx] output: LSTM runs forward with its usual activations"},
      {[&](Graph& g) {
         plain(g);
         g.floats("w", {3, 4, 3});
         Graph::ints(g.node("Conv", {"x", "w"}, {"output"}), "pads", {2, 0});
       },
       {},
       StatusCode::unsupported,
       "[onnx] output: Conv needs the same padding at both ends and one stride; found "
       "pads [2, 0]"},
      {[&](Graph& g) {
         plain(g);
         g.number("three", 3);
         g.node("Pow", {"x", "three"}, {"output"});
       },
       {},
       StatusCode::unsupported,
       "[onnx] output: Pow is a square or a square root; found the exponent 3"},
      {[&](Graph& g) {
         plain(g);
         g.numbers("shape", {-1, 6});
         g.node("Reshape", {"x", "shape"}, {"output"});
       },
       {},
       StatusCode::unsupported,
       "[onnx] output: Reshape needs sizes that follow from the inputs', with one "
       "batch"}};
  for (const Case& row : cases) {
    Graph g;
    row.build(g);
    const auto found = g.import({"output"}, row.sizes);
    EXPECT_EQ(found.status().code(), row.code) << row.message;
    EXPECT_THAT(found.status().message(), HasSubstr(row.message));
  }
}

}  // namespace
}  // namespace nibble
