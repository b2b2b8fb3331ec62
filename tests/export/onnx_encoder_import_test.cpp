// Encoders as other exporters write them, made node by node here: every pattern gives the
// program and the numbers of the checkpoint whose weights it has; what is none is
// refused.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "export/onnx/import_encoder.h"
#include "kernels/runtime/executor.h"
#include "recipes/models/architecture.h"
#include "recipes/models/initialise.h"
#include "tests/export/onnx_model.h"

namespace nibble {
namespace {

using sample::take;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr const char* kConfig =
    "{\"vocab_size\": 31, \"hidden_size\": 16, \"num_hidden_layers\": 2, "
    "\"num_attention_heads\": 2, \"intermediate_size\": 24, \"max_position_embeddings\": "
    "80, "
    "\"layer_norm_eps\": 1e-6, \"hidden_act\": \"";

enum class Norm { whole, pow, mul };
enum class Gate { whole, after, before, tanh };
enum class Mask { added, chosen, gathered, none, causal, late };

// One BERT, written down.
class Written {
 public:
  Norm norm = Norm::whole;
  Gate gate = Gate::whole;
  Mask mask = Mask::added;
  bool gemm = false, types = true;
  bool scale_on_queries =
      false;  // and on keys, which are turned with batch and heads as one
  std::function<void(onnx::GraphProto&)> edit = [](onnx::GraphProto&) {};

  Artifact artifact() const {
    Artifact result;
    result.config_json = cat(kConfig, gate == Gate::tanh ? "gelu_new" : "gelu", "\"}");
    result.program =
        take(take(find_architecture("BertModel"))->program(result.config_json));
    result.tensors = take(initialise(result.program, 0.4, 3));
    SplitMix64 random(8);
    for (auto& [name, tensor] : result.tensors) {
      if (tensor.shape.size() == 1)
        tensor = sample::random_tensor(tensor.shape, 0.3, random, 0.8);
    }
    return result;
  }

  Result<ImportedGraph> import() {
    const Artifact model = artifact();
    proto_.add_opset_import()->set_version(17);
    for (const char* input : {"ids", "attention_mask", "types"}) {
      if (!types && input == std::string("types")) continue;
      auto* info = graph().add_input();
      info->set_name(input);
      auto* type = info->mutable_type()->mutable_tensor_type();
      type->set_elem_type(onnx::TensorProto::INT64);
      type->mutable_shape()->add_dim()->set_dim_param("b");
      type->mutable_shape()->add_dim()->set_dim_param("s");
    }
    for (const auto& [name, tensor] : model.tensors) {
      // As exporters do: weights of products lose their names and lie the other way.
      const bool turned = tensor.shape.size() == 2 &&
                          name.find("embedding") == std::string::npos && !gemm;
      auto* out = graph().add_initializer();
      out->set_name(turned ? "onnx::" + name.substr(0, name.size() - 7) : name);
      out->set_data_type(onnx::TensorProto::FLOAT);
      const std::vector<float> values = take(to_float(tensor));
      const int64_t rows = tensor.shape[0], cols = tensor.cols();
      out->add_dims(turned ? cols : rows);
      if (tensor.shape.size() == 2) out->add_dims(turned ? rows : cols);
      for (int64_t i = 0; i < rows * cols; ++i) {
        out->add_float_data(
            values[static_cast<size_t>(turned ? (i % rows) * cols + i / rows : i)]);
      }
    }
    build();
    edit(graph());
    graph().add_output()->set_name("last");
    return import_encoder(proto_, {});
  }
  onnx::GraphProto& graph() { return *proto_.mutable_graph(); }

  onnx::NodeProto& node(const char* op, std::vector<std::string> inputs,
                        const std::string& out) {
    auto* node = graph().add_node();
    node->set_op_type(op);
    node->set_name("/" + out);
    for (const std::string& input : inputs) node->add_input(input);
    node->add_output(out);
    return *node;
  }
  static void set(onnx::NodeProto& node, const char* name, int64_t value) {
    auto* attribute = node.add_attribute();
    attribute->set_name(name);
    attribute->set_i(value);
  }
  static void set(onnx::NodeProto& node, const char* name, std::vector<int64_t> values) {
    auto* attribute = node.add_attribute();
    attribute->set_name(name);
    for (const int64_t value : values) attribute->add_ints(value);
  }
  std::string number(const std::string& name, float value) {
    auto* tensor = graph().add_initializer();
    tensor->set_name(name);
    tensor->set_data_type(onnx::TensorProto::FLOAT);
    tensor->add_float_data(value);
    return name;
  }
  std::string integers(const std::string& name, std::vector<int64_t> values,
                       bool scalar = false) {
    auto* tensor = graph().add_initializer();
    tensor->set_name(name);
    tensor->set_data_type(onnx::TensorProto::INT64);
    if (!scalar) tensor->add_dims(static_cast<int64_t>(values.size()));
    for (const int64_t value : values) tensor->add_int64_data(value);
    return name;
  }

 private:
  void layer_norm(const std::string& x, const std::string& stem, const std::string& out) {
    if (norm == Norm::whole) {
      auto& made = node("LayerNormalization", {x, stem + ".weight", stem + ".bias"}, out);
      auto* epsilon = made.add_attribute();
      epsilon->set_name("epsilon");
      epsilon->set_f(1e-6f);
      return;
    }
    const auto mean = [&](const std::string& of, const std::string& to) {
      auto& made = node("ReduceMean", {of}, to);
      set(made, "axes", std::vector<int64_t>{-1});
    };
    mean(x, out + ".mean");
    node("Sub", {x, out + ".mean"}, out + ".centred");
    if (norm == Norm::pow) {
      node("Pow", {out + ".centred", number(out + ".two", 2)}, out + ".square");
    } else {
      node("Mul", {out + ".centred", out + ".centred"}, out + ".square");
    }
    mean(out + ".square", out + ".variance");
    node("Add", {out + ".variance", number(out + ".epsilon", 1e-6f)}, out + ".shifted");
    node("Sqrt", {out + ".shifted"}, out + ".root");
    if (norm == Norm::pow) {
      node("Div", {out + ".centred", out + ".root"}, out + ".normal");
    } else {
      node("Reciprocal", {out + ".root"}, out + ".inverse");
      node("Mul", {out + ".inverse", out + ".centred"}, out + ".normal");
    }
    node("Mul", {out + ".normal", stem + ".weight"}, out + ".weighted");
    node("Add", {stem + ".bias", out + ".weighted"}, out);
  }

  void linear(const std::string& x, const std::string& stem, const std::string& out) {
    if (!gemm) {
      node("MatMul", {x, "onnx::" + stem}, out + ".product");
      node("Add", {stem + ".bias", out + ".product"}, out);
      return;
    }
    const Artifact model = artifact();
    const Tensor& weight = model.tensors.at(stem + ".weight");
    node("Reshape", {x, integers(out + ".rows", {-1, weight.shape[1]})}, out + ".flat");
    set(node("Gemm", {out + ".flat", stem + ".weight", stem + ".bias"}, out + ".gemm"),
        "transB", int64_t{1});
    size(out, 0, "ids");
    size(out, 1, "ids");
    integers(out + ".features", {weight.shape[0]});
    set(node("Concat", {out + ".size0", out + ".size1", out + ".features"},
             out + ".shape"),
        "axis", int64_t{0});
    node("Reshape", {out + ".gemm", out + ".shape"}, out);
  }

  // One size of a value as a list, the way tracing writes it.
  void size(const std::string& out, int64_t axis, const std::string& of) {
    const std::string base = cat(out, ".size", axis);
    node("Shape", {of}, base + ".shape");
    node("Gather", {base + ".shape", integers(base + ".at", {axis}, true)},
         base + ".one");
    set(node("Unsqueeze", {base + ".one"}, base), "axes", std::vector<int64_t>{0});
  }

  void heads(const std::string& x, const std::string& out, std::vector<int64_t> order) {
    size(out, 0, x);
    size(out, 1, x);
    integers(out + ".two", {2});
    integers(out + ".eight", {8});
    set(node("Concat", {out + ".size0", out + ".size1", out + ".two", out + ".eight"},
             out + ".shape"),
        "axis", int64_t{0});
    node("Reshape", {x, out + ".shape"}, out + ".split");
    set(node("Transpose", {out + ".split"}, out), "perm", order);
  }

  void masks() {
    integers("one.1", {1});
    integers("two.1", {2});
    node("Unsqueeze", {"attention_mask", "one.1"}, "mask.1");
    node("Unsqueeze", {"mask.1", "two.1"}, "mask.2");
    size("mask", 0, "ids");
    size("mask", 1, "ids");
    set(node("Concat", {"mask.size0", "one.1", "mask.size1", "mask.size1"}, "mask.shape"),
        "axis", int64_t{0});
    // Where(Equal(shape, -1), 1, shape): tracing's way of Expand.
    set(node("ConstantOfShape", {"mask.four"}, "mask.ones"), "unused", int64_t{0});
    integers("mask.four", {4});
    integers("mask.open", {-1});
    node("Equal", {"mask.shape", "mask.open"}, "mask.is_open");
    node("Where", {"mask.is_open", "mask.ones", "mask.shape"}, "mask.final");
    node("Expand", {"mask.2", "mask.final"}, "mask.wide");
    set(node("Cast", {"mask.wide"}, "mask.float"), "to",
        int64_t{onnx::TensorProto::FLOAT});
    node("Sub", {number("mask.one", 1), "mask.float"}, "mask.inverse");
    set(node("Cast", {"mask.inverse"}, "mask.hides"), "to",
        int64_t{onnx::TensorProto::BOOL});
    number("lowest", std::numeric_limits<float>::lowest());
    node("Where", {"mask.hides", "lowest", "mask.inverse"}, "mask.added");
    if (mask == Mask::chosen) {
      number("minus_infinity", -std::numeric_limits<float>::infinity());
      node("Not", {"mask.hides"}, "mask.shows");
    }
    if (mask == Mask::gathered) {  // mask[batch, key] of two index arrays
      node("Range", {"zero", "mask.b", "step"}, "mask.rows");
      node("Range", {"zero", "mask.s", "step"}, "mask.columns");
      integers("zero", {0}, true);
      integers("step", {1}, true);
      node("Squeeze", {"mask.size0"}, "mask.b");
      node("Squeeze", {"mask.size1"}, "mask.s");
      integers("rows.axes", {1, 2, 3, 4});
      integers("columns.axes", {0, 1, 2, 4});
      node("Unsqueeze", {"mask.rows", "rows.axes"}, "mask.rows5");
      node("Unsqueeze", {"mask.columns", "columns.axes"}, "mask.columns5");
      integers("five.one", {1});
      set(node("Concat", {"mask.size0", "one.1", "one.1", "mask.size1", "five.one"},
               "mask.five"),
          "axis", int64_t{0});
      node("Expand", {"mask.rows5", "mask.five"}, "mask.rows_wide");
      node("Expand", {"mask.columns5", "mask.five"}, "mask.columns_wide");
      set(node("Concat", {"mask.rows_wide", "mask.columns_wide"}, "mask.places"), "axis",
          int64_t{-1});
      set(node("Cast", {"attention_mask"}, "mask.bool"), "to",
          int64_t{onnx::TensorProto::BOOL});
      node("GatherND", {"mask.bool", "mask.places"}, "mask.picked");
      node("Where", {"mask.picked", number("nothing", 0), "lowest"}, "mask.added2");
    }
    if (mask == Mask::causal) {
      integers("zero", {0}, true);
      integers("step", {1}, true);
      node("Squeeze", {"mask.size1"}, "mask.s");
      node("Range", {"zero", "mask.s", "step"}, "mask.keys");
      node("Unsqueeze", {"mask.keys", "one.1"}, "mask.queries");
      node("LessOrEqual", {"mask.keys", "mask.queries"}, "mask.before");
      node("Cast", {"mask.wide"}, "mask.token");
      set(*graph().mutable_node(graph().node_size() - 1), "to",
          int64_t{onnx::TensorProto::BOOL});
      node("And", {"mask.before", "mask.token"}, "mask.both");
      node("Where", {"mask.both", number("nothing", 0), "lowest"}, "mask.added2");
    }
  }

  void attention(const std::string& x, const std::string& layer, const std::string& out) {
    for (const char* part : {"query", "key", "value"}) {
      linear(x, layer + ".attention.self." + part, out + "." + part);
    }
    heads(out + ".query", out + ".q", {0, 2, 1, 3});
    if (scale_on_queries) {
      heads(out + ".key", out + ".k4", {0, 2, 1, 3});
      size(out, 1, "ids");
      integers(out + ".open", {-1});
      set(node("Concat", {out + ".open", out + ".size1", out + ".k4.eight"},
               out + ".three"),
          "axis", int64_t{0});
      node("Reshape", {out + ".k4", out + ".three"}, out + ".k3");
      set(node("Transpose", {out + ".k3"}, out + ".k3t"), "perm",
          std::vector<int64_t>{0, 2, 1});
      set(node("Concat",
               {out + ".open", out + ".k4.two", out + ".k4.eight", out + ".size1"},
               out + ".four"),
          "axis", int64_t{0});
      node("Reshape", {out + ".k3t", out + ".four"}, out + ".k");
    } else {
      heads(out + ".key", out + ".k", {0, 2, 3, 1});
    }
    heads(out + ".value", out + ".v", {0, 2, 1, 3});
    const auto scale = static_cast<float>(1 / std::sqrt(8.0));
    if (scale_on_queries) {
      node("Mul", {out + ".q", number(out + ".half", std::sqrt(scale))}, out + ".q2");
      node("Mul", {out + ".k", out + ".half"}, out + ".k2");
      node("MatMul", {out + ".q2", out + ".k2"}, out + ".scores");
    } else {
      node("MatMul", {out + ".q", out + ".k"}, out + ".raw");
      node("Div", {out + ".raw", number(out + ".root", std::sqrt(8.0f))},
           out + ".scores");
    }
    if (mask == Mask::none) {
      node("Identity", {out + ".scores"}, out + ".masked");
    } else if (mask == Mask::chosen) {
      node("Where", {"mask.shows", out + ".scores", "minus_infinity"}, out + ".masked");
    } else {
      node("Add",
           {mask == Mask::added  ? "mask.added"
            : mask == Mask::late ? "mask.inverse"
                                 : "mask.added2",
            out + ".scores"},
           out + ".masked");
    }
    set(node("Softmax", {out + ".masked"}, out + ".soft"), "axis", int64_t{-1});
    node("IsNaN", {out + ".soft"}, out + ".nan");
    node("Where", {out + ".nan", number(out + ".zero", 0), out + ".soft"}, out + ".p");
    node("MatMul", {out + ".p", out + ".v"}, out + ".mixed");
    set(node("Transpose", {out + ".mixed"}, out + ".back"), "perm",
        std::vector<int64_t>{0, 2, 1, 3});
    node("Reshape", {out + ".back", integers(out + ".joined", {0, 0, 16})}, out);
  }

  void activation(const std::string& x, const std::string& out) {
    switch (gate) {
      case Gate::whole:
        node("Gelu", {x}, out);
        return;
      case Gate::after:  // x (1 + erf(x / sqrt 2)) / 2
        node("Div", {x, number(out + ".root", std::sqrt(2.0f))}, out + ".z");
        node("Erf", {out + ".z"}, out + ".erf");
        node("Add", {out + ".erf", number(out + ".one", 1)}, out + ".gate");
        node("Mul", {x, out + ".gate"}, out + ".twice");
        node("Mul", {out + ".twice", number(out + ".half", 0.5f)}, out);
        return;
      case Gate::before:
        node("Mul", {x, number(out + ".root", std::sqrt(0.5f))}, out + ".z");
        node("Erf", {out + ".z"}, out + ".erf");
        node("Add", {number(out + ".one", 1), out + ".erf"}, out + ".gate");
        node("Mul", {x, number(out + ".half", 0.5f)}, out + ".halved");
        node("Mul", {out + ".halved", out + ".gate"}, out);
        return;
      case Gate::tanh:
        node("Mul", {number(out + ".half", 0.5f), x}, out + ".halved");
        node("Pow", {x, number(out + ".three", 3)}, out + ".cube");
        node("Mul", {out + ".cube", number(out + ".bend", 0.044715f)}, out + ".bent");
        node("Add", {x, out + ".bent"}, out + ".sum");
        node("Mul", {out + ".sum", number(out + ".root", 0.7978845608f)}, out + ".angle");
        node("Tanh", {out + ".angle"}, out + ".tanh");
        node("Add", {out + ".tanh", number(out + ".one", 1)}, out + ".gate");
        node("Mul", {out + ".halved", out + ".gate"}, out);
        return;
    }
  }

  void build() {
    masks();
    // Positions: a buffer [1, 80] cut to the sequence.
    std::vector<int64_t> places;
    for (int64_t i = 0; i < 80; ++i) places.push_back(i);
    integers("buffer", places);
    graph().mutable_initializer(graph().initializer_size() - 1)->clear_dims();
    graph().mutable_initializer(graph().initializer_size() - 1)->add_dims(1);
    graph().mutable_initializer(graph().initializer_size() - 1)->add_dims(80);
    integers("from.0", {0});
    integers("axis.1", {1});
    size("cut", 1, "ids");
    node("Slice", {"buffer", "from.0", "cut.size1", "axis.1"}, "places");
    if (!types) {
      node("Expand", {"type", "cut.two"}, "types");
      integers("type", {1});
      size("cut", 0, "ids");
      set(node("Concat", {"cut.size0", "cut.size1"}, "cut.two"), "axis", int64_t{0});
    }
    node("Gather", {"embeddings.word_embeddings.weight", "ids"}, "words");
    node("Gather", {"embeddings.token_type_embeddings.weight", "types"}, "typed");
    node("Add", {"words", "typed"}, "both");
    node("Gather", {"embeddings.position_embeddings.weight", "places"}, "placed");
    node("Add", {"both", "placed"}, "embedded");
    layer_norm("embedded", "embeddings.LayerNorm", "x.0");
    std::string x = "x.0";
    for (int i = 0; i < 2; ++i) {
      const std::string layer = cat("encoder.layer.", i), at = cat("l", i);
      attention(x, layer, at + ".mixed");
      linear(at + ".mixed", layer + ".attention.output.dense", at + ".o");
      node("Add", {at + ".o", x}, at + ".middle");
      layer_norm(at + ".middle", layer + ".attention.output.LayerNorm", at + ".h");
      linear(at + ".h", layer + ".intermediate.dense", at + ".wide");
      activation(at + ".wide", at + ".active");
      linear(at + ".active", layer + ".output.dense", at + ".down");
      node("Add", {at + ".down", at + ".h"}, at + ".sum");
      x = i == 1 ? "last" : cat("x.", i + 1);
      layer_norm(at + ".sum", layer + ".output.LayerNorm", x);
    }
    sort();
  }

  // Nodes are written as it is easiest to read; a graph has them in order.
  void sort() {
    std::set<std::string> known;
    for (const auto& tensor : graph().initializer()) known.insert(tensor.name());
    for (const auto& input : graph().input()) known.insert(input.name());
    std::vector<onnx::NodeProto> left(graph().node().begin(), graph().node().end());
    graph().clear_node();
    while (!left.empty()) {
      std::vector<onnx::NodeProto> later;
      for (onnx::NodeProto& item : left) {
        const bool ready =
            std::all_of(item.input().begin(), item.input().end(),
                        [&](const std::string& name) { return known.count(name); });
        if (!ready) {
          later.push_back(item);
          continue;
        }
        known.insert(item.output().begin(), item.output().end());
        *graph().add_node() = item;
      }
      if (later.size() == left.size())
        throw std::runtime_error("a cycle at " + left[0].name());
      left = std::move(later);
    }
  }

  onnx::ModelProto proto_;
};

std::vector<float> states(const Program& program,
                          const std::map<std::string, Tensor>& tensors,
                          const std::vector<int32_t>& types) {
  auto artifact = std::make_shared<Artifact>();
  artifact->program = program;
  artifact->tensors = tensors;
  Executor executor = take(Executor::create(artifact, {}));
  const std::vector<int32_t> ids = {3, 10, 17, 24, 30, 5, 6, 7};
  const std::vector<int64_t> lengths = {3, 5};
  std::vector<float> values(8 * 16);
  const Status status =
      executor.encode(ids, lengths, types, MatrixView<float>(values.data(), 8, 16));
  EXPECT_TRUE(status.ok()) << status.message();
  return values;
}

TEST(OnnxEncoderImport, EveryPatternGivesTheCheckpointsStates) {
  const std::vector<int32_t> types = {0, 1, 1, 0, 0, 0, 1, 1}, ones(8, 1);
  int cases = 0;
  for (const Norm norm : {Norm::whole, Norm::pow, Norm::mul}) {
    for (const Gate gate : {Gate::whole, Gate::after, Gate::before, Gate::tanh}) {
      for (const Mask mask : {Mask::added, Mask::chosen, Mask::gathered}) {
        SCOPED_TRACE(
            cat(static_cast<int>(norm), static_cast<int>(gate), static_cast<int>(mask)));
        Written graph;
        graph.norm = norm;
        graph.gate = gate;
        graph.mask = mask;
        graph.gemm = ++cases % 3 == 0;
        graph.types = cases % 4 != 0;
        graph.scale_on_queries = cases % 2 == 0;
        const Artifact expected = graph.artifact();
        const ImportedGraph found = take(graph.import());
        EXPECT_EQ(found.program.vocabulary, 31);
        EXPECT_EQ(found.program.context_length, 80);
        EXPECT_EQ(found.program.block_count(), 2);
        EXPECT_EQ(found.program.inputs.size(), graph.types ? 2u : 1u);
        // The products got their names back from their biases.
        for (const auto& [name, tensor] : expected.tensors) {
          if (name.rfind("encoder.", 0) != 0) continue;
          ASSERT_TRUE(found.tensors.count(name)) << name;
          EXPECT_EQ(tensor.bytes.text(), found.tensors.at(name).bytes.text()) << name;
        }
        const std::vector<float> theirs =
            states(expected.program, expected.tensors, graph.types ? types : ones);
        const std::vector<float> ours = states(
            found.program, found.tensors, graph.types ? types : std::vector<int32_t>{});
        for (size_t i = 0; i < ours.size(); ++i)
          ASSERT_NEAR(ours[i], theirs[i], 2e-5) << i;
      }
    }
  }
}

TEST(OnnxEncoderImport, BlocksAndNodesAreTheCheckpoints) {
  Written graph;
  const ImportedGraph found = take(graph.import());
  const Program expected = graph.artifact().program;
  ASSERT_EQ(found.program.nodes.size(), expected.nodes.size());
  for (size_t i = 0; i < expected.nodes.size(); ++i) {
    EXPECT_EQ(found.program.nodes[i].op, expected.nodes[i].op) << i;
    EXPECT_EQ(found.program.nodes[i].block, expected.nodes[i].block) << i;
  }
  EXPECT_NE(found.program.find("encoder.layer.1.attention.self.query"), nullptr);
  EXPECT_NE(found.program.find("encoder.layer.1.attention.self.attention"), nullptr);
  EXPECT_NEAR(
      found.program.find("encoder.layer.0.attention.self.attention")->number("scale", 0),
      1 / std::sqrt(8.0), 1e-6);
}

TEST(OnnxEncoderImport, WhatIsNoPatternIsRefusedByItsNode) {
  const auto rename = [](const char* name, const char* op) {
    return [=](onnx::GraphProto& graph) {
      for (auto& node : *graph.mutable_node()) {
        if (node.name() == name) node.set_op_type(op);
      }
    };
  };
  const auto number = [](const char* name, float value) {
    return [=](onnx::GraphProto& graph) {
      for (auto& tensor : *graph.mutable_initializer()) {
        if (tensor.name() == name) tensor.set_float_data(0, value);
      }
    };
  };
  struct Case {
    std::function<void(Written&)> change;
    const char* message;
  };
  const std::vector<Case> cases = {
      {[](Written& g) { g.mask = Mask::causal; },
       "[onnx] /l0.mixed.masked: Add of scores must hide padding from every token, and "
       "nothing "
       "else (0 where attention_mask is 1, -10000 or less where it is 0); found another "
       "mask, "
       "`mask.added2`"},
      {[](Written& g) { g.mask = Mask::late; },
       "[onnx] /l0.mixed.masked: Add of scores must hide padding"},
      {[](Written& g) { g.mask = Mask::none; },
       "[onnx] /l0.mixed.mixed: MatMul of probabilities that saw padding: scores must be "
       "masked"},
      {[&](Written& g) { g.edit = rename("/l1.active", "Selu"); },
       "[onnx] /l1.active: Selu has no form in an encoder's program"},
      {[&](Written& g) {
         g.gate = Gate::after;
         g.edit = number("l0.active.root", 1.5f);
       },
       "[onnx] /l0.active.erf: Erf is a step of a gelu; found another"},
      {[&](Written& g) {
         g.gate = Gate::after;
         g.edit = number("l0.active.one", 1.25f);
       },
       "[onnx] /l0.active.gate: Add reads a value of the network as input 0; found a "
       "step of a "
       "pattern that it does not go on"},
      {[&](Written& g) {
         g.norm = Norm::pow;
         g.edit = number("x.0.two", 4);
       },
       "[onnx] /x.0.square: Pow is a step of a norm or a gelu; found another power"},
      {[&](Written& g) { g.edit = rename("/l0.mixed.soft", "LogSoftmax"); },
       "[onnx] /l0.mixed.soft: LogSoftmax has no form in an encoder's program"},
      {[&](Written& g) {
         g.edit = [](onnx::GraphProto& graph) {
           for (auto& node : *graph.mutable_node()) {
             if (node.name() == "/l0.mixed.q") node.mutable_attribute(0)->set_ints(1, 1);
             if (node.name() == "/l0.mixed.q") node.mutable_attribute(0)->set_ints(2, 2);
           }
         };
       },
       "[onnx] /l0.mixed.raw: MatMul is a value times a constant, queries times keys"},
      {[&](Written& g) {
         g.edit = [](onnx::GraphProto& graph) {
           auto* dim = graph.mutable_input(0)
                           ->mutable_type()
                           ->mutable_tensor_type()
                           ->mutable_shape()
                           ->mutable_dim(1);
           dim->set_dim_value(128);
         };
       },
       "[onnx] input ids: open sizes [batch, sequence] were required; found 2 "
       "dimensions, a "
       "fixed one; export with dynamic axes"},
      {[&](Written& g) { g.edit = [](onnx::GraphProto& graph) { graph.clear_node(); }; },
       "[onnx] graph: an output that the network makes was required; found `last`"},
      {[&](Written& g) {
         g.types = false;
         g.edit = [](onnx::GraphProto& graph) {
           for (auto& node : *graph.mutable_node()) {
             if (node.name() == "/words") node.set_input(1, "places");
           }
         };
       },
       "needs an embedding of token ids; found positions alone"}};
  for (const Case& row : cases) {
    Written graph;
    row.change(graph);
    const auto found = graph.import();
    EXPECT_EQ(found.status().code(), StatusCode::unsupported) << row.message;
    EXPECT_THAT(found.status().message(), HasSubstr(row.message));
  }
}

// What only another output reads is left out, and the ledger says so.
TEST(OnnxEncoderImport, AnotherOutputsLayersAreLeftOut) {
  Written graph;
  graph.edit = [&](onnx::GraphProto&) {
    auto* tensor = graph.graph().add_initializer();
    tensor->set_name("pooler.dense.weight");
    tensor->set_data_type(onnx::TensorProto::FLOAT);
    for (const int64_t dim : {16, 16}) tensor->add_dims(dim);
    for (int i = 0; i < 256; ++i) tensor->add_float_data(0.5f);
    graph.integers("first", {0}, true);
    Written::set(graph.node("Gather", {"last", "first"}, "cls"), "axis", int64_t{1});
    graph.node("MatMul", {"cls", "pooler.dense.weight"}, "pooled");
    graph.node("Tanh", {"pooled"}, "pooler_output");
  };
  const ImportedGraph found = take(graph.import());
  ASSERT_EQ(found.ledger.entries.size(), 1u);
  EXPECT_EQ(found.ledger.entries[0].tensor, "pooler.dense.weight");
  EXPECT_EQ(found.ledger.entries[0].method, "ignored");
  EXPECT_THAT(found.ledger.entries[0].reason, HasSubstr("256 values left out"));
}

// Whatever a graph says, it is read or refused.
TEST(OnnxEncoderImport, DamagedGraphsAreReadOrRefused) {
  const std::vector<const char*> ops = {
      "Add",      "Sub",  "Where",   "Slice", "Gather",  "Reshape", "Concat", "Expand",
      "GatherND", "Clip", "Softmax", "Range", "Greater", "Flatten", "If"};
  SplitMix64 random(17);
  const auto below = [&](int n) { return static_cast<int>(random.uniform() * n); };
  int read = 0, refused = 0;
  for (int round = 0; round < 200; ++round) {
    Written graph;
    graph.norm = round % 2 == 0 ? Norm::pow : Norm::mul;
    graph.gate = round % 3 == 0 ? Gate::after : Gate::tanh;
    graph.mask = round % 5 == 0 ? Mask::chosen : Mask::gathered;
    graph.gemm = round % 7 == 0;
    graph.edit = [&](onnx::GraphProto& proto) {
      auto& node = *proto.mutable_node(below(proto.node_size()));
      auto& tensor = *proto.mutable_initializer(below(proto.initializer_size()));
      switch (round % 8) {
        case 0:
          node.set_op_type(ops[static_cast<size_t>(below(static_cast<int>(ops.size())))]);
          break;
        case 1:
          node.clear_input();
          break;
        case 2:
          node.mutable_input()->RemoveLast();
          break;
        case 3:
          if (node.input_size() > 0) node.set_input(0, "");
          break;
        case 4:
          node.clear_attribute();
          break;
        case 5:
          if (tensor.int64_data_size() > 0)
            tensor.set_int64_data(0, (below(5) - 2) * 4611686018427387903);
          break;
        case 6:
          if (node.input_size() > 0) {
            node.set_input(0, proto.node(below(proto.node_size())).output(0));
          }
          break;
        case 7:
          tensor.clear_dims();
          tensor.add_dims(tensor.int64_data_size() + tensor.float_data_size());
          break;
      }
    };
    (graph.import().ok() ? read : refused) += 1;
  }
  EXPECT_GT(read, 10);
  EXPECT_GT(refused, 50);
}

}  // namespace
}  // namespace nibble
