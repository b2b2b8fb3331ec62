// Hugging Face directories of floats: what they hold, and what is refused. That
// transformers loads them is tests/interop/decoders_test.cpp's.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "export/exporter.h"
#include "kernels/artifact/safetensors.h"
#include "kernels/artifact/shards.h"
#include "kernels/base/file.h"
#include "kernels/base/float_types.h"
#include "kernels/base/json.h"
#include "tests/export/sample_models.h"

namespace nibble {
namespace {

using sample::take;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
namespace fs = std::filesystem;

class Hf : public ::testing::Test {
 protected:
  void SetUp() override { directory_ = sample::fresh_directory("hf"); }
  void TearDown() override { fs::remove_all(directory_); }

  Status write(const Artifact& artifact, ExportOptions options = {}) {
    options.overwrite = true;
    return take(find_exporter("hf"))->write(artifact, directory_, options);
  }
  Decoded read() { return take(take(find_exporter("hf"))->read(directory_)); }

  fs::path directory_;
};

TEST_F(Hf, FloatsGoThroughUnchangedAndCodesDequantized) {
  const Artifact floats = sample::llama({}, 51);
  const Artifact artifact = sample::quantized(floats, "uint4/g16@f16+z/g16@uint4");
  ASSERT_TRUE(write(artifact).ok());
  const Decoded decoded = read();
  EXPECT_TRUE(decoded.coded.empty());
  EXPECT_EQ(decoded.floats.size(), floats.tensors.size());
  for (const auto& [name, tensor] : floats.tensors) {
    std::vector<float> expected = take(to_float(tensor));
    if (const auto packed = artifact.packed.find(name); packed != artifact.packed.end()) {
      const PackedTensor& p = packed->second;
      ASSERT_TRUE(dequantize_rows(p, 0, {expected.data(), p.rows, p.cols}).ok());
    }
    EXPECT_EQ(take(to_float(decoded.floats.at(name))), expected) << name;
    EXPECT_EQ(decoded.floats.at(name).shape, tensor.shape) << name;
  }
  // A directory of floats is no artifact, and says its dtype.
  EXPECT_FALSE(is_artifact_directory(directory_));
  EXPECT_EQ(parse_json_or_throw(decoded.config_json).at("torch_dtype"), "float32");
}

TEST_F(Hf, SixteenBitsAreRounded) {
  Artifact artifact = sample::llama({}, 52);
  artifact.config_json = R"({"model_type":"llama","dtype":"float32"})";
  const std::string name = "model.norm.weight";
  const std::vector<float> values = take(to_float(artifact.tensors.at(name)));
  for (const char* dtype : {"bf16", "f16"}) {
    ExportOptions options;
    options.dtype = dtype;
    ASSERT_TRUE(write(artifact, options).ok());
    const Decoded decoded = read();
    const bool half = std::string(dtype) == "f16";
    EXPECT_EQ(decoded.floats.at(name).dtype, half ? DType::f16 : DType::bf16);
    const std::vector<float> read = take(to_float(decoded.floats.at(name)));
    for (size_t i = 0; i < values.size(); ++i) {
      EXPECT_EQ(read[i], half ? float_from_f16(f16_from_float(values[i]))
                              : float_from_bf16(bf16_from_float(values[i])));
    }
    const auto config = parse_json_or_throw(decoded.config_json);
    EXPECT_EQ(config.at("dtype"), half ? "float16" : "bfloat16");
    EXPECT_FALSE(config.contains("torch_dtype"));
  }
  std::vector<float> large = values;
  large[3] = 70000.0f;
  artifact.tensors[name] = make_tensor({48}, std::span<const float>(large));
  ExportOptions options;
  options.dtype = "f16";
  const Status status = write(artifact, options);
  EXPECT_EQ(status.code(), StatusCode::out_of_range);
  EXPECT_EQ(status.message(),
            "[hf] model.norm.weight: every value must fit f16; found 70000 at index 3 of "
            "[48]; use --dtype bf16 or f32");
}

TEST_F(Hf, ShardsAreFilledInTheOrderOfNamesAndIndexed) {
  const Artifact artifact = sample::llama({}, 53);
  ExportOptions options;
  options.shard_bytes = 20000;
  ASSERT_TRUE(write(artifact, options).ok());
  const auto index = parse_json_or_throw(
      take(read_text_file(directory_ / "model.safetensors.index.json")));
  int64_t total = 0, files = 0;
  std::string last;
  for (const auto& [name, tensor] : artifact.tensors) {
    const std::string file = index.at("weight_map").at(name);
    files += file != last;
    EXPECT_GE(file, last);
    last = file;
    total += tensor.numel() * 4;
    const auto shard = take(read_safetensors(directory_ / file));
    EXPECT_EQ(shard.tensors.at(name).bytes.text(), tensor.bytes.text());
    EXPECT_EQ(shard.metadata.at("format"), "pt");
  }
  EXPECT_EQ(index.at("metadata").at("total_size"), total);
  ASSERT_EQ(files, 11);  // of 20,000 bytes at most, a larger tensor alone
  EXPECT_EQ(last, "model-00011-of-00011.safetensors");
  // The same bytes again.
  const std::string bytes = take(read_text_file(directory_ / last));
  ASSERT_TRUE(write(artifact, options).ok());
  EXPECT_EQ(take(read_text_file(directory_ / last)), bytes);
}

TEST(Shards, HoldAtMostTheLimitButNeverNothing) {
  const auto names = [](int64_t limit) {
    std::vector<std::string> texts;
    for (const Shard& shard :
         split_shards({{"a", 5}, {"b", 5}, {"c", 11}, {"d", 1}}, limit)) {
      std::string text = shard.file + ":";
      for (const std::string& name : shard.tensors) text += " " + name;
      texts.push_back(text);
    }
    return texts;
  };
  EXPECT_THAT(names(22), ElementsAre("model.safetensors: a b c d"));
  EXPECT_THAT(names(10), ElementsAre("model-00001-of-00003.safetensors: a b",
                                     "model-00002-of-00003.safetensors: c",
                                     "model-00003-of-00003.safetensors: d"));
  EXPECT_EQ(names(1).size(), 4u);
  EXPECT_EQ(shard_index(split_shards({}, 1), {}), "");
}

TEST_F(Hf, InterleavedRowsAreTurnedIntoHalves) {
  sample::LlamaSize size;
  size.interleaved = true;
  size.bias = true;
  Artifact artifact = sample::llama(size, 54);
  artifact.config_json = R"({"model_type":"llama","rope_interleaved":true})";
  ASSERT_TRUE(write(artifact).ok());
  const Decoded decoded = read();
  EXPECT_FALSE(parse_json_or_throw(decoded.config_json).contains("rope_interleaved"));
  const std::string q = "model.layers.1.self_attn.q_proj.",
                    v = "model.layers.1.self_attn.v_proj.";
  const std::vector<float> before = take(to_float(artifact.tensors.at(q + "weight")));
  const std::vector<float> after = take(to_float(decoded.floats.at(q + "weight")));
  const std::vector<float> bias = take(to_float(artifact.tensors.at(q + "bias")));
  const std::vector<float> turned = take(to_float(decoded.floats.at(q + "bias")));
  for (size_t head = 0; head < 4; ++head) {  // rows 0, 2, 4 .. then 1, 3, 5 ..
    for (size_t i = 0; i < 12; ++i) {
      const size_t from = 12 * head + (i < 6 ? 2 * i : 2 * (i - 6) + 1),
                   to = 12 * head + i;
      EXPECT_EQ(turned[to], bias[from]);
      for (size_t c = 0; c < 48; c += 7)
        EXPECT_EQ(after[to * 48 + c], before[from * 48 + c]);
    }
  }
  EXPECT_EQ(take(to_float(decoded.floats.at(v + "weight"))),
            take(to_float(artifact.tensors.at(v + "weight"))));
}

TEST_F(Hf, SaysFirstWhatItCannotHold) {
  const auto refusal = [&](const Artifact& artifact, ExportOptions options = {}) {
    const Status status = take(find_exporter("hf"))->can_express(artifact, options);
    EXPECT_EQ(write(artifact, options).message(), status.message());
    EXPECT_FALSE(fs::exists(directory_));
    return status.message();
  };
  ExportOptions options;
  options.dtype = "int8";
  EXPECT_EQ(refusal(sample::llama({}, 55), options),
            "[hf] dtype: must be one of f32, bf16, f16; found `int8`");
  options = {};
  options.shard_bytes = 0;
  EXPECT_EQ(refusal(sample::llama({}, 55), options),
            "[hf] shard_bytes: must be at least 1; found 0");
  EXPECT_EQ(
      refusal(sample::residual_net(1)),
      "[hf] ResNetCIFAR: transformers must have the architecture; found one that it "
      "has not; export to the nibble format");
  Artifact artifact = sample::quantized(sample::llama({}, 55), "int8n/r@f32");
  const std::string layer = "model.layers.0.mlp.up_proj.weight";
  ActivationScheme input;
  input.scheme = take(parse_scheme("int8n/r@f32"));
  input.dynamic = true;
  artifact.layers.at(layer).input = input;
  EXPECT_EQ(refusal(artifact),
            cat("[hf] the input of ", layer,
                ": activations must be float; found int8n/r@f32; export to the nibble "
                "format"));
  artifact.layers.at(layer).input.reset();
  artifact.layers.at(layer).extras.low_rank_a = "a";
  EXPECT_EQ(refusal(artifact), cat("[hf] ", layer,
                                   ": a layer must be its codes and scales alone; found "
                                   "a; export to the nibble format"));
}

}  // namespace
}  // namespace nibble
