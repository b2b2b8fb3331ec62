// What a person can hand to nibble by mistake or after a bad download: each gives its
// exact message, and none crashes. Damaged artifacts are here too; exit codes are the
// command's test.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <limits>

#include "kernels/artifact/safetensors.h"
#include "kernels/base/file.h"
#include "kernels/base/splitmix64.h"
#include "recipes/models/load_model.h"
#include "tests/kernels/random_artifact.h"
#include "tests/kernels/temporary_directory.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;

constexpr const char* kConfig =
    R"({"architectures":["LlamaForCausalLM"],"vocab_size":7,"hidden_size":8,
        "intermediate_size":12,"num_hidden_layers":2,"num_attention_heads":2,
        "num_key_value_heads":1,"max_position_embeddings":16,"tie_word_embeddings":true})";

class DamagedModel : public ::testing::Test {
 protected:
  void SetUp() override {
    write("config.json", kConfig);
    LoadOptions options;
    options.initialise = true;
    Result<Artifact> model = load_model(path(), options);
    ASSERT_TRUE(model.ok()) << model.status().message();
    tensors_ = model->tensors;
    save();
    ASSERT_EQ(message(path()), "loaded");
  }
  const fs::path& path() const { return directory_.path(); }
  void write(const std::string& name, const std::string& bytes) {
    std::ofstream(path() / name, std::ios::binary) << bytes;
  }
  void save() {
    ASSERT_TRUE(write_safetensors(path() / "model.safetensors", tensors_, {}).ok());
  }
  // The outcome, without the directory's own path.
  std::string message(const fs::path& model, const std::string& architecture = "") {
    LoadOptions options;
    options.architecture = architecture;
    const Result<Artifact> loaded = load_model(model, options);
    if (loaded.ok()) return "loaded";
    std::string text = loaded.status().message();
    for (const std::string& prefix : {path().string() + "/", path().string()}) {
      for (size_t at; (at = text.find(prefix)) != std::string::npos;) {
        text.replace(at, prefix.size(), prefix.back() == '/' ? "" : "DIR");
      }
    }
    return cat(status_code_name(loaded.status().code()), ": ", text);
  }

  TemporaryDirectory directory_;
  std::map<std::string, Tensor> tensors_;
};

TEST_F(DamagedModel, TruncatedWeights) {
  const std::string whole = *read_text_file(path() / "model.safetensors");
  write("model.safetensors", whole.substr(0, whole.size() - 100));
  const size_t data = whole.size() - 8 - static_cast<unsigned char>(whole[0]) -
                      256 * static_cast<unsigned char>(whole[1]);
  EXPECT_EQ(message(path()),
            cat("data_loss: [safetensors] model.safetensors: its tensors need ", data,
                " bytes; found ", data - 100, "; the file is truncated"));
  write("model.safetensors", whole.substr(0, 100));
  EXPECT_THAT(message(path()),
              HasSubstr("data_loss: [safetensors] model.safetensors: the header "
                        "needs "));
  write("model.safetensors", "");
  EXPECT_EQ(message(path()),
            "data_loss: [safetensors] model.safetensors: a file has at least 8 "
            "bytes; found 0; it is truncated");
}

TEST_F(DamagedModel, NaNWeight) {
  Tensor& weight = tensors_["model.layers.1.mlp.down_proj.weight"];
  std::vector<float> values = *to_float(weight);
  values[17] = std::numeric_limits<float>::quiet_NaN();
  weight = make_tensor(weight.shape, std::span<const float>(values));
  save();
  EXPECT_EQ(
      message(path()),
      "out_of_range: [artifact] model.layers.1.mlp.down_proj.weight: every value must be "
      "finite; found NaN at index 17 of [8, 12]; the checkpoint is broken");
}

TEST_F(DamagedModel, WrongShape) {
  Tensor& weight = tensors_["model.layers.0.self_attn.k_proj.weight"];
  weight.shape = {8, 4};
  save();
  EXPECT_EQ(
      message(path()),
      "invalid_argument: [program] model.layers.0.self_attn.k_proj.weight: node "
      "model.layers.0.self_attn.k_proj needs shape [4, 8]; found [8, 4]; do config.json "
      "and the weights belong together?");
  tensors_.erase("model.layers.0.self_attn.k_proj.weight");
  save();
  EXPECT_EQ(message(path()),
            "not_found: [program] model.layers.0.self_attn.k_proj.weight: node "
            "model.layers.0.self_attn.k_proj needs this tensor with shape [4, 8]; the "
            "model has "
            "none of that name; is the checkpoint complete?");
}

TEST_F(DamagedModel, MissingShard) {
  fs::remove(path() / "model.safetensors");
  EXPECT_EQ(
      message(path()),
      "not_found: [models] DIR: needs model.safetensors or model.safetensors.index.json "
      "beside config.json; found neither; `nibble train` with the recipe float "
      "initialises weights");
  write("model.safetensors.index.json",
        R"({"weight_map":{"model.norm.weight":"model-00002-of-00002.safetensors"}})");
  EXPECT_EQ(message(path()),
            "not_found: [safetensors] model-00002-of-00002.safetensors: "
            "model.safetensors.index.json names this shard for 1 tensors, the first "
            "model.norm.weight; found no such file; is the download complete?");
}

TEST_F(DamagedModel, UnknownArchitecture) {
  std::string config = kConfig;
  config.replace(config.find("LlamaForCausalLM"), 16, "MambaForCausalLM");
  write("config.json", config);
  EXPECT_EQ(message(path()),
            "unsupported: [models] the architecture must be one of LlamaForCausalLM, "
            "MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, Qwen3MoeForCausalLM, "
            "BertModel, ResNetCIFAR, MLP; found MambaForCausalLM");
  EXPECT_EQ(message(path(), "LlamaForCausalLM"), "loaded");
  write("config.json", "{}");
  EXPECT_EQ(message(path()),
            "unsupported: [models] the architecture must be one of LlamaForCausalLM, "
            "MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, Qwen3MoeForCausalLM, "
            "BertModel, ResNetCIFAR, MLP; found none");
  // A single file of tensors that fit nothing.
  const std::vector<float> one = {1};
  ASSERT_TRUE(write_safetensors(
                  path() / "other.safetensors",
                  {{"encoder.w", make_tensor({1}, std::span<const float>(one))}}, {})
                  .ok());
  EXPECT_EQ(
      message(path() / "other.safetensors"),
      "unsupported: [models] other.safetensors: the tensors must be those of a known "
            "architecture (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, "
            "Qwen3ForCausalLM, Qwen3MoeForCausalLM, BertModel, ResNetCIFAR, MLP); found none "
            "that fits, the first tensor is encoder.w; name it with --architecture");
  EXPECT_EQ(message(path() / "other.safetensors", "ResNetCIFAR"),
            "not_found: [models] layer1.0.conv1.weight: ResNetCIFAR needs this tensor; "
            "found none "
            "of that name");
  EXPECT_EQ(message(path() / "model.safetensors"),
            "not_found: [models] LlamaForCausalLM: its heads and rope are in "
            "config.json, which "
            "must lie beside the weights; found weights alone; give the directory");
}

TEST_F(DamagedModel, Pickle) {
  const auto convert = [](const std::string& name) {
    return cat(
        "unsupported: [models] ", name,
        ": nibble reads safetensors and llama2.c files; found a pickle, which can run "
        "any "
        "code when it is opened; convert it where it comes from: python -c \"import "
        "torch, safetensors.torch as s; s.save_file({k: v.contiguous() for k, v in "
        "torch.load('",
        name,
        "', map_location='cpu', weights_only=True).items()}, 'model.safetensors')\"");
  };
  std::string tar(512, '\0');
  tar.replace(257, 5, "ustar");
  write("zip.bin", "PK\x03\x04 archive/data.pkl");
  write("raw.pt", "\x80\x02}q");
  write("old.pth", tar);
  for (const char* name : {"zip.bin", "raw.pt", "old.pth"}) {
    EXPECT_EQ(message(path() / name), convert(name));
  }
  // In a directory that has nothing else; a llama2.c .bin beside is not mistaken for one.
  fs::remove(path() / "model.safetensors");
  fs::remove(path() / "old.pth");
  fs::remove(path() / "raw.pt");
  write("a.bin",
        std::string("\x40\0\0\0\xac\0\0\0\5\0\0\0\x8\0\0\0\4\0\0\0\0\2\0\0\0\2\0\0", 28));
  EXPECT_EQ(message(path()), convert("zip.bin"));
  EXPECT_EQ(
      message(path() / "a.bin"),
      "data_loss: [models] a.bin: a llama2.c file with this header needs 1056540 bytes; "
      "found 28; the file is truncated");
}

TEST_F(DamagedModel, OtherFiles) {
  write("model.gguf", "GGUF\x03");
  EXPECT_EQ(message(path() / "model.gguf"),
            "data_loss: [gguf] model.gguf: header: \"GGUF\" and version 2 or 3 were "
            "required; found 5 bytes that begin otherwise; the file is damaged");
  write("notes.txt", "hello, this is text");
  EXPECT_EQ(
      message(path() / "notes.txt"),
      "unsupported: [models] notes.txt: a model is a Hugging Face directory, a nibble "
      "artifact, a GGUF, a .onnx, a llama2.c .bin or a safetensors file; found none of these");
  EXPECT_EQ(message(path() / "absent"),
            "not_found: [models] absent: no such file or directory");
  write("config.json", "{\"architectures\": [");
  EXPECT_EQ(message(path()),
            "data_loss: [models] config.json: must be one JSON object; found "
            "something else; the file is damaged");
  fs::remove(path() / "config.json");
  EXPECT_EQ(message(path()),
            "data_loss: [gguf] model.gguf: header: \"GGUF\" and version 2 or 3 were "
            "required; found 5 bytes that begin otherwise; the file is damaged");
  fs::remove(path() / "model.gguf");
  EXPECT_EQ(message(path()),
            "not_found: [models] DIR: a model directory needs config.json "
            "(Hugging Face) or manifest.json (a nibble artifact); found neither");
}

TEST_F(DamagedModel, FlippedBitInAnArtifact) {
  Result<Artifact> artifact = random_artifact(1, {"int4/g32@f16"});
  ASSERT_TRUE(artifact.ok());
  const fs::path made = path() / "artifact";
  ASSERT_TRUE(write_artifact(*artifact, made, false).ok());
  ASSERT_EQ(message(made), "loaded");
  const std::string weights = *read_text_file(made / "model.safetensors");
  std::string damaged = weights;
  damaged.back() ^= 0x10;
  write("artifact/model.safetensors", damaged);
  EXPECT_EQ(message(made), cat("data_loss: [artifact] artifact/model.safetensors, tensor "
                               "layers.0.weight.codes: SHA-256 must be ",
                               sha256_hex(weights), "; found ", sha256_hex(damaged),
                               "; the file was changed or damaged"));
  write("artifact/model.safetensors", weights);
  write("artifact/tokenizer.json", "{\"a\": \"\xc3\xa8\"}");
  EXPECT_THAT(message(made),
              HasSubstr("data_loss: [artifact] artifact/tokenizer.json: SHA-256 "
                        "must be "));
  fs::remove(made / "tokenizer.json");
  EXPECT_EQ(message(made),
            "not_found: [artifact] artifact/tokenizer.json: manifest.json lists "
            "this file; found no such file; copy the whole directory");
}

// Bytes at random places of good files: any outcome but a crash, and never silence about
// a file that no longer parses to the same tensors.
TEST_F(DamagedModel, RandomDamageNeverCrashes) {
  const std::string weights = *read_text_file(path() / "model.safetensors");
  const std::string config = kConfig;
  SplitMix64 random(9);
  int refused = 0;
  for (int i = 0; i < 400; ++i) {
    std::string a = weights, b = config;
    // The first kilobyte is the header: aim there.
    for (int k = 0; k < 3; ++k) {
      a[random.below(1000)] = static_cast<char>(random.below(256));
      if (i % 2) b[random.below(b.size())] = static_cast<char>(random.below(256));
    }
    if (i % 5 == 0) a.resize(random.below(a.size()));
    write("model.safetensors", a);
    write("config.json", b);
    refused += message(path()) != "loaded";
  }
  EXPECT_GT(refused, 390);
}

}  // namespace
}  // namespace nibble
