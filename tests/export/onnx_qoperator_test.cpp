// QOperator: the operators on codes of a static integer net, looked at from the file;
// what is read back; what is refused.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "kernels/packing/packed_tensor.h"
#include "kernels/runtime/integer_node.h"
#include "tests/export/onnx_model.h"

namespace nibble {
namespace {

using sample::attribute;
using sample::exported;
using sample::file_text;
using sample::fresh_directory;
using sample::Model;
using sample::take;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

ExportOptions qoperator() {
  ExportOptions options;
  options.quant_format = "qoperator";
  return options;
}

// Every value's largest magnitude: a scale of its own.
double some_maximum(const std::string& value) {
  return 1 + static_cast<double>(value.size()) / 8;
}

Artifact integer_net(const char* weight,
                     const char* signed_activation = kSignedActivation,
                     const char* unsigned_activation = kUnsignedActivation) {
  Artifact artifact = sample::quantized(sample::residual_net(3), weight);
  sample::add_activations(artifact, some_maximum, signed_activation, unsigned_activation);
  return artifact;
}

// Two matrices without biases and a LeakyReLU between them, all in codes: the MNIST MLP.
Artifact integer_mlp() {
  Artifact artifact;
  Program& program = artifact.program;
  program.architecture = "MLP";
  program.inputs = {{"images", DType::f32, {"batch", "1", "4", "4"}}};
  program.outputs = {{"logits", DType::f32, {"batch", "10"}}};
  SplitMix64 random(5);
  artifact.tensors["fc1.weight"] = sample::random_tensor({8, 16}, 0.5, random);
  artifact.tensors["fc2.weight"] = sample::random_tensor({10, 8}, 0.5, random);
  program.nodes = {
      {"flatten", "flat", 0, {"images"}, {"flat"}, {}, {}},
      {"linear", "fc1", 0, {"flat"}, {"fc1"}, {{"weight", "fc1.weight"}}, {}},
      {"leaky_relu", "act", 0, {"fc1"}, {"act"}, {}, {{"slope", 0.01}}},
      {"linear", "fc2", 0, {"act"}, {"logits"}, {{"weight", "fc2.weight"}}, {}}};
  artifact.config_json = "{}";
  artifact.provenance.tool_version = kToolVersion;
  artifact = sample::quantized(std::move(artifact), "int8n/r@f32");
  for (const char* value : {"images", "fc1", "act"}) {
    artifact.activations[value] = {.scheme = take(parse_scheme(kSignedActivation)),
                                   .dynamic = false,
                                   .scale = 0.02f};
  }
  artifact.activations["flat"] = artifact.activations["images"];
  return artifact;
}

std::map<std::string, int> operators(const Model& model) {
  std::map<std::string, int> counts;
  for (const auto& node : model.proto.graph().node()) ++counts[node.op_type()];
  return counts;
}

float number(const Model& model, const std::string& name) {
  float value = 0;
  std::memcpy(&value, model.initializers.at(name)->raw_data().data(), sizeof(value));
  return value;
}
int byte(const Model& model, const std::string& name) {
  const auto& tensor = *model.initializers.at(name);
  EXPECT_EQ(tensor.data_type(), onnx::TensorProto::UINT8);
  return static_cast<uint8_t>(tensor.raw_data().at(0));
}

TEST(OnnxQOperator, AResidualNetComputesOnCodesFromTheImageToTheLogits) {
  const Artifact artifact = integer_net("int8n/r@f32");
  const auto model = exported(artifact, qoperator());
  const std::map<std::string, int> expected = {
      {"QuantizeLinear", 1}, {"QLinearConv", 3}, {"QLinearAdd", 1},
      {"Slice", 1},          {"Pad", 1},         {"QLinearGlobalAveragePool", 1},
      {"Flatten", 1},        {"QGemm", 1}};
  EXPECT_EQ(operators(*model), expected);
  EXPECT_EQ(model->producer("logits").op_type(), "QGemm");
  EXPECT_EQ(model->producer("logits").input_size(), 7);  // no scale: floats
  EXPECT_EQ(model->proto.opset_import(1).domain(), "com.microsoft");

  // The convolution's ReLU is the lower end of its codes: the ReLU's scale and 0. The
  // signed image lies 128 higher.
  const auto& conv = model->producer("relu1.codes");
  EXPECT_EQ(conv.input(0), "images.codes");
  EXPECT_EQ(number(*model, conv.input(1)), artifact.activations.at("images").scale);
  EXPECT_EQ(byte(*model, conv.input(2)), 128);
  EXPECT_EQ(number(*model, conv.input(6)), artifact.activations.at("relu1").scale);
  EXPECT_EQ(byte(*model, conv.input(7)), 0);
  // A padded channel is 0: the codes' zero point.
  const auto& pad = model->producer("layer1.0.shortcut.codes");
  EXPECT_EQ(byte(*model, pad.input(2)), 0);
  EXPECT_EQ(byte(*model, model->producer("pool.codes").op_type() == "Flatten"
                             ? model->producer("pool/mean.codes").input(2)
                             : ""),
            0);

  // Codes as they are in the artifact, a zero point of 0 a channel, the integer path's
  // bias.
  const CodedMatrix q = take(unpack(artifact.packed.at("conv1.weight")));
  const auto& weight = *model->initializers.at(conv.input(3));
  EXPECT_EQ(weight.name(), "conv1.weight");
  EXPECT_EQ(weight.data_type(), onnx::TensorProto::INT8);
  EXPECT_THAT(weight.dims(), ElementsAre(6, 3, 3, 3));
  EXPECT_EQ(weight.raw_data(), std::string(q.codes.begin(), q.codes.end()));
  EXPECT_EQ(model->initializers.at(conv.input(5))->raw_data(), std::string(6, '\0'));
  const std::vector<float> bias = take(to_float(artifact.tensors.at("conv1.bias")));
  const std::string& stored = model->initializers.at(conv.input(8))->raw_data();
  for (size_t c = 0; c < bias.size(); ++c) {
    int32_t code = 0;
    std::memcpy(&code, stored.data() + 4 * c, 4);
    EXPECT_EQ(code, integer_bias(bias[c], artifact.activations.at("images").scale,
                                 q.scales[0].values[c]));
  }
}

// 15 is the highest of uint4, -127 the lowest of int8n: uint8 saturates elsewhere.
TEST(OnnxQOperator, CodesOfFewerBitsAreClipped) {
  const auto model =
      exported(integer_net("int4/r@f32", "int8n/t@f32", "uint4/t@f32"), qoperator());
  const auto limits = [&](const std::string& codes) {
    const auto& clip = model->producer(codes);
    EXPECT_EQ(clip.op_type(), "Clip");
    EXPECT_EQ(clip.input(0), codes + ".wide");
    return std::pair(byte(*model, clip.input(1)), byte(*model, clip.input(2)));
  };
  EXPECT_EQ(limits("images.codes"), std::pair(1, 255));
  EXPECT_EQ(limits("relu1.codes"), std::pair(0, 15));
  EXPECT_EQ(limits("layer1.0.relu2.codes"), std::pair(0, 15));
  // int4 codes lie in int8: what QLinearConv reads.
  EXPECT_EQ(model->initializers.at("conv1.weight")->data_type(), onnx::TensorProto::INT8);
}

TEST(OnnxQOperator, MatricesWithoutBiasesAreQLinearMatMulAndQGemm) {
  const auto model = exported(integer_mlp(), qoperator());
  const std::map<std::string, int> expected = {{"QuantizeLinear", 1},
                                               {"Flatten", 1},
                                               {"QLinearMatMul", 1},
                                               {"QLinearLeakyRelu", 1},
                                               {"QGemm", 1}};
  EXPECT_EQ(operators(*model), expected);
  EXPECT_THAT(model->initializers.at("fc1.weight")->dims(), ElementsAre(16, 8));
  EXPECT_THAT(model->initializers.at("fc2.weight")->dims(), ElementsAre(10, 8));
  EXPECT_EQ(attribute(model->producer("logits"), "transB", 0), 1);
  EXPECT_EQ(model->producer("logits").input_size(), 6);
}

// What no operator on codes makes is float, as a ReLU between two schemes; a layer of
// static integers reads codes.
TEST(OnnxQOperator, OtherOperationsComputeInFloats) {
  Artifact artifact = integer_mlp();
  artifact.activations.erase("act");
  const Exporter* onnx = take(find_exporter("onnx"));
  EXPECT_THAT(
      onnx->can_express(artifact, qoperator()).message(),
      HasSubstr("fc2.weight: QOperator reads static integer codes; found inputs in "
                "floats"));
  artifact = integer_mlp();
  artifact.program.nodes[2].op = "relu";
  artifact.program.nodes[2].attributes.clear();
  const auto model = exported(artifact, qoperator());
  EXPECT_EQ(model->producer("fc1").op_type(), "DequantizeLinear");
  EXPECT_EQ(model->producer("act.raw").op_type(), "Relu");
  EXPECT_EQ(model->producer("act.codes").op_type(), "QuantizeLinear");
}

class QOperatorRoundTrip : public ::testing::TestWithParam<const char*> {};
TEST_P(QOperatorRoundTrip, EveryCodeAndScaleIsReadBack) {
  for (const bool mlp : {false, true}) {
    const Artifact artifact = mlp ? integer_mlp() : integer_net(GetParam());
    const auto directory = fresh_directory("roundtrip");
    const Exporter* onnx = take(find_exporter("onnx"));
    Status status = onnx->write(artifact, directory, qoperator());
    ASSERT_TRUE(status.ok()) << status.message();
    Decoded decoded = take(onnx->read(directory));
    EXPECT_EQ(decoded.coded.size(), artifact.packed.size());
    EXPECT_TRUE(check_decoded(artifact, decoded).ok());
    for (auto& [name, q] : decoded.coded) {
      q.codes.back() ^= 1;
      EXPECT_THAT(check_decoded(artifact, decoded).message(), HasSubstr(name)) << name;
      q.codes.back() ^= 1;
      q.scales[0].values.back() *= 2;
      EXPECT_THAT(check_decoded(artifact, decoded).message(), HasSubstr(name)) << name;
      q.scales[0].values.back() /= 2;
    }
    std::filesystem::remove_all(directory);
  }
}
INSTANTIATE_TEST_SUITE_P(Schemes, QOperatorRoundTrip,
                         ::testing::Values("int8n/r@f32", "int8/t@f32", "int4/r@f32"));

struct Damage {
  const char* name;
  std::function<void(onnx::GraphProto&)> damage;
  const char* message;
};
onnx::TensorProto& initializer(onnx::GraphProto& graph, const std::string& name) {
  for (auto& tensor : *graph.mutable_initializer()) {
    if (tensor.name() == name) return tensor;
  }
  throw std::runtime_error("no initializer " + name);
}
class QOperatorDamaged : public ::testing::TestWithParam<Damage> {};
TEST_P(QOperatorDamaged, IsRefusedByName) {
  const auto directory = fresh_directory("damaged");
  const Exporter* onnx = take(find_exporter("onnx"));
  ASSERT_TRUE(onnx->write(integer_net("int8n/r@f32"), directory, qoperator()).ok());
  onnx::ModelProto model;
  ASSERT_TRUE(model.ParseFromString(file_text(directory / "model.onnx")));
  GetParam().damage(*model.mutable_graph());
  std::ofstream(directory / "model.onnx", std::ios::binary) << model.SerializeAsString();
  const Result<Decoded> decoded = onnx->read(directory);
  EXPECT_EQ(decoded.status().code(), StatusCode::data_loss);
  EXPECT_THAT(decoded.status().message(), HasSubstr(GetParam().message));
  std::filesystem::remove_all(directory);
}
INSTANTIATE_TEST_SUITE_P(
    Files, QOperatorDamaged,
    ::testing::Values(
        Damage{
            "scales",
            [](onnx::GraphProto& graph) {
              auto& scale = initializer(graph, "conv1.weight.scale");
              scale.set_dims(0, 5);
              scale.mutable_raw_data()->resize(20);
            },
            "conv1.weight: needs 6 scales and as many int8 zero points; found 5 and 6"},
        Damage{
            "zero_points",
            [](onnx::GraphProto& graph) {
              initializer(graph, "/int8:0[6]").set_data_type(onnx::TensorProto::UINT8);
            },
            "conv1.weight: needs 6 scales and as many int8 zero points; found 6 and 6"},
        Damage{"no_scale",
               [](onnx::GraphProto& graph) {
                 initializer(graph, "conv1.weight.scale").set_name("/elsewhere");
               },
               "conv1.weight: QLinearConv reads int8 codes of two dimensions or more, a "
               "constant scale and a constant zero point; found others"},
        Damage{
            "type",
            [](onnx::GraphProto& graph) {
              initializer(graph, "linear.weight").set_data_type(onnx::TensorProto::UINT8);
            },
            "linear.weight: QGemm reads int8 codes"}),
    [](const auto& info) { return std::string(info.param.name); });

// A zero point that is not 0 is read, and so noticed.
TEST(OnnxQOperator, AZeroPointThatIsNotZeroIsNoticed) {
  const Artifact artifact = integer_net("int8n/r@f32");
  const auto directory = fresh_directory("zero");
  const Exporter* onnx = take(find_exporter("onnx"));
  ASSERT_TRUE(onnx->write(artifact, directory, qoperator()).ok());
  onnx::ModelProto model;
  ASSERT_TRUE(model.ParseFromString(file_text(directory / "model.onnx")));
  (*initializer(*model.mutable_graph(), "/int8:0[6]").mutable_raw_data())[2] = 3;
  std::ofstream(directory / "model.onnx", std::ios::binary) << model.SerializeAsString();
  const Decoded decoded = take(onnx->read(directory));
  EXPECT_THAT(check_decoded(artifact, decoded).message(),
              HasSubstr("conv1.weight: row 2"));
  std::filesystem::remove_all(directory);
}

TEST(OnnxQOperator, RefusesWhatItsOperatorsDoNotHoldAndNamesEveryLayer) {
  const Exporter* onnx = take(find_exporter("onnx"));
  const auto message = [&](const Artifact& artifact, const ExportOptions& options) {
    return onnx->can_express(artifact, options).message();
  };
  EXPECT_EQ(message(sample::residual_net(3), qoperator()),
            "[onnx] QOperator: a quantized layer was required; found none; quantize with "
            "w8a8-static first, or leave --quant-format out");
  const std::string weights = message(integer_net("int4/g3@f32"), qoperator());
  EXPECT_THAT(weights, HasSubstr("[onnx] QOperator cannot hold 4 of 4 quantized layers; "
                                 "leave --quant-format out:"));
  EXPECT_THAT(weights, HasSubstr("linear.weight: QOperator has symmetric integer weights "
                                 "with a scale a row or tensor; found int4/g3@f32"));
  const Artifact floats = sample::quantized(sample::residual_net(3), "int8n/r@f32");
  EXPECT_THAT(
      message(floats, qoperator()),
      HasSubstr("conv1.weight: QOperator reads static integer codes; found inputs "
                "in floats"));
  Artifact made = integer_net("int8n/r@f32");
  made.activations.erase("layer1.0.conv2");
  EXPECT_THAT(message(made, qoperator()),
              HasSubstr("1 of 4 quantized layers; leave --quant-format out:\n  [onnx] "
                        "layer1.0.conv2.weight: QLinearConv makes codes; found "
                        "layer1.0.conv2 in floats"));
  ExportOptions options = qoperator();
  options.target = "tensorrt";
  EXPECT_EQ(
      message(integer_net("int8n/r@f32", kSignedActivation, "uint7/t@f32"), options),
      "[onnx] --target tensorrt: needs --quant-format qdq; found qoperator, which is "
      "ONNX Runtime's own; leave one of the two out");
  EXPECT_THAT(
      message(sample::quantized(sample::llama({}, 6), "int8n/r@f32"), qoperator()),
      HasSubstr("model.embed_tokens.weight: QOperator has convolutions and matrices; "
                "found the op embedding"));
}

}  // namespace
}  // namespace nibble
