// The ONNX writer, looked at from the file: what nodes, what types, what bytes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "export/exporter.h"
#include "export/onnx/lowering.h"
#include "kernels/packing/packed_tensor.h"
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

TEST(Onnx, EveryProgramOpHasARow) {
  std::set<std::string> rows;
  for (const OnnxOp& row : all_onnx_ops())
    EXPECT_TRUE(rows.insert(row.op).second) << row.op;
  for (const OpInfo& op : all_ops()) {
    EXPECT_TRUE(rows.count(op.name))
        << op.name << " has no row in export/onnx/onnx_ops.inc";
  }
  EXPECT_EQ(rows.size(), all_ops().size());
}

TEST(Onnx, AGroupedLinearIsInt4KByNThenDequantizeLinearThenMatMul) {
  const auto model = exported(sample::quantized(sample::llama({}, 1), "int4/g32@f16"));
  const std::string tensor = "model.layers.0.mlp.down_proj.weight";  // [48, 80]
  const auto& codes = *model->initializers.at(tensor);
  EXPECT_EQ(codes.data_type(), onnx::TensorProto::INT4);
  EXPECT_THAT(codes.dims(), ::testing::ElementsAre(80, 48));
  const auto& scale = *model->initializers.at(tensor + ".scale");
  EXPECT_EQ(scale.data_type(), onnx::TensorProto::FLOAT);
  EXPECT_THAT(scale.dims(), ::testing::ElementsAre(3, 48));  // 80 = 32 + 32 + 16
  const auto& dequantize = model->producer(tensor + ".dequantized");
  EXPECT_EQ(dequantize.op_type(), "DequantizeLinear");
  EXPECT_EQ(attribute(dequantize, "axis", -1), 0);
  EXPECT_EQ(attribute(dequantize, "block_size", -1), 32);
  EXPECT_EQ(dequantize.input_size(), 2);
  EXPECT_THAT(model->consumers(tensor + ".dequantized"),
              ::testing::ElementsAre("MatMul"));
  EXPECT_EQ(model->proto.opset_import(0).version(), 21);
  EXPECT_EQ(model->proto.ir_version(), 10);
}

TEST(Onnx, ZeroPointsLieBesideTheScalesInTheCodesType) {
  const auto model =
      exported(sample::quantized(sample::llama({}, 2), "uint4/g32@f16+z/g32@uint4"));
  const std::string tensor = "model.layers.1.self_attn.q_proj.weight";  // [48, 48]
  const auto& zero = *model->initializers.at(tensor + ".zero_point");
  EXPECT_EQ(zero.data_type(), onnx::TensorProto::UINT4);
  EXPECT_THAT(zero.dims(), ::testing::ElementsAre(2, 48));
  EXPECT_EQ(zero.raw_data().size(), 48u);
  EXPECT_EQ(model->producer(tensor + ".dequantized").input_size(), 3);
}

TEST(Onnx, APerChannelLinearHasItsScalesAlongTheColumnsOfTheStoredMatrix) {
  const auto model = exported(sample::quantized(sample::llama({}, 3), "int8n/r@f32"));
  const std::string tensor = "model.layers.0.mlp.up_proj.weight";  // [80, 48]
  EXPECT_THAT(model->initializers.at(tensor)->dims(), ::testing::ElementsAre(48, 80));
  EXPECT_THAT(model->initializers.at(tensor + ".scale")->dims(),
              ::testing::ElementsAre(80));
  EXPECT_EQ(attribute(model->producer(tensor + ".dequantized"), "axis", -1), 1);
}

TEST(Onnx, ATiedWeightIsStoredOnceAsFloatAndOnceAReadingOrderAsCodes) {
  const auto plain = exported(sample::llama({}, 4));
  EXPECT_EQ(plain->initializers.count("model.embed_tokens.weight"), 1u);
  EXPECT_THAT(plain->consumers("model.embed_tokens.weight"),
              ::testing::UnorderedElementsAre("Gather", "Transpose"));
  int64_t embeddings = 0;
  for (const auto& [name, tensor] : plain->initializers) {
    embeddings += tensor->dims_size() == 2 && tensor->dims(0) == 96;
  }
  EXPECT_EQ(embeddings, 1);

  const auto coded = exported(sample::quantized(sample::llama({}, 4), "int4/g16@f16"));
  EXPECT_THAT(coded->consumers("model.embed_tokens.weight.dequantized"),
              ::testing::ElementsAre("Gather"));
  EXPECT_THAT(coded->initializers.at("model.embed_tokens.weight")->dims(),
              ::testing::ElementsAre(96, 48));
  EXPECT_THAT(coded->initializers.at("model.embed_tokens.weight@lm_head")->dims(),
              ::testing::ElementsAre(48, 96));
}

TEST(Onnx, TheDecoderTakesAndGivesItsCache) {
  const auto model = exported(sample::llama({}, 5));
  std::vector<std::string> inputs, outputs;
  for (const auto& value : model->proto.graph().input()) inputs.push_back(value.name());
  for (const auto& value : model->proto.graph().output()) outputs.push_back(value.name());
  EXPECT_THAT(inputs,
              ::testing::ElementsAre("input_ids", "attention_mask", "position_ids",
                                     "past_key_values.0.key", "past_key_values.0.value",
                                     "past_key_values.1.key", "past_key_values.1.value"));
  EXPECT_THAT(outputs,
              ::testing::ElementsAre("logits", "present.0.key", "present.0.value",
                                     "present.1.key", "present.1.value"));
  const auto& mask = model->proto.graph().input(1).type().tensor_type().shape();
  EXPECT_EQ(mask.dim(1).dim_param(), "total_sequence");
  const auto& past = model->proto.graph().input(3).type().tensor_type().shape();
  EXPECT_EQ(past.dim(0).dim_param(), "batch");
  EXPECT_EQ(past.dim(1).dim_value(), 2);
  EXPECT_EQ(past.dim(3).dim_value(), 12);
}

TEST(Onnx, NarrowFloatsAreStoredAsTheyAreAndCast) {
  Artifact artifact = sample::llama({}, 6);
  Tensor& weight = artifact.tensors.at("model.norm.weight");
  const std::vector<float> values = take(to_float(weight));
  std::vector<uint16_t> bits;
  for (float value : values) {
    uint32_t word;
    std::memcpy(&word, &value, 4);
    bits.push_back(static_cast<uint16_t>(word >> 16));
  }
  weight.dtype = DType::bf16;
  weight.bytes = Bytes::copy_of(bits.data(), bits.size() * 2);
  const auto model = exported(artifact);
  EXPECT_EQ(model->initializers.at("model.norm.weight")->data_type(),
            onnx::TensorProto::BFLOAT16);
  EXPECT_EQ(model->producer("model.norm.weight.f32").op_type(), "Cast");
}

Artifact integer_net() {
  Artifact artifact = sample::quantized(sample::residual_net(7), "int8n/r@f32");
  sample::add_activations(artifact, [](const std::string&) { return 2.5; });
  return artifact;
}

TEST(Onnx, EveryStaticValuePassesThroughOneQuantizeDequantizePair) {
  Artifact artifact = integer_net();
  const auto model = exported(artifact);
  int pairs = 0;
  for (const auto& node : model->proto.graph().node())
    pairs += node.op_type() == "QuantizeLinear";
  // And one more at once behind the average, before Flatten, and between Slice and Pad.
  EXPECT_EQ(pairs, static_cast<int>(artifact.activations.size()) + 2);
  EXPECT_THAT(model->consumers("pool/mean"), ::testing::ElementsAre("QuantizeLinear"));
  // A convolution whose ReLU takes its code range: Conv, Relu, QuantizeLinear to uint8.
  EXPECT_THAT(model->consumers("conv1"), ::testing::ElementsAre("Relu"));
  EXPECT_EQ(model->producer("relu1.raw").op_type(), "Relu");
  EXPECT_EQ(model->producer("relu1.codes").input(2), "/uint8:0");
  EXPECT_EQ(model->producer("relu1").op_type(), "DequantizeLinear");
  EXPECT_THAT(model->consumers("relu1"),
              ::testing::UnorderedElementsAre("Conv", "Slice"));
  // Both operands of the residual sum are dequantized values.
  const auto& sum = model->producer("layer1.0.add");
  EXPECT_EQ(model->producer(sum.input(0)).op_type(), "DequantizeLinear");
  EXPECT_EQ(model->producer(sum.input(1)).op_type(), "DequantizeLinear");
  // The input image as well, under another name than the graph's input.
  EXPECT_EQ(model->producer("conv1").input(0), "images.dequantized");
  // The head has no scheme on its output: plain floats.
  EXPECT_EQ(model->producer("logits").op_type(), "Add");
}

TEST(Onnx, ABiasBetweenIntegersIsInt32AtTheProductOfTheScales) {
  const Artifact artifact = integer_net();
  const auto model = exported(artifact);
  const auto& bias = *model->initializers.at("layer1.0.conv1.bias");
  ASSERT_EQ(bias.data_type(), onnx::TensorProto::INT32);
  const std::string scale_bytes =
      model->initializers.at("layer1.0.conv1.bias.scale")->raw_data();
  ASSERT_EQ(scale_bytes.size(), 12 * sizeof(float));
  const CodedMatrix q = take(unpack(artifact.packed.at("layer1.0.conv1.weight")));
  const std::vector<float> floats =
      take(to_float(artifact.tensors.at("layer1.0.conv1.bias")));
  const float s_x = artifact.activations.at("relu1").scale;
  for (size_t c = 0; c < 12; ++c) {
    int32_t code;
    float scale;
    std::memcpy(&code, bias.raw_data().data() + 4 * c, 4);
    std::memcpy(&scale, scale_bytes.data() + 4 * c, 4);
    EXPECT_EQ(scale, s_x * q.scales[0].values[c]);
    EXPECT_NEAR(code, floats[c] / static_cast<double>(scale), 0.5001);
  }
}

TEST(Onnx, ALayersOwnInputSchemeIsAnotherPair) {
  Artifact artifact = integer_net();
  ActivationScheme narrow;
  narrow.scheme = take(parse_scheme("uint4/t@f32"));
  narrow.scale = 0.2f;
  artifact.layers.at("layer1.0.conv2.weight").input = narrow;
  const auto model = exported(artifact);
  const auto& conv = model->producer("layer1.0.conv2.raw");
  EXPECT_EQ(conv.input(0), "layer1.0.conv2/input");
  EXPECT_EQ(model->producer("layer1.0.conv2/input.codes").input(2), "/uint4:0");
  EXPECT_EQ(model->producer("layer1.0.conv2/input.codes").input(0), "layer1.0.relu1");
}

TEST(Onnx, ACodeRangeNarrowerThanItsTypeIsClippedFirst) {
  Artifact artifact = sample::quantized(sample::residual_net(8), "int8n/r@f32");
  sample::add_activations(
      artifact, [](const std::string&) { return 2.5; }, "int8n/t@f32", "uint6/t@f32");
  const auto model = exported(artifact);
  const auto& clip = model->producer("relu1.codes/clip");
  EXPECT_EQ(clip.op_type(), "Clip");
  float high;
  std::memcpy(&high, model->initializers.at(clip.input(2))->raw_data().data(), 4);
  EXPECT_EQ(high, 63.0f * artifact.activations.at("relu1").scale);
}

TEST(Onnx, TheSameModelGivesTheSameBytes) {
  const Artifact artifact = sample::quantized(sample::llama({}, 9), "int4/g32@f16");
  std::vector<std::string> bytes;
  for (const char* name : {"a", "b"}) {
    const auto directory = fresh_directory(name);
    const Status status = take(find_exporter("onnx"))->write(artifact, directory, {});
    ASSERT_TRUE(status.ok()) << status.message();
    bytes.push_back(file_text(directory / "model.onnx"));
    EXPECT_FALSE(std::filesystem::exists(directory / "model.onnx.data"));
    std::filesystem::remove_all(directory);
  }
  EXPECT_EQ(bytes[0], bytes[1]);
}

TEST(Onnx, ABigModelKeepsItsTensorsInASecondFileAndReadsBackFromIt) {
  sample::LlamaSize size;
  size.tied = false;
  const Artifact artifact = sample::quantized(sample::llama(size, 10), "int4/g32@f16");
  const auto directory = fresh_directory("external");
  ExportOptions options;
  options.external_data_bytes = 1000;
  const Exporter* onnx = take(find_exporter("onnx"));
  Status status = onnx->write(artifact, directory, options);
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_LT(std::filesystem::file_size(directory / "model.onnx"), 100'000u);
  EXPECT_GT(std::filesystem::file_size(directory / "model.onnx.data"), 30'000u);
  status = check_decoded(artifact, take(onnx->read(directory)));
  EXPECT_TRUE(status.ok()) << status.message();

  // A bit that flips in the second file is seen.
  std::string data = file_text(directory / "model.onnx.data");
  data[5] = static_cast<char>(data[5] ^ 0x20);
  std::ofstream(directory / "model.onnx.data", std::ios::binary) << data;
  status = check_decoded(artifact, take(onnx->read(directory)));
  EXPECT_EQ(status.code(), StatusCode::data_loss);
  EXPECT_THAT(status.message(), HasSubstr("read back"));

  std::ofstream(directory / "model.onnx.data", std::ios::binary) << data.substr(0, 100);
  EXPECT_THAT(onnx->read(directory).status().message(),
              HasSubstr("its bytes must lie in model.onnx.data of 100 bytes"));
  std::filesystem::remove_all(directory);
}

TEST(Onnx, AnExistingDirectoryIsKeptUnlessOverwritten) {
  const Artifact artifact = sample::llama({}, 11);
  const auto directory = fresh_directory("existing");
  std::filesystem::create_directory(directory);
  const Exporter* onnx = take(find_exporter("onnx"));
  EXPECT_EQ(onnx->write(artifact, directory, {}).code(), StatusCode::already_exists);
  EXPECT_TRUE(std::filesystem::is_empty(directory));
  ExportOptions options;
  options.overwrite = true;
  const Status status = onnx->write(artifact, directory, options);
  EXPECT_TRUE(status.ok()) << status.message();
  std::filesystem::remove_all(directory);
}

class OnnxRoundTrip : public ::testing::TestWithParam<const char*> {};

// Odd sizes on purpose: 80 is no multiple of 32, 10 of 4.
TEST_P(OnnxRoundTrip, EveryCodeAndScaleIsReadBack) {
  for (const Artifact& model : {sample::llama({}, 12), sample::residual_net(13)}) {
    const Artifact artifact = sample::quantized(model, GetParam());
    const auto directory = fresh_directory("roundtrip");
    const Exporter* onnx = take(find_exporter("onnx"));
    Status status = onnx->write(artifact, directory, {});
    ASSERT_TRUE(status.ok()) << status.message();
    Decoded decoded = take(onnx->read(directory));
    EXPECT_EQ(decoded.coded.size(), artifact.packed.size());
    status = check_decoded(artifact, decoded);
    EXPECT_TRUE(status.ok()) << status.message();
    // The comparison notices one code.
    const auto first = decoded.coded.begin();
    first->second.codes.back() ^= 1;
    status = check_decoded(artifact, decoded);
    EXPECT_THAT(status.message(), HasSubstr(first->first));
    EXPECT_THAT(status.message(), HasSubstr("the code must be"));
    std::filesystem::remove_all(directory);
  }
}
INSTANTIATE_TEST_SUITE_P(Schemes, OnnxRoundTrip,
                         ::testing::Values("int4/g32@f16", "int4/r@f32", "int8n/r@f32",
                                           "int8/t@f32", "int3/g16@f16", "int6/g24@bf16",
                                           "uint4/g32@f16+z/g32@uint4",
                                           "uint8/r@f16+z/r@uint8", "int4/g16@e4m3/t@f32",
                                           "int8/b5x7@f32", "int4n/g128@f16",
                                           "e4m3/r@f32", "int8/c@f32", "e2m1/g32@e8m0",
                                           "e2m1/g16@e4m3/t@f32", "e2m1/r@f32"));

// 4-bit floats: opset 23 unless another was asked for; scales of groups stay bytes where
// ONNX has their type.
TEST(Onnx, FourBitFloatsTakeTheOpsetThatHasThem) {
  const std::string name = "model.layers.0.mlp.down_proj.weight";  // [48, 80]
  const auto types = [&](const char* scheme, int64_t opset) {
    ExportOptions options;
    options.opset = opset;
    const auto model =
        exported(sample::quantized(sample::llama({}, 12), scheme), options);
    const auto& weight = *model->initializers.at(name);
    const auto& scale = *model->initializers.at(name + ".scale");
    EXPECT_EQ(weight.data_type(), onnx::TensorProto::FLOAT4E2M1);
    EXPECT_EQ(weight.raw_data().size(), 48u * 80 / 2);
    const auto& node = model->producer(name + ".dequantized");
    EXPECT_EQ(attribute(node, "output_dtype", 0),
              scale.data_type() == onnx::TensorProto::FLOAT8E8M0 ? 1 : 0);
    // Scales in codes of their own go through a pair of theirs.
    EXPECT_EQ(node.input(1), scale.data_type() == onnx::TensorProto::FLOAT8E4M3FN
                                 ? name + ".scale.dequantized"
                                 : name + ".scale");
    return std::vector<int64_t>{model->proto.opset_import(0).version(),
                                model->proto.ir_version(), scale.data_type()};
  };
  const int64_t f32 = onnx::TensorProto::FLOAT, e8m0 = onnx::TensorProto::FLOAT8E8M0,
                e4m3 = onnx::TensorProto::FLOAT8E4M3FN;
  EXPECT_THAT(types("e2m1/g32@e8m0", 0), ElementsAre(23, 11, f32));
  EXPECT_THAT(types("e2m1/g32@e8m0", 23), ElementsAre(23, 11, f32));
  EXPECT_THAT(types("e2m1/g32@e8m0", 24), ElementsAre(24, 12, e8m0));
  EXPECT_THAT(types("e2m1/g16@e4m3/t@f32", 0), ElementsAre(23, 11, e4m3));
  EXPECT_THAT(types("e2m1/g16@f16", 24), ElementsAre(24, 12, f32));
  ExportOptions options;
  options.opset = 21;
  EXPECT_EQ(take(find_exporter("onnx"))
                ->can_express(sample::quantized(sample::llama({}, 12), "e2m1/g32@e8m0"),
                              options)
                .message(),
            "[onnx] model.embed_tokens.weight: FLOAT4E2M1 needs opset 23; found --opset "
            "21; leave "
            "the option out");
}

// E8M0 scales are read back as they lie in the file, and damage is found.
TEST(Onnx, E8m0ScalesAreReadBack) {
  const Artifact artifact = sample::quantized(sample::llama({}, 12), "e2m1/g32@e8m0");
  const auto directory = fresh_directory("e8m0");
  const Exporter* onnx = take(find_exporter("onnx"));
  ExportOptions options;
  options.opset = 24;
  const Status status = onnx->write(artifact, directory, options);
  ASSERT_TRUE(status.ok()) << status.message();
  const Decoded decoded = take(onnx->read(directory));
  const std::string name = "model.layers.0.mlp.down_proj.weight";
  EXPECT_EQ(to_string(decoded.coded.at(name).scheme), "e2m1/g32@e8m0");
  EXPECT_EQ(decoded.coded.at(name), take(unpack(artifact.packed.at(name))));
  onnx::ModelProto model;
  ASSERT_TRUE(model.ParseFromString(sample::file_text(directory / "model.onnx")));
  for (auto& tensor : *model.mutable_graph()->mutable_initializer()) {
    if (tensor.name() == name + ".scale") (*tensor.mutable_raw_data())[0] = '\xff';
  }
  std::ofstream(directory / "model.onnx", std::ios::binary) << model.SerializeAsString();
  EXPECT_THAT(onnx->read(directory).status().message(),
              HasSubstr(".scale: a scale must be a number; found E8M0's NaN"));
  std::filesystem::remove_all(directory);
}

struct Refused {
  const char* scheme;
  const char* message;
};
void PrintTo(const Refused& row, std::ostream* out) { *out << row.scheme; }
class OnnxCannot : public ::testing::TestWithParam<Refused> {};
TEST_P(OnnxCannot, SaysWhichTensorAndWhy) {
  const Artifact artifact = sample::quantized(sample::llama({}, 14), GetParam().scheme);
  const Exporter* onnx = take(find_exporter("onnx"));
  const Status status = onnx->can_express(artifact, {});
  EXPECT_EQ(status.code(), StatusCode::unsupported);
  EXPECT_EQ(status.message(), GetParam().message);
  const auto directory = fresh_directory("refused");
  EXPECT_EQ(onnx->write(artifact, directory, {}).message(), status.message());
  EXPECT_FALSE(std::filesystem::exists(directory));
}
INSTANTIATE_TEST_SUITE_P(
    Schemes, OnnxCannot,
    ::testing::Values(
        Refused{
            "nf4/g32@f32",
            "[onnx] model.embed_tokens.weight: codes must be int2..8, uint2..8, e4m3, "
            "e5m2 or e2m1; found nf4; export to the nibble format, or quantize with "
            "another "
            "element"},
        Refused{
            "uint4/g32@f16+m/g32@f16",
            "[onnx] model.embed_tokens.weight: DequantizeLinear has a zero point, not a "
            "minimum; found uint4/g32@f16+m/g32@f16; quantize with +z, or without an "
            "offset"},
        Refused{
            "uint4/g32@f16+z/g32@uint8",
            "[onnx] model.embed_tokens.weight: a zero point must fit the ONNX type of "
            "the "
            "codes, uint4; found uint4/g32@f16+z/g32@uint8; store zero points as uint4"},
        Refused{"int4/f64@f32",
                "[onnx] model.embed_tokens.weight: blocks must not run over the ends of "
                "the rows "
                "of 48 columns; found int4/f64@f32; use groups along the row (gN)"}));

ActivationScheme dynamic_input(const char* scheme) {
  ActivationScheme input;
  input.scheme = take(parse_scheme(scheme));
  input.dynamic = true;
  return input;
}

// Per-token codes in standard operators, then an integer product.
TEST(Onnx, DynamicActivationsOfInt8RowsAreAMatMulInteger) {
  Artifact artifact = sample::quantized(sample::llama({}, 15), "int8n/r@f32");
  const std::string layer = "model.layers.0.mlp.up_proj", tensor = layer + ".weight";
  for (const char* name : {"up_proj", "gate_proj"}) {
    artifact.layers.at(cat("model.layers.0.mlp.", name, ".weight")).input =
        dynamic_input("int8n/r@f32");
  }
  const auto model = exported(artifact);
  const auto& product = model->producer(layer + "/sum");
  EXPECT_EQ(product.op_type(), "MatMulInteger");
  EXPECT_EQ(product.input(1), tensor);
  EXPECT_THAT(model->initializers.at(tensor)->dims(), ::testing::ElementsAre(48, 80));
  EXPECT_THAT(model->initializers.at(tensor + ".scale")->dims(),
              ::testing::ElementsAre(80));
  // up_proj and gate_proj read one value: it is quantized once.
  EXPECT_EQ(model->producer("model.layers.0.mlp.gate_proj/sum").input(0),
            product.input(0));
}

TEST(Onnx, DynamicActivationsOfOtherWeightsAreAFloatProductOfCodes) {
  Artifact artifact = sample::quantized(sample::llama({}, 15), "int4/g32@f16");
  const std::string layer = "model.layers.0.mlp.up_proj";
  artifact.layers.at(layer + ".weight").input = dynamic_input("int8n/r@f32");
  const auto model = exported(artifact);
  const auto& product = model->producer(layer + "/product");
  EXPECT_EQ(product.op_type(), "MatMul");
  EXPECT_EQ(product.input(0), layer + "/input");
  EXPECT_EQ(product.input(1), layer + ".weight.dequantized");
}

TEST(Onnx, RefusesOtherDynamicActivationsAndOtherOpsets) {
  Artifact artifact = sample::quantized(sample::llama({}, 15), "int8n/r@f32");
  artifact.layers.at("model.layers.0.mlp.up_proj.weight").input =
      dynamic_input("int4/r@f32");
  const Exporter* onnx = take(find_exporter("onnx"));
  EXPECT_EQ(onnx->can_express(artifact, {}).message(),
            "[onnx] the input of model.layers.0.mlp.up_proj: dynamic activations must be "
            "int8n/r@f32, of a linear layer; found int4/r@f32 of a linear; calibrate "
            "static scales, or leave the activations float");
  ExportOptions options;
  options.opset = 13;
  EXPECT_EQ(
      onnx->can_express(sample::llama({}, 15), options).message(),
      "[onnx] opset: this exporter writes 21, 23 and 24; found 13; leave the option out");
  options.opset = 21;
  options.float64 = true;
  EXPECT_EQ(onnx->can_express(sample::llama({}, 15), options).message(),
            "[onnx] float64: an encoder was required; found LlamaForCausalLM; leave the option out");
}

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
class OnnxDamaged : public ::testing::TestWithParam<Damage> {};

TEST_P(OnnxDamaged, IsRefusedByName) {
  const Artifact artifact = sample::quantized(sample::residual_net(16), "int4/r@f32");
  const auto directory = fresh_directory("damaged");
  const Exporter* onnx = take(find_exporter("onnx"));
  ASSERT_TRUE(onnx->write(artifact, directory, {}).ok());
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
    Files, OnnxDamaged,
    ::testing::Values(
        Damage{"location",
               [](onnx::GraphProto& graph) {
                 auto& tensor = initializer(graph, "conv1.weight");
                 tensor.set_data_location(onnx::TensorProto::EXTERNAL);
                 auto* entry = tensor.add_external_data();
                 entry->set_key("location");
                 entry->set_value("../config.json");
               },
               "[onnx] conv1.weight: its data must lie in this directory; found location "
               "`../config.json`"},
        Damage{"length",
               [](onnx::GraphProto& graph) {
                 initializer(graph, "conv1.weight").mutable_raw_data()->pop_back();
               },
               "[onnx] conv1.weight: 162 values of 4 bits take 81 bytes; found 80"},
        Damage{"dimension",
               [](onnx::GraphProto& graph) {
                 initializer(graph, "conv1.weight").set_dims(1, INT64_MAX);
               },
               "[onnx] conv1.weight: dimensions must be sane; found 9223372036854775807"},
        Damage{"scales",
               [](onnx::GraphProto& graph) {
                 auto& scale = initializer(graph, "conv1.weight.scale");
                 scale.set_dims(0, 5);
                 scale.mutable_raw_data()->resize(20);
               },
               "[onnx] conv1.weight: needs 6 scales; found 5"},
        Damage{"dequantize",
               [](onnx::GraphProto& graph) {
                 for (auto& node : *graph.mutable_node()) {
                   if (node.op_type() == "DequantizeLinear") node.set_op_type("Identity");
                 }
               },
               "codes must go through DequantizeLinear, MatMulNBits, MatMulInteger, "
               "QLinearConv, QLinearMatMul or QGemm; found none"}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(Onnx, AFileThatIsNoModelIsRefused) {
  const auto directory = fresh_directory("garbage");
  const Exporter* onnx = take(find_exporter("onnx"));
  EXPECT_EQ(onnx->read(directory).status().code(), StatusCode::not_found);
  std::filesystem::create_directory(directory);
  std::ofstream(directory / "model.onnx") << "not protobuf";
  EXPECT_THAT(onnx->read(directory).status().message(),
              HasSubstr("must be an ONNX model"));
  std::filesystem::remove_all(directory);
}

TEST(Exporters, AnUnknownFormatListsTheKnownOnes) {
  const auto found = find_exporter("tflite");
  EXPECT_EQ(found.status().code(), StatusCode::not_found);
  std::string names;
  for (const Exporter& exporter : all_exporters())
    names += cat(names.empty() ? "" : ", ", exporter.name);
  EXPECT_EQ(found.status().message(),
            cat("[export] format: must be one of ", names,
                "; found `tflite`; name a known format"));
}

}  // namespace
}  // namespace nibble
