// Where QuantizeLinear and DequantizeLinear stand in an exported net, by the rules of
// ONNX Runtime's quantization and of TensorRT's explicit quantization, each written down
// here from their documents and looked for in the graph.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>

#include "kernels/program/edits/fold_batch_norm.h"
#include "recipes/models/load_model.h"
#include "tests/export/onnx_model.h"

namespace nibble {
namespace {

using sample::attribute;
using sample::exported;
using sample::Model;
using sample::take;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// What breaks a rule, one line each.
class Rules {
 public:
  Rules(const Model& model, bool tensorrt) : model_(model), tensorrt_(tensorrt) {
    for (const auto& node : model.proto.graph().node()) {
      for (const std::string& input : node.input()) readers_[input].push_back(&node);
    }
    for (const auto& node : model.proto.graph().node()) look_at(node);
  }
  const std::vector<std::string>& broken() const { return broken_; }
  std::map<std::string, int> counts;  // of what was looked at

 private:
  void fail(const onnx::NodeProto& node, const std::string& what) {
    broken_.push_back(node.name() + ": " + what);
  }
  const onnx::NodeProto* maker(const std::string& value) const {
    const auto found = model_.producers.find(value);
    return found == model_.producers.end() ? nullptr : found->second;
  }
  const onnx::TensorProto* constant(const std::string& value) const {
    const auto found = model_.initializers.find(value);
    return found == model_.initializers.end() ? nullptr : found->second;
  }
  bool is_dequantized(const std::string& value) const {
    const onnx::NodeProto* node = maker(value);
    return node != nullptr && node->op_type() == "DequantizeLinear";
  }
  static bool all_zero(const onnx::TensorProto& tensor) {
    for (const char byte : tensor.raw_data()) {
      if (byte != 0) return false;
    }
    return true;
  }

  void look_at(const onnx::NodeProto& node) {
    const std::string& op = node.op_type();
    if (op == "QuantizeLinear" || op == "DequantizeLinear") look_at_pair(node);
    if (op == "Conv" || op == "MatMul") look_at_product(node);
    if (op == "Add" && constant(node.input(1)) == nullptr &&
        maker(node.input(1))->input(0).find("bias") == std::string::npos) {
      ++counts["residual sums"];
      // Both branches of a residual sum are dequantized values, so that it joins the
      // convolution before it.
      for (const std::string& input : node.input()) {
        if (!is_dequantized(input)) fail(node, "its operand " + input + " has no pair");
      }
    }
    // No pair between an average and what reads it: it follows at once.
    if (op == "GlobalAveragePool") {
      ++counts["pools"];
      for (const auto* reader : readers_[node.output(0)]) {
        if (reader->op_type() != "QuantizeLinear")
          fail(node, "no pair follows it at once");
      }
      if (!is_dequantized(node.input(0))) fail(node, "its input has no pair");
    }
  }

  // One constant scale > 0 and a zero point of 0; each code is dequantized as it was
  // made.
  void look_at_pair(const onnx::NodeProto& node) {
    ++counts[node.op_type()];
    const onnx::TensorProto* scale = constant(node.input(1));
    if (scale == nullptr) return fail(node, "its scale is no constant");
    if (node.input_size() > 2 && !all_zero(*constant(node.input(2)))) {
      fail(node, "its zero point is not 0");
    }
    const onnx::TensorProto* codes = constant(node.input(0));
    const auto type = node.input_size() > 2 ? constant(node.input(2))->data_type()
                      : codes != nullptr    ? codes->data_type()
                                            : onnx::TensorProto::UNDEFINED;
    const bool is_int8 = type == onnx::TensorProto::INT8;
    const bool is_bias = codes != nullptr && type == onnx::TensorProto::INT32;
    if (tensorrt_ && !is_int8) fail(node, "its codes are not INT8");
    if (!tensorrt_ && !is_int8 && !is_bias && type != onnx::TensorProto::UINT8) {
      fail(node, "its codes are neither INT8 nor UINT8");
    }
    if (codes == nullptr && scale->dims_size() != 0)
      fail(node, "a value needs one scale");
    if (node.op_type() == "QuantizeLinear") {
      for (const auto* reader : readers_[node.output(0)]) {
        if (reader->op_type() != "DequantizeLinear" ||
            reader->input(1) != node.input(1) || reader->input(2) != node.input(2)) {
          fail(node, "what reads its codes is not its DequantizeLinear");
        }
      }
      // A product that a ReLU reads is not quantized before the ReLU.
      const onnx::NodeProto* source = maker(node.input(0));
      if (source != nullptr && source->op_type() == "Clip")
        source = maker(source->input(0));
      if (source != nullptr && source->op_type() == "Conv") {
        for (const auto* reader : readers_[source->output(0)]) {
          if (reader->op_type() == "Relu") fail(node, "it stands before a ReLU");
        }
      }
    }
  }

  // Both operands dequantized: a value of a pair, and constant codes with scales along
  // the output channels. The bias: codes at the product of the scales, or float for
  // TensorRT.
  void look_at_product(const onnx::NodeProto& node) {
    ++counts["products"];
    if (!is_dequantized(node.input(0))) fail(node, "its input has no pair");
    if (!is_dequantized(node.input(1))) return fail(node, "its weight has no pair");
    const onnx::NodeProto& weight = *maker(node.input(1));
    const onnx::TensorProto* codes = constant(weight.input(0));
    const onnx::TensorProto* scale = constant(weight.input(1));
    if (codes == nullptr || codes->data_type() != onnx::TensorProto::INT8) {
      return fail(node, "its weight is not constant INT8");
    }
    const int64_t axis = node.op_type() == "Conv" ? 0 : 1;
    if (scale->dims_size() == 1 &&
        (attribute(weight, "axis", 1) != axis ||
         scale->dims(0) != codes->dims(static_cast<int>(axis)))) {
      fail(node, "its weight's scales are not the output channels'");
    }
    if (node.input_size() < 3) return;
    if (tensorrt_) {
      const onnx::TensorProto* bias = constant(node.input(2));
      if (bias == nullptr || bias->data_type() != onnx::TensorProto::FLOAT) {
        fail(node, "its bias is not a float constant");
      }
      return;
    }
    if (!is_dequantized(node.input(2))) return fail(node, "its bias has no codes");
    const onnx::NodeProto& bias = *maker(node.input(2));
    const auto floats = [&](const std::string& name) {
      const std::string& raw = constant(name)->raw_data();
      std::vector<float> values(raw.size() / 4);
      std::memcpy(values.data(), raw.data(), raw.size());
      return values;
    };
    const float x = floats(maker(node.input(0))->input(1))[0];
    const std::vector<float> w = floats(weight.input(1)), b = floats(bias.input(1));
    for (size_t c = 0; c < b.size(); ++c) {
      if (b[c] != x * w[w.size() == 1 ? 0 : c]) {
        return fail(node, "its bias's scale is not input times weight");
      }
    }
  }

  const Model& model_;
  bool tensorrt_;
  std::map<std::string, std::vector<const onnx::NodeProto*>> readers_;
  std::vector<std::string> broken_;
};

// ResNet-20 as recipe w8a8-static quantizes it; scales do not matter here.
std::optional<Artifact> resnet20(const char* unsigned_activation) {
  const auto file = std::filesystem::path(NIBBLE_SOURCE_DIR).parent_path() /
                    "shared/data/models/cifar10_resnet/resnet20_cifar10.safetensors";
  if (!std::filesystem::exists(file)) return {};
  Artifact artifact = take(load_model(file, {}));
  FoldedModel folded = take(fold_batch_norm(artifact.program, artifact.tensors));
  artifact.program = folded.program;
  artifact.tensors = folded.tensors;
  artifact = sample::quantized(std::move(artifact), "int8/r@f32");
  sample::add_activations(
      artifact,
      [](const std::string& value) {
        return 1.0 + 0.01 * static_cast<double>(value.size());
      },
      kSignedActivation, unsigned_activation);
  return artifact;
}

struct Runtime {
  const char* target;
  const char* unsigned_activation;
};
class Placement : public ::testing::TestWithParam<Runtime> {
 protected:
  ExportOptions options() const {
    ExportOptions options;
    options.target = GetParam().target;
    return options;
  }
  bool tensorrt() const { return options().target == "tensorrt"; }
};
TEST_P(Placement, OfResNet20KeepsEveryRule) {
  const auto artifact = resnet20(GetParam().unsigned_activation);
  if (!artifact) GTEST_SKIP() << "shared/data has no ResNet-20";
  const auto model = exported(*artifact, options());
  Rules rules(*model, tensorrt());
  EXPECT_THAT(rules.broken(), IsEmpty());
  EXPECT_EQ(rules.counts["products"], 20);
  EXPECT_EQ(rules.counts["residual sums"], 9);
  EXPECT_EQ(rules.counts["pools"], 1);
  // The input, 19 ReLUs, 9 sums' other operands, 2 shortcuts' Slice and Pad, the pool and
  // its Flatten.
  EXPECT_EQ(rules.counts["QuantizeLinear"], 1 + 19 + 9 + 4 + 2);
}
// A rule that a graph breaks is seen.
TEST_P(Placement, OfADamagedGraphIsSeen) {
  Artifact artifact = sample::quantized(sample::residual_net(1), "int8/r@f32");
  sample::add_activations(
      artifact, [](const std::string&) { return 2.5; }, kSignedActivation,
      GetParam().unsigned_activation);
  const auto broken_by = [&](const std::function<void(onnx::GraphProto&)>& damage) {
    const auto model = exported(artifact, options());
    damage(*model->proto.mutable_graph());
    Model again;
    again.proto = model->proto;
    for (const auto& tensor : again.proto.graph().initializer()) {
      again.initializers[tensor.name()] = &tensor;
    }
    for (const auto& node : again.proto.graph().node()) {
      for (const std::string& output : node.output()) again.producers[output] = &node;
    }
    return Rules(again, tensorrt()).broken();
  };
  EXPECT_THAT(broken_by([](onnx::GraphProto&) {}), IsEmpty());
  EXPECT_THAT(broken_by([](onnx::GraphProto& graph) {
                for (auto& tensor : *graph.mutable_initializer()) {
                  if (tensor.name() == "/int8:0")
                    tensor.set_raw_data(std::string(1, '\3'));
                }
              }),
              ::testing::Contains(HasSubstr("its zero point is not 0")));
  EXPECT_THAT(broken_by([](onnx::GraphProto& graph) {
                for (auto& node : *graph.mutable_node()) {
                  if (node.name() == "layer1.0.add.raw" || node.op_type() == "Add") {
                    if (node.input(1) == "layer1.0.shortcut") {
                      node.set_input(1, "layer1.0.shortcut.raw");
                    }
                  }
                }
              }),
              ::testing::Contains(HasSubstr("layer1.0.shortcut.raw has no pair")));
}
INSTANTIATE_TEST_SUITE_P(Runtimes, Placement,
                         ::testing::Values(Runtime{"onnxruntime", kUnsignedActivation},
                                           Runtime{"tensorrt", "uint7/t@f32"}),
                         [](const auto& info) { return std::string(info.param.target); });

TEST(TensorRt, RefusesWhatItsTypesCannotHold) {
  ExportOptions options;
  options.target = "tensorrt";
  const Exporter* onnx = take(find_exporter("onnx"));
  const auto refusal = [&](const Artifact& artifact) {
    return onnx->can_express(artifact, options).message();
  };
  Artifact net = sample::quantized(sample::residual_net(2), "int8/r@f32");
  sample::add_activations(net, [](const std::string&) { return 2.5; });
  EXPECT_EQ(
      refusal(net),
      "[onnx] value layer1.0.relu1: TensorRT has signed codes of 8 bits with zero point "
      "0; found uint8/t@f32; quantize with --set activations.unsigned=uint7/t@f32, or "
      "leave --target tensorrt out");
  EXPECT_THAT(
      refusal(sample::quantized(sample::llama({}, 2), "uint4/g32@f16+z/g32@uint4")),
      HasSubstr("TensorRT has symmetric INT8, INT4 and FP8 (e4m3) weights"));
  EXPECT_THAT(refusal(sample::quantized(sample::llama({}, 2), "int4/r@f32")),
              HasSubstr("TensorRT has INT4 in blocks along the rows of a matrix alone"));
  EXPECT_THAT(refusal(sample::quantized(sample::llama({}, 2), "int8/g16@f16")),
              HasSubstr("TensorRT has one scale a channel or tensor for INT8 and FP8"));
  Artifact fours = sample::quantized(sample::llama({}, 2), "int4/g16@f16");
  EXPECT_EQ(refusal(fours), "");
  PackedTensor& turned = fours.packed.begin()->second;
  std::string scales(turned.scales[0].values.text());
  scales[1] = static_cast<char>(scales[1] | '\x80');  // the first f16's sign
  turned.scales[0].values = Bytes::copy_of(scales.data(), scales.size());
  EXPECT_THAT(refusal(fours),
              HasSubstr("TensorRT has positive scales alone; some of these are "
                        "negative; found int4/g16@f16; quantize with --set "
                        "scale_rule.full_range=false"));
  options.quant_format = "matmulnbits";
  EXPECT_THAT(refusal(sample::quantized(sample::llama({}, 2), "int4/g16@f16")),
              HasSubstr("--target tensorrt: needs --quant-format qdq"));
  options.target = "openvino";
  EXPECT_THAT(
      refusal(sample::llama({}, 2)),
      HasSubstr("--target: onnxruntime or tensorrt was required; found openvino"));
}

// FP8 codes of static activations: a pair of FLOAT8E4M3FN, which rounds and saturates by
// itself.
TEST(Fp8, StaticInputsAreAPairOfFp8) {
  Artifact artifact = sample::quantized(sample::llama({}, 3), "e4m3/r@f32");
  const std::string layer = "model.layers.0.mlp.up_proj";
  ActivationScheme input{.scheme = take(parse_scheme("e4m3/t@f32"))};
  input.scale = 0.01f;
  artifact.layers.at(layer + ".weight").input = input;
  ExportOptions options;
  options.target = "tensorrt";
  const auto model = exported(artifact, options);
  const auto& pair = model->producer(model->producer(layer).input(0));
  EXPECT_EQ(pair.op_type(), "DequantizeLinear");
  const auto& quantize = model->producer(pair.input(0));
  EXPECT_EQ(quantize.op_type(), "QuantizeLinear");
  EXPECT_EQ(model->initializers.at(quantize.input(2))->data_type(),
            onnx::TensorProto::FLOAT8E4M3FN);
  EXPECT_EQ(model->initializers.at(layer + ".weight")->data_type(),
            onnx::TensorProto::FLOAT8E4M3FN);
  EXPECT_EQ(take(find_exporter("onnx"))->can_express(artifact, {}).message(),
            "[onnx] the input of model.layers.0.mlp.up_proj: ONNX Runtime cannot run products "
            "of FP8 activations; found e4m3/t@f32; export with --target tensorrt, or leave the "
            "activations float");
}

}  // namespace
}  // namespace nibble
