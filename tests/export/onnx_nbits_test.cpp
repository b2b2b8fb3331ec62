// MatMulNBits and what a decoder's graph has beside it, looked at from the file: bytes by
// the operator's definition, refusals, genai_config.json, act-order.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "export/levels.h"
#include "export/onnx/matmul_nbits.h"
#include "kernels/base/json.h"
#include "tests/export/onnx_model.h"

namespace nibble {
namespace {

using sample::attribute;
using sample::exported;
using sample::file_text;
using sample::fresh_directory;
using sample::take;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

ExportOptions nbits_options() {
  ExportOptions options;
  options.quant_format = "matmulnbits";
  return options;
}

TEST(OnnxNBits, ALinearIsOneNodeWithTheOperatorsAttributes) {
  ExportOptions options = nbits_options();
  options.accuracy_level = 4;
  const auto model =
      exported(sample::quantized(sample::llama({}, 1), "int4/g32@f16"), options);
  const std::string layer = "model.layers.0.mlp.down_proj", tensor = layer + ".weight";
  const auto& node = model->producer(layer);
  EXPECT_EQ(node.op_type(), "MatMulNBits");
  EXPECT_EQ(node.domain(), "com.microsoft");
  EXPECT_EQ(attribute(node, "K", 0), 80);
  EXPECT_EQ(attribute(node, "N", 0), 48);
  EXPECT_EQ(attribute(node, "bits", 0), 4);
  EXPECT_EQ(attribute(node, "block_size", 0), 32);
  EXPECT_EQ(attribute(node, "accuracy_level", 0), 4);
  EXPECT_THAT(node.input(),
              ElementsAre("model.layers.0.mlp.act", tensor, tensor + ".scale"));
  EXPECT_EQ(model->initializers.at(tensor)->data_type(), onnx::TensorProto::UINT8);
  EXPECT_THAT(model->initializers.at(tensor)->dims(), ElementsAre(48, 3, 16));
  EXPECT_THAT(model->initializers.at(tensor + ".scale")->dims(), ElementsAre(48, 3));
  ASSERT_EQ(model->proto.opset_import_size(), 2);
  EXPECT_EQ(model->proto.opset_import(1).domain(), "com.microsoft");
  EXPECT_EQ(model->proto.opset_import(1).version(), 1);
  // The embedding stays DequantizeLinear -> Gather; the tied head has its own copy.
  EXPECT_THAT(model->consumers("model.embed_tokens.weight.dequantized"),
              ElementsAre("Gather"));
  EXPECT_EQ(model->producer("logits").input(1), "model.embed_tokens.weight@lm_head");
  // The standard's shape inference does not know the operator: its outputs say theirs.
  std::map<std::string, const onnx::ValueInfoProto*> declared;
  for (const auto& value : model->proto.graph().value_info())
    declared[value.name()] = &value;
  const auto& shape = declared.at(layer)->type().tensor_type().shape();
  EXPECT_EQ(shape.dim(0).dim_param(), "batch");
  EXPECT_EQ(shape.dim(1).dim_param(), "sequence");
  EXPECT_EQ(shape.dim(2).dim_value(), 48);
}

TEST(OnnxNBits, TheDefaultComputesInF32) {
  const auto model =
      exported(sample::quantized(sample::llama({}, 1), "int4/g32@f16"), nbits_options());
  EXPECT_EQ(
      attribute(model->producer("model.layers.0.mlp.down_proj"), "accuracy_level", -1),
      1);
}

// The operator's definition, written down once more: each weight from the raw bytes.
class NBitsBytes : public ::testing::TestWithParam<const char*> {};
TEST_P(NBitsBytes, StandForTheArtifactsNumbers) {
  const Artifact artifact = sample::quantized(sample::llama({}, 2), GetParam());
  const auto model = exported(artifact, nbits_options());
  int layers = 0;
  for (const auto& node : model->proto.graph().node()) {
    if (node.op_type() != "MatMulNBits") continue;
    ++layers;
    const std::string tensor = node.input(1).substr(0, node.input(1).find('@'));
    const PackedTensor& packed = artifact.packed.at(tensor);
    std::vector<float> required(static_cast<size_t>(packed.rows * packed.cols));
    ASSERT_TRUE(
        dequantize_rows(packed, 0,
                        MatrixView<float>(required.data(), packed.rows, packed.cols))
            .ok());
    const int64_t bits = attribute(node, "bits", 0),
                  block = attribute(node, "block_size", 0);
    const int64_t blocks = (packed.cols + block - 1) / block;
    const std::string& codes = model->initializers.at(node.input(1))->raw_data();
    const std::string& scales = model->initializers.at(node.input(2))->raw_data();
    ASSERT_EQ(codes.size(), static_cast<size_t>(packed.rows * blocks * block * bits / 8));
    for (int64_t n = 0; n < packed.rows; ++n) {
      for (int64_t k = 0; k < packed.cols; ++k) {
        const int64_t b = k / block, inside = k % block;
        const auto byte = static_cast<uint8_t>(
            codes[static_cast<size_t>(((n * blocks + b) * block + inside) * bits / 8)]);
        const int code = byte >> (inside * bits % 8) & ((1 << bits) - 1);
        float scale;
        std::memcpy(&scale, scales.data() + 4 * (n * blocks + b), 4);
        int zero = 1 << (bits - 1);
        if (node.input_size() > 3) {
          const std::string& zeros = model->initializers.at(node.input(3))->raw_data();
          const int64_t row = (blocks * bits + 7) / 8;
          zero =
              static_cast<uint8_t>(zeros[static_cast<size_t>(n * row + b * bits / 8)]) >>
                  (b * bits % 8) &
              ((1 << bits) - 1);
        }
        ASSERT_EQ(static_cast<float>(code - zero) * scale,
                  required[static_cast<size_t>(n * packed.cols + k)])
            << tensor << " row " << n << " column " << k;
      }
    }
  }
  EXPECT_EQ(layers, 15);  // 7 a block, and the head
}

class NBitsRoundTrip : public ::testing::TestWithParam<const char*> {};
TEST_P(NBitsRoundTrip, EveryCodeAndScaleIsReadBack) {
  for (const bool tied : {true, false}) {
    sample::LlamaSize size;
    size.tied = tied;
    const Artifact artifact = sample::quantized(sample::llama(size, 3), GetParam());
    const auto directory = fresh_directory("roundtrip");
    const Exporter* onnx = take(find_exporter("onnx"));
    Status status = onnx->write(artifact, directory, nbits_options());
    ASSERT_TRUE(status.ok()) << status.message();
    Decoded decoded = take(onnx->read(directory));
    EXPECT_EQ(decoded.coded.size(), artifact.packed.size());
    status = check_decoded(artifact, decoded);
    EXPECT_TRUE(status.ok()) << status.message();
    CodedMatrix& one = decoded.coded.at("model.layers.1.mlp.down_proj.weight");
    one.codes[70] ^= 1;
    EXPECT_THAT(
        check_decoded(artifact, decoded).message(),
        HasSubstr("model.layers.1.mlp.down_proj.weight: row 0, column 70: the code"));
    std::filesystem::remove_all(directory);
  }
}
// 80 columns are no multiple of 32; a row's scale goes into blocks; 3 bits lie in 4, 6
// in 8.
constexpr const char* kHeld[] = {"int4/g32@f16",
                                 "uint4/g16@f16+z/g16@uint4",
                                 "uint4/g16@f16",
                                 "int2/g16@f16",
                                 "uint2/g16@f16+z/g16@uint2",
                                 "uint2/g16@f16+z/g16@uint4",
                                 "int3/g48@f16",
                                 "uint3/g32@f16+z/g32@uint3",
                                 "int4/r@f32",
                                 "int8n/r@f32",
                                 "int8/t@f32",
                                 "int6/g64@bf16",
                                 "uint8/g32@f16+z/g32@uint8",
                                 "int4/g16@e4m3/t@f32",
                                 "int4n/g128@f16"};
INSTANTIATE_TEST_SUITE_P(Schemes, NBitsBytes, ::testing::ValuesIn(kHeld));
INSTANTIATE_TEST_SUITE_P(Schemes, NBitsRoundTrip, ::testing::ValuesIn(kHeld));

// --- refusals

Status refusal(const Artifact& artifact) {
  const auto directory = fresh_directory("refused");
  const Exporter* onnx = take(find_exporter("onnx"));
  const Status status = onnx->can_express(artifact, nbits_options());
  EXPECT_EQ(onnx->write(artifact, directory, nbits_options()).message(),
            status.message());
  EXPECT_FALSE(std::filesystem::exists(directory));
  return status;
}

TEST(OnnxNBits, NamesEachLayerThatItCannotHold) {
  Artifact artifact = sample::quantized(sample::llama({}, 4), "int4/g32@f16");
  const Artifact other = sample::quantized(sample::llama({}, 4), "int4/g20@f16");
  const auto put = [&](const char* name) {
    const std::string tensor = cat("model.layers.", name, ".weight");
    artifact.packed[tensor] = other.packed.at(tensor);
    artifact.layers[tensor] = other.layers.at(tensor);
  };
  put("1.mlp.up_proj");
  EXPECT_EQ(
      refusal(artifact).message(),
      "[onnx] model.layers.1.mlp.up_proj.weight: MatMulNBits has blocks of 16, 32, 64 "
      "... columns; found groups of 20 (int4/g20@f16); quantize with a group that is a "
      "multiple of 16, or leave --quant-format out");
  put("0.self_attn.o_proj");
  const Status two = refusal(artifact);
  EXPECT_EQ(two.code(), StatusCode::unsupported);
  EXPECT_THAT(two.message(),
              HasSubstr("[onnx] MatMulNBits cannot hold 2 of 15 quantized "
                        "matrices:\n  [onnx] model.layers.0.self_attn.o_proj"));
  EXPECT_THAT(two.message(), HasSubstr("\n  [onnx] model.layers.1.mlp.up_proj.weight: "));
}

TEST(OnnxNBits, RefusesFloatCodesInputCodesAndFloatModels) {
  EXPECT_THAT(refusal(sample::quantized(sample::llama({}, 5), "e4m3/r@f32")).message(),
              HasSubstr("MatMulNBits has integer codes; found e4m3/r@f32; leave "
                        "--quant-format out"));
  EXPECT_EQ(refusal(sample::llama({}, 5)).message(),
            "[onnx] MatMulNBits: a quantized matrix was required; found none; quantize "
            "first, or leave --quant-format out");
  Artifact artifact = sample::quantized(sample::llama({}, 5), "int4/g32@f16");
  ActivationScheme input;
  input.scheme = take(parse_scheme("int8n/r@f32"));
  input.dynamic = true;
  artifact.layers.at("model.layers.0.mlp.up_proj.weight").input = input;
  EXPECT_EQ(refusal(artifact).message(),
            "[onnx] model.layers.0.mlp.up_proj.weight: MatMulNBits reads floats; found "
            "inputs in int8n/r@f32; leave --quant-format out");
}

TEST(OnnxNBits, OptionsAreChecked) {
  const Artifact artifact = sample::quantized(sample::llama({}, 6), "int4/g32@f16");
  const Exporter* onnx = take(find_exporter("onnx"));
  ExportOptions options;
  options.quant_format = "nbits";
  EXPECT_EQ(
      onnx->can_express(artifact, options).message(),
      "[onnx] --quant-format: qdq, matmulnbits or qoperator was required; found nbits; "
      "name one of them");
  options = nbits_options();
  options.accuracy_level = 5;
  EXPECT_EQ(
      onnx->can_express(artifact, options).message(),
      "[onnx] --accuracy-level: 0 to 4 was required; found 5; 1 computes in f32, 4 with "
      "int8 activations");
}

struct Damage {
  const char* name;
  std::function<void(onnx::GraphProto&)> damage;
  const char* message;
};
class NBitsDamaged : public ::testing::TestWithParam<Damage> {};
TEST_P(NBitsDamaged, IsRefusedByName) {
  const Artifact artifact =
      sample::quantized(sample::llama({}, 7), "uint4/g32@f16+z/g32@uint4");
  const auto directory = fresh_directory("damaged");
  const Exporter* onnx = take(find_exporter("onnx"));
  ASSERT_TRUE(onnx->write(artifact, directory, nbits_options()).ok());
  onnx::ModelProto model;
  ASSERT_TRUE(model.ParseFromString(file_text(directory / "model.onnx")));
  GetParam().damage(*model.mutable_graph());
  std::ofstream(directory / "model.onnx", std::ios::binary) << model.SerializeAsString();
  const Result<Decoded> decoded = onnx->read(directory);
  EXPECT_EQ(decoded.status().code(), StatusCode::data_loss);
  EXPECT_THAT(decoded.status().message(), HasSubstr(GetParam().message));
  std::filesystem::remove_all(directory);
}
constexpr const char* kDamagedLayer = "model.layers.0.mlp.down_proj";  // [48, 80]
void set_attribute(onnx::GraphProto& graph, const char* name, int64_t value) {
  for (auto& node : *graph.mutable_node()) {
    if (node.name() != kDamagedLayer) continue;
    for (auto& item : *node.mutable_attribute()) {
      if (item.name() == name) item.set_i(value);
    }
  }
}
onnx::TensorProto& part(onnx::GraphProto& graph, const char* suffix) {
  for (auto& tensor : *graph.mutable_initializer()) {
    if (tensor.name() == cat(kDamagedLayer, ".weight", suffix)) return tensor;
  }
  throw std::runtime_error("no such initializer");
}
INSTANTIATE_TEST_SUITE_P(
    Files, NBitsDamaged,
    ::testing::Values(
        Damage{
            "bits", [](onnx::GraphProto& graph) { set_attribute(graph, "bits", 5); },
            "MatMulNBits has 2, 4 or 8 bits and blocks of 16, 32, 64 ...; found 5 bits"},
        Damage{"block",
               [](onnx::GraphProto& graph) { set_attribute(graph, "block_size", 24); },
               "found 4 bits, block_size 24"},
        Damage{"size",
               [](onnx::GraphProto& graph) { set_attribute(graph, "N", INT64_MAX); },
               "MatMulNBits has N and K from 1; found 9223372036854775807 and 80"},
        Damage{"columns", [](onnx::GraphProto& graph) { set_attribute(graph, "K", 97); },
               "down_proj.weight: MatMulNBits reads uint8 [48, 4, 16]"},
        Damage{"scales",
               [](onnx::GraphProto& graph) {
                 part(graph, ".scale").set_dims(1, 2);
                 part(graph, ".scale").mutable_raw_data()->resize(48 * 2 * 4);
               },
               "down_proj.weight: needs 144 scales; found 96"},
        Damage{"zero_points",
               [](onnx::GraphProto& graph) {
                 part(graph, ".zero_point").set_dims(1, 1);
                 part(graph, ".zero_point").mutable_raw_data()->resize(48);
               },
               "down_proj.weight: needs uint8 zero points of 96 bytes; found 48"},
        Damage{
            "no_scale",
            [](onnx::GraphProto& graph) { part(graph, ".scale").set_name("/elsewhere"); },
            "MatMulNBits needs constant scales and zero points; found"}),
    [](const auto& info) { return std::string(info.param.name); });

// --- beside the graph

TEST(OnnxGenai, TheConfigNamesTheGraphsInputsAndSizes) {
  Artifact artifact = sample::llama({}, 8);
  artifact.config_json = R"({"bos_token_id": 5, "eos_token_id": [6, 7]})";
  const auto directory = fresh_directory("genai");
  const Exporter* onnx = take(find_exporter("onnx"));
  ASSERT_TRUE(onnx->write(artifact, directory, {}).ok());
  const auto config = parse_json_or_throw(file_text(directory / "genai_config.json"));
  const auto& model = config.at("model");
  EXPECT_EQ(model.at("type"), "llama");
  EXPECT_EQ(model.at("bos_token_id"), 5);
  EXPECT_EQ(model.at("eos_token_id"), (std::vector<int>{6, 7}));
  EXPECT_EQ(model.at("pad_token_id"), 6);
  EXPECT_EQ(model.at("context_length"), 128);
  EXPECT_EQ(model.at("vocab_size"), 96);
  const auto& decoder = model.at("decoder");
  EXPECT_EQ(decoder.at("filename"), "model.onnx");
  EXPECT_EQ(decoder.at("head_size"), 12);
  EXPECT_EQ(decoder.at("hidden_size"), 48);
  EXPECT_EQ(decoder.at("num_attention_heads"), 4);
  EXPECT_EQ(decoder.at("num_key_value_heads"), 2);
  EXPECT_EQ(decoder.at("num_hidden_layers"), 2);
  onnx::ModelProto proto;
  ASSERT_TRUE(proto.ParseFromString(file_text(directory / "model.onnx")));
  std::set<std::string> inputs;
  for (const auto& input : proto.graph().input()) inputs.insert(input.name());
  for (const char* name : {"input_ids", "attention_mask", "position_ids"}) {
    EXPECT_TRUE(inputs.count(decoder.at("inputs").at(name))) << name;
  }
  EXPECT_EQ(config.at("search").at("past_present_share_buffer"), false);
  std::filesystem::remove_all(directory);

  ASSERT_TRUE(onnx->write(sample::residual_net(8), directory, {}).ok());
  EXPECT_FALSE(std::filesystem::exists(directory / "genai_config.json"));
  std::filesystem::remove_all(directory);
}

// --- act-order: the codes' columns are the weight's in another order, so x's must follow

TEST(OnnxActOrder, TheInputsColumnsAreGatheredInTheCodesOrder) {
  Artifact artifact = sample::quantized(sample::llama({}, 9), "int4/g32@f16");
  const std::string layer = "model.layers.0.mlp.down_proj", tensor = layer + ".weight";
  std::vector<int32_t> order;
  for (int32_t c = 0; c < 80; ++c) order.push_back(79 - c);
  Tensor& permutation = artifact.tensors[tensor + ".permutation"];
  permutation = {DType::i32, {80}, Bytes::copy_of(order.data(), order.size() * 4)};
  artifact.layers.at(tensor).extras.permutation = tensor + ".permutation";
  for (const char* format : {"qdq", "matmulnbits"}) {
    ExportOptions options;
    options.quant_format = format;
    const auto model = exported(artifact, options);
    const auto& gather = model->producer(model->producer(layer).input(0));
    EXPECT_EQ(gather.op_type(), "Gather");
    EXPECT_EQ(attribute(gather, "axis", 0), -1);
    EXPECT_EQ(gather.input(0), "model.layers.0.mlp.act");
    const std::string& raw = model->initializers.at(gather.input(1))->raw_data();
    EXPECT_EQ(raw, std::string(reinterpret_cast<const char*>(order.data()), raw.size()));
  }
  artifact.layers.at(tensor).input =
      ActivationScheme{.scheme = take(parse_scheme("int8n/r@f32")), .dynamic = true};
  EXPECT_EQ(
      take(find_exporter("onnx"))->can_express(artifact, {}).message(),
      "[onnx] model.layers.0.mlp.down_proj.weight: its columns must be in their own "
      "order, as those of a layer with dynamic activations; found a permutation; "
      "quantize without act-order");
}

}  // namespace
}  // namespace nibble
