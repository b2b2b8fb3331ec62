// Our own ONNX exports read back: the artifact that was exported, code by code.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "export/onnx/description.h"
#include "kernels/runtime/executor.h"
#include "kernels/runtime/kv_cache.h"
#include "recipes/models/architecture.h"
#include "recipes/models/initialise.h"
#include "recipes/models/load_model.h"
#include "tests/export/onnx_model.h"

namespace nibble {
namespace {

using sample::fresh_directory;
using sample::take;
using ::testing::HasSubstr;

void expect_same(const PackedTensor& a, const PackedTensor& b, const std::string& name) {
  SCOPED_TRACE(name);
  EXPECT_EQ(to_string(a.scheme), to_string(b.scheme));
  EXPECT_EQ(a.shape, b.shape);
  EXPECT_EQ(a.codes.text(), b.codes.text());
  ASSERT_EQ(a.scales.size(), b.scales.size());
  ASSERT_EQ(a.offsets.size(), b.offsets.size());
  for (size_t i = 0; i < a.scales.size(); ++i) {
    EXPECT_EQ(a.scales[i].values.text(), b.scales[i].values.text());
  }
  for (size_t i = 0; i < a.offsets.size(); ++i) {
    EXPECT_EQ(a.offsets[i].values.text(), b.offsets[i].values.text());
  }
}

void expect_same(const Artifact& a, const Artifact& b) {
  EXPECT_EQ(print_program(a.program), print_program(b.program));
  EXPECT_TRUE(a.program == b.program);
  EXPECT_EQ(a.config_json, b.config_json);
  EXPECT_TRUE(a.activations == b.activations);
  EXPECT_TRUE(a.ledger == b.ledger);
  EXPECT_TRUE(a.provenance == b.provenance);
  EXPECT_EQ(a.image_mean, b.image_mean);
  ASSERT_EQ(a.tokenizer.size(), b.tokenizer.size());
  for (const auto& [name, text] : a.tokenizer) {
    EXPECT_EQ(text.text(), b.tokenizer.at(name).text()) << name;
  }
  ASSERT_EQ(a.packed.size(), b.packed.size());
  for (const auto& [name, packed] : a.packed) {
    expect_same(packed, b.packed.at(name), name);
    EXPECT_TRUE(a.layers.at(name) == b.layers.at(name)) << name;
  }
  ASSERT_EQ(a.tensors.size(), b.tensors.size());
  for (const auto& [name, tensor] : a.tensors) {
    EXPECT_EQ(dtype_name(tensor.dtype), dtype_name(b.tensors.at(name).dtype)) << name;
    EXPECT_EQ(tensor.shape, b.tensors.at(name).shape) << name;
    EXPECT_EQ(tensor.bytes.text(), b.tensors.at(name).bytes.text()) << name;
  }
}

std::vector<float> logits(const Artifact& artifact) {
  Executor executor =
      take(Executor::create(std::make_shared<const Artifact>(artifact), {}));
  const std::vector<int32_t> ids = {3, 10, 17, 24, 31, 5, 5};
  const auto rows = static_cast<int64_t>(ids.size());
  std::vector<float> values(static_cast<size_t>(rows * artifact.program.vocabulary));
  auto cache = take(executor.make_cache(rows));
  const Status status = executor.forward(
      ids, *cache, MatrixView<float>(values.data(), rows, artifact.program.vocabulary));
  EXPECT_TRUE(status.ok()) << status.message();
  return values;
}

class OnnxDescribed : public ::testing::Test {
 protected:
  void SetUp() override { directory_ = fresh_directory("described"); }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  Artifact there_and_back(const Artifact& artifact, ExportOptions options = {}) {
    options.overwrite = true;
    const Status status =
        take(find_exporter("onnx"))->write(artifact, directory_, options);
    if (!status.ok()) throw std::runtime_error(status.message());
    return take(load_model(directory_, {}));
  }
  void change(const std::function<void(onnx::ModelProto&)>& edit) {
    onnx::ModelProto model;
    ASSERT_TRUE(model.ParseFromString(sample::file_text(directory_ / "model.onnx")));
    edit(model);
    std::ofstream(directory_ / "model.onnx", std::ios::binary)
        << model.SerializeAsString();
  }
  std::filesystem::path directory_;
};

TEST_F(OnnxDescribed, DecodersComeBackCodeByCode) {
  struct Case {
    const char* scheme;
    const char* quant_format;
    bool tied;
  };
  const std::vector<Case> cases = {{"", "qdq", true},
                                   {"", "qdq", false},
                                   {"int4/g16@f16", "qdq", false},
                                   {"int8n/r@f32", "qdq", true},
                                   {"int8/t@f32", "qdq", false},
                                   {"uint4/g16@f16+z/g16@uint4", "qdq", true},
                                   {"uint3/g16@bf16+z/g16@uint3", "qdq", false},
                                   {"int4/b16x16@f32", "qdq", false},
                                   {"e4m3/b16x16@f32", "qdq", false},
                                   {"int2/g16@f16", "qdq", false},
                                   {"e2m1/g16@f16", "qdq", false},
                                   {"e2m1/g16@e8m0", "qdq", false},
                                   {"e2m1/g16@e4m3/t@f32", "qdq", false},
                                   {"int4/g16@f16", "matmulnbits", false},
                                   {"int3/g16@f16", "matmulnbits", false},
                                   {"int8n/r@f32", "matmulnbits", false},
                                   {"uint4/g16@f16+z/g16@uint4", "matmulnbits", false},
                                   {"uint2/g16@f16+z/g16@uint2", "matmulnbits", false},
                                   {"int4/g16@f16+z/g16@int4", "matmulnbits", false}};
  for (const Case& row : cases) {
    SCOPED_TRACE(cat(row.scheme, " ", row.quant_format, row.tied ? " tied" : ""));
    sample::LlamaSize size;
    size.tied = row.tied;
    size.bias = true;
    Artifact artifact = sample::llama(size, 5);
    artifact.tokenizer["tokenizer.json"] = Bytes::copy_of("{}", 2);
    artifact.provenance.sources["model.safetensors"] = std::string(64, 'a');
    if (*row.scheme != '\0') {
      const bool nbits = row.quant_format == std::string("matmulnbits");
      artifact = sample::quantized(
          std::move(artifact), row.scheme,
          [&](const Node& node) { return !nbits || node.op == "linear"; });
    }
    ExportOptions options;
    options.quant_format = row.quant_format;
    const Artifact found = there_and_back(artifact, options);
    expect_same(artifact, found);
    EXPECT_EQ(logits(artifact), logits(found));

    // To the nibble format and back: the same again. A float model needs no ledger there.
    const auto own = directory_.string() + ".nibble";
    const Exporter* nibble = take(find_exporter("nibble"));
    ASSERT_TRUE(nibble->write(found, own, {.overwrite = true}).ok());
    expect_same(artifact, take(load_model(own, {})));
    std::filesystem::remove_all(own);
  }
}

TEST_F(OnnxDescribed, ExternalDataPermutationsAndHalfFloatsComeBack) {
  Artifact artifact =
      sample::quantized(sample::llama({}, 9), "int4/g16@f16", [](const Node& n) {
        return n.op == "linear" && n.parameter("weight") != "model.embed_tokens.weight";
      });
  const std::string name = "model.layers.1.mlp.down_proj.weight";
  std::vector<int32_t> order;
  for (int32_t i = 0; i < 80; ++i) order.push_back((i * 7 + 3) % 80);
  artifact.layers.at(name).extras.permutation = name + ".permutation";
  artifact.tensors[name + ".permutation"] =
      make_tensor({80}, std::span<const int32_t>(order));
  Tensor& norm = artifact.tensors.at("model.norm.weight");
  std::vector<uint16_t> halves;
  for (int i = 0; i < 48; ++i) halves.push_back(static_cast<uint16_t>(0x3c00 + i));
  norm = {DType::f16, {48}, Bytes::copy_of(halves.data(), halves.size() * 2)};
  ExportOptions options;
  options.external_data_bytes = 1000;
  const Artifact found = there_and_back(artifact, options);
  EXPECT_TRUE(std::filesystem::exists(directory_ / "model.onnx.data"));
  expect_same(artifact, found);
  EXPECT_EQ(logits(artifact), logits(found));
}

TEST_F(OnnxDescribed, EncodersComeBackWithDynamicInputsAndInFloat64) {
  const char* config =
      "{\"architectures\": [\"BertModel\"], \"model_type\": \"bert\", \"vocab_size\": "
      "61, "
      "\"hidden_size\": 32, \"num_hidden_layers\": 2, \"num_attention_heads\": 4, "
      "\"intermediate_size\": 48, \"max_position_embeddings\": 24, "
      "\"sentence_transformers\": {\"pooling\": \"mean\", \"normalize\": true}}";
  Artifact artifact;
  artifact.config_json = config;
  artifact.program = take(take(find_architecture("BertModel"))->program(config));
  artifact.tensors = take(initialise(artifact.program, 0.3, 4));
  expect_same(artifact, there_and_back(artifact));
  artifact = sample::quantized(std::move(artifact), "int8n/r@f32");
  for (const Node& node : artifact.program.nodes) {
    if (node.op != "linear") continue;
    ActivationScheme input;
    input.scheme = take(parse_scheme("int8n/r@f32"));
    input.dynamic = true;
    artifact.layers.at(node.parameter("weight")).input = input;
  }
  for (const bool wide : {false, true}) {
    ExportOptions options;
    options.float64 = wide;
    expect_same(artifact, there_and_back(artifact, options));
  }
}

void compare(const Artifact& artifact, const Artifact& found) {
  EXPECT_TRUE(artifact.program == found.program);
  EXPECT_TRUE(artifact.activations == found.activations);
  EXPECT_EQ(artifact.image_std, found.image_std);
  for (const auto& [name, packed] : artifact.packed) {
    expect_same(packed, found.packed.at(name), name);
  }
  EXPECT_THAT(found.ledger.find("conv1.bias")->note, HasSubstr("rounded to the codes"));
  const std::vector<int64_t> shape = {2, 3, 8, 8};
  std::vector<float> images;
  SplitMix64 random(4);
  for (int i = 0; i < 2 * 3 * 64; ++i)
    images.push_back(static_cast<float>(random.uniform() - 0.5));
  const auto run = [&](const Artifact& model) {
    Executor executor =
        take(Executor::create(std::make_shared<const Artifact>(model), {}));
    std::vector<float> y(20);
    EXPECT_TRUE(
        executor.forward_images(images, shape, MatrixView<float>(y.data(), 2, 10)).ok());
    return y;
  };
  EXPECT_EQ(run(artifact), run(found));
}

// Biases are int32 codes there: floats of the same codes come back.
TEST_F(OnnxDescribed, IntegerNetsComeBackWithTheSameOutputs) {
  Artifact artifact = sample::quantized(sample::residual_net(21), "int8n/r@f32");
  sample::add_activations(
      artifact, [](const std::string& name) { return name == "images" ? 2.0 : 6.0; });
  for (const char* format : {"qdq", "qoperator"}) {
    SCOPED_TRACE(format);
    ExportOptions options;
    options.quant_format = format;
    const Artifact found = there_and_back(artifact, options);
    compare(artifact, found);
    expect_same(found, there_and_back(found, options));  // now nothing changes
  }
}

// Two levels are multiplied out in DequantizeLinear; what the codes stand for is the
// same.
TEST_F(OnnxDescribed, LevelsThatWereMultipliedOutAreNoted) {
  sample::LlamaSize size;
  size.tied = false;
  const Artifact artifact =
      sample::quantized(sample::llama(size, 6), "int4/g16@e4m3/t@f32");
  const Artifact found = there_and_back(artifact);
  const std::string name = "model.layers.0.mlp.up_proj.weight";
  EXPECT_EQ(to_string(found.layers.at(name).weight), "int4/g16@f32");
  EXPECT_EQ(found.ledger.find(name)->method, kImported);
  EXPECT_THAT(found.ledger.find(name)->note, HasSubstr("it was int4/g16@e4m3/t@f32"));
  EXPECT_EQ(found.packed.at(name).codes.text(), artifact.packed.at(name).codes.text());
  EXPECT_EQ(logits(artifact), logits(found));
}

TEST_F(OnnxDescribed, AChangedWeightIsReadAndNoted) {
  sample::LlamaSize size;
  size.tied = false;
  const Artifact artifact = sample::quantized(sample::llama(size, 6), "int4/g16@f16");
  (void)there_and_back(artifact);
  const std::string name = "model.layers.0.mlp.up_proj.weight";
  change([&](onnx::ModelProto& model) {
    for (auto& tensor : *model.mutable_graph()->mutable_initializer()) {
      if (tensor.name() == name) (*tensor.mutable_raw_data())[0] = 0x21;
    }
  });
  const Artifact found = take(load_model(directory_, {}));
  EXPECT_NE(found.packed.at(name).codes.text(), artifact.packed.at(name).codes.text());
  EXPECT_EQ(found.ledger.find(name)->method, kImported);
  EXPECT_THAT(found.ledger.find(name)->note, HasSubstr("other codes or scales than"));
  EXPECT_EQ(found.ledger.find("lm_head.weight")->method, "rtn");
  EXPECT_EQ(found.provenance.sources.count("model.onnx"), 1u);
}

TEST_F(OnnxDescribed, AChangedGraphIsNotWhatItSays) {
  const Artifact artifact = sample::llama({}, 6);
  (void)there_and_back(artifact);
  // A constant of the graph, and then a node.
  change([](onnx::ModelProto& model) {
    for (auto& tensor : *model.mutable_graph()->mutable_initializer()) {
      if (tensor.name() == "/f32:2") tensor.mutable_raw_data()->back() = 0x41;
    }
  });
  EXPECT_TRUE(take(read_described(directory_ / "model.onnx")).changed);
  (void)there_and_back(artifact);
  change([](onnx::ModelProto& model) {
    model.mutable_graph()->mutable_node(3)->set_op_type("Identity");
  });
  const auto found = load_model(directory_, {});
  EXPECT_EQ(found.status().code(), StatusCode::unsupported);
  EXPECT_THAT(found.status().message(),
              HasSubstr("nibble wrote this file, but its graph was changed since"));
  // The description itself.
  (void)there_and_back(artifact);
  change([](onnx::ModelProto& model) {
    for (auto& entry : *model.mutable_metadata_props()) {
      if (entry.key() == kManifestKey) (*entry.mutable_value())[400] ^= 1;
    }
  });
  EXPECT_EQ(load_model(directory_, {}).status().code(), StatusCode::data_loss);
  EXPECT_THAT(load_model(directory_, {}).status().message(),
              HasSubstr("manifest_sha256"));
}

}  // namespace
}  // namespace nibble
