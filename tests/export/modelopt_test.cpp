// ModelOpt checkpoints: FP8 with static inputs and NVFP4 there and back, what else is
// read, and what is refused.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/artifact/safetensors.h"
#include "kernels/base/file.h"
#include "kernels/base/json.h"
#include "tests/export/hf_random.h"

namespace nibble {
namespace {

using sample::take;
using ::testing::HasSubstr;
using Json = nlohmann::json;
using Tensors = std::map<std::string, Tensor>;
namespace fs = std::filesystem;

const sample::RandomModel kFp8{
    .schemes = {"e4m3/t@f32"}, .input = "e4m3/t@f32", .share = 50};
const sample::RandomModel kNvfp4{
    .schemes = {"e2m1/g16@e4m3/t@f32"}, .multiple = 16, .share = 50};
constexpr const char* kLayer = "layers.0.proj";

class ModelOpt : public ::testing::Test {
 protected:
  void SetUp() override { directory_ = sample::fresh_directory("modelopt"); }
  void TearDown() override { fs::remove_all(directory_); }

  Status write(const Artifact& artifact) {
    ExportOptions options;
    options.overwrite = true;
    return exporter_->write(artifact, directory_, options);
  }
  Json json(const char* file) const {
    return parse_json_or_throw(take(read_text_file(directory_ / file)));
  }
  Tensors tensors() const {
    return take(read_safetensors(directory_ / "model.safetensors")).tensors;
  }
  // What the reader says of the directory after a change.
  Result<Decoded> changed(const std::function<void(Json&, Tensors&)>& change) {
    Json config = json("config.json");
    Tensors stored = tensors();
    change(config["quantization_config"], stored);
    EXPECT_TRUE(write_file_atomically(directory_ / "config.json", config.dump()).ok());
    EXPECT_TRUE(
        write_safetensors_atomically(directory_ / "model.safetensors", stored, {}).ok());
    return exporter_->read(directory_);
  }
  std::string refusal(const sample::RandomModel& model) {
    const Artifact artifact = sample::random_model(3, model);
    const Status status = exporter_->can_express(artifact, {});
    EXPECT_EQ(write(artifact).message(), status.message());
    EXPECT_FALSE(fs::exists(directory_));
    return status.message();
  }

  const Exporter* exporter_ = take(find_exporter("modelopt"));
  fs::path directory_;
};

TEST_F(ModelOpt, Fp8RoundTrips) { sample::expect_round_trips("modelopt", kFp8); }
TEST_F(ModelOpt, Nvfp4RoundTrips) { sample::expect_round_trips("modelopt", kNvfp4); }

TEST_F(ModelOpt, BothConfigsSayWhatTheTensorsAre) {
  ASSERT_TRUE(write(sample::random_model(3, kFp8)).ok());
  Json own = json("hf_quant_config.json").at("quantization");
  EXPECT_EQ(own.at("quant_algo"), "FP8");
  Json config = json("config.json").at("quantization_config");
  EXPECT_EQ(config.at("quant_method"), "modelopt");
  EXPECT_EQ(config.at("quant_algo"), "FP8");
  EXPECT_EQ(config.at("ignore"), own.at("exclude_modules"));
  const Json eight = {{"dynamic", false}, {"num_bits", 8}, {"type", "float"}};
  EXPECT_EQ(config.at("config_groups").at("group_0").at("weights"), eight);
  EXPECT_EQ(config.at("config_groups").at("group_0").at("input_activations"), eight);
  Tensors stored = tensors();
  EXPECT_EQ(stored.at(cat(kLayer, ".weight")).dtype, DType::f8_e4m3);
  for (const char* scale : {".weight_scale", ".input_scale"}) {
    EXPECT_EQ(stored.at(cat(kLayer, scale)).dtype, DType::f32);
    EXPECT_TRUE(stored.at(cat(kLayer, scale)).shape.empty());
  }
  ASSERT_TRUE(write(sample::random_model(3, kNvfp4)).ok());
  own = json("hf_quant_config.json").at("quantization");
  EXPECT_EQ(own.at("quant_algo"), "W4A16_NVFP4");
  EXPECT_EQ(own.at("group_size"), 16);
  config = json("config.json").at("quantization_config");
  EXPECT_EQ(config.at("config_groups").at("group_0").at("weights").at("group_size"), 16);
  EXPECT_FALSE(config.at("config_groups").at("group_0").contains("input_activations"));
  EXPECT_TRUE(tensors().at(cat(kLayer, ".weight_scale_2")).shape.empty());
}

// The bytes that nvidia-modelopt 0.47 makes of these 16 weights in a tensor whose largest
// is 3.
TEST_F(ModelOpt, Nvfp4OfThePackage) {
  const std::vector<float> values = {.125f, -.25f, .25f, .375f, -.5f, .5f, .75f, -.75f,
                                     1,     1,     -1,   1,     0,    0,   0,    1.5f};
  const uint8_t bytes[] = {0xa1, 0x32, 0x4c, 0xd5, 0x66, 0x6e, 0x80, 0x70};
  const uint8_t scale = 0x76;
  Artifact artifact = sample::random_model(
      3, {.schemes = {"e2m1/g16@e4m3/t@f32"}, .multiple = 16, .most = 16});
  ASSERT_TRUE(write(artifact).ok());
  const Decoded decoded = take(changed([&](Json& config, Tensors& t) {
    config["quant_algo"] = "NVFP4";
    t[cat(kLayer, ".weight")] = {DType::u8, {1, 8}, Bytes::copy_of(bytes, 8)};
    t[cat(kLayer, ".weight_scale")] = {DType::f8_e4m3, {1, 1}, Bytes::copy_of(&scale, 1)};
    t[cat(kLayer, ".weight_scale_2")] = make_tensor({}, std::vector<float>{3.0f / 2688});
    t[cat(kLayer, ".input_scale")] = make_tensor({}, std::vector<float>{0.5f});
  }));
  std::vector<float> found(16);
  const CodedMatrix& q = decoded.coded.at(cat(kLayer, ".weight"));
  ASSERT_TRUE(dequantize(q, MatrixView<float>(found.data(), 1, 16)).ok());
  for (size_t i = 0; i < 16; ++i) EXPECT_NEAR(found[i], values[i], 1e-6) << i;
  EXPECT_EQ(q.codes[12], 0);
  EXPECT_EQ(q.codes[13], 8);  // what rounds to zero keeps its sign
  EXPECT_EQ(decoded.ignored.count(cat(kLayer, ".input_scale")), 1u);
}

TEST_F(ModelOpt, HoldsCalibratedFp8Caches) {
  Artifact artifact = sample::quantized(
      sample::llama({.tied = false}, 68), "e2m1/g16@e4m3/t@f32",
      [](const Node& node) { return node.op == "linear" && node.name != "lm_head"; });
  for (ProgramState& state : artifact.program.states)
    state.scheme = *parse_kv_scheme("e4m3/t@bf16=0.0625,e4m3/t@f32=0.1", 1, 1);
  ASSERT_TRUE(write(artifact).ok());
  const auto stored = tensors();
  EXPECT_EQ(take(to_float(stored.at("model.layers.0.self_attn.k_proj.k_scale"))),
            std::vector<float>{0.0625f});
  EXPECT_EQ(stored.at("model.layers.0.self_attn.v_proj.v_scale").shape.size(), 0u);
  const Decoded decoded = take(exporter_->read(directory_));
  EXPECT_EQ(decoded.caches.size(), artifact.program.states.size());
  EXPECT_EQ(decoded.caches.at("model.layers.0.self_attn").value_scale, 0.1f);
  EXPECT_EQ(decoded.ignored.size(), 0u);
}

TEST_F(ModelOpt, SaysFirstWhatItCannotHold) {
  EXPECT_THAT(refusal({.schemes = {"int4/g16@f16"}, .multiple = 16}),
              HasSubstr("uses int4/g16@f16; of ModelOpt's formats e4m3/t@f32 (FP8) and "
                        "e2m1/g16@e4m3/t@f32 (NVFP4) are written"));
  EXPECT_THAT(refusal({.schemes = {"e4m3/t@f32"}}),
              HasSubstr("has static e4m3/t@f32 inputs; found floats"));
  EXPECT_THAT(refusal({.schemes = {"e4m3/t@f32"}, .input = "e4m3/r@f32"}),
              HasSubstr("has static e4m3/t@f32 inputs; found dynamic e4m3/r@f32"));
  EXPECT_THAT(refusal({.schemes = {"e2m1/g16@e4m3/t@f32"}, .multiple = 8, .most = 8}),
              HasSubstr("columns must be whole groups of 16"));
  EXPECT_THAT(
      refusal(
          {.schemes = {"e2m1/g16@e4m3/t@f32"}, .multiple = 16, .input = "e4m3/t@f32"}),
      HasSubstr("NVFP4 is written with float activations; found e4m3/t@f32"));
}

TEST_F(ModelOpt, ReadsOthersAndNamesDamage) {
  const Artifact artifact = sample::random_model(3, kFp8);
  const std::string scale = cat(kLayer, ".weight_scale");
  const auto message = [&](const std::function<void(Json&, Tensors&)>& change) {
    EXPECT_TRUE(write(artifact).ok());
    return changed(change).status().message();
  };
  // A scale a row; one of shape [1]; the scales of a cache.
  ASSERT_TRUE(write(artifact).ok());
  const int64_t rows = tensors().at(cat(kLayer, ".weight")).shape[0];
  ASSERT_GT(rows, 1);
  const Decoded decoded = take(changed([&](Json&, Tensors& t) {
    t[scale] = make_tensor({rows}, std::vector<float>(static_cast<size_t>(rows), 0.5f));
    t[cat(kLayer, ".input_scale")].shape = {1};
    t[cat(kLayer, ".k_scale")] = make_tensor({}, std::vector<float>{1});
  }));
  EXPECT_EQ(to_string(decoded.coded.at(cat(kLayer, ".weight")).scheme), "e4m3/r@f32");
  EXPECT_EQ(decoded.ignored.count(cat(kLayer, ".k_scale")), 1u);
  EXPECT_THAT(message([](Json& c, Tensors&) { c["quant_algo"] = "W4A16_AWQ"; }),
              HasSubstr("found quant_algo `W4A16_AWQ`"));
  EXPECT_THAT(message([&](Json&, Tensors& t) { t.erase(cat(kLayer, ".weight")); }),
              HasSubstr("layers.0.proj.weight: must be there, U8 or F8_E4M3 [any, any]"));
  EXPECT_THAT(message([&](Json&, Tensors& t) {
                t[cat(kLayer, ".input_scale")] = make_tensor({}, std::vector<float>{-1});
              }),
              HasSubstr("input_scale: must be positive; found -1"));
  EXPECT_THAT(message([&](Json&, Tensors& t) {
                t[cat(kLayer, ".pre_quant_scale")] =
                    make_tensor({1}, std::vector<float>{1});
              }),
              HasSubstr("weights that need nothing before them are read"));
  EXPECT_THAT(message([](Json& c, Tensors&) { c["quant_algo"] = 8; }),
              HasSubstr("quantization_config must have the fields of the format"));
}

}  // namespace
}  // namespace nibble
