// What the command says about damaged inputs: the exact line, the exit code, and that
// nothing is left behind.
#include <gmock/gmock.h>
#include <sys/mount.h>

#include <cstring>
#include <limits>

#include "tests/export/sample_models.h"
#include "tests/recipes/command.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;

class CliDamage : public ::testing::Test {
 protected:
  void SetUp() override { write_small_llama(at("model")); }

  std::string at(const std::string& name) const {
    return (directory_.path() / name).string();
  }
  void write(const std::string& name, const std::string& bytes) const {
    std::ofstream(at(name), std::ios::binary) << bytes;
  }
  std::string read(const std::string& name) const { return *read_text_file(at(name)); }

  // Quantizes the model; the error line. Checks the code and that no output is there.
  std::string quantize(int code, const std::vector<std::string>& more = {},
                       const std::string& output = "out") const {
    std::vector<std::string> arguments = {"quantize",  at("model"), "--recipe",
                                          "w4a16-rtn", "--output",  at(output)};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const Outcome outcome = nibble(arguments, directory_.path());
    EXPECT_EQ(outcome.code, code) << outcome.error;
    EXPECT_EQ(outcome.out, "");
    nothing_left();
    return last_line(outcome, directory_.path());
  }
  // The same request by a verb that every build has.
  std::string inspect(int code) const {
    const Outcome outcome = nibble({"inspect", at("model")}, directory_.path());
    EXPECT_EQ(outcome.code, code) << outcome.error;
    EXPECT_EQ(outcome.out, "");
    return last_line(outcome, directory_.path());
  }
  void nothing_left() const {
    for (const auto& entry : fs::recursive_directory_iterator(directory_.path())) {
      const std::string name = entry.path().filename().string();
      EXPECT_EQ(name.find("partial"), std::string::npos) << name;
      EXPECT_NE(name, "out");
    }
  }
  // Changes the tensors of the model's checkpoint.
  void change(const std::function<void(std::map<std::string, Tensor>&)>& edit) const {
    SafetensorsFile file = read_safetensors(at("model/model.safetensors")).value();
    std::map<std::string, Tensor> tensors;
    for (const auto& [name, tensor] : file.tensors) {
      tensors[name] = {tensor.dtype, tensor.shape,
                       Bytes::copy_of(tensor.bytes.data(), tensor.bytes.size())};
    }
    edit(tensors);
    ASSERT_TRUE(write_safetensors(at("model/model.safetensors"), tensors, {}).ok());
  }

  TemporaryDirectory directory_;
};

constexpr const char* kWeight = "model.layers.1.mlp.down_proj.weight";

TEST_F(CliDamage, TruncatedFile) {
  const std::string whole = read("model/model.safetensors");
  write("model/model.safetensors", whole.substr(0, whole.size() - 100));
  const std::string line = inspect(3);
  EXPECT_THAT(
      line,
      HasSubstr("nibble: [safetensors] model/model.safetensors: its tensors need "));
  EXPECT_THAT(line, HasSubstr("; the file is truncated"));
}

TEST_F(CliDamage, NaNWeight) {
  change([](std::map<std::string, Tensor>& tensors) {
    std::vector<float> values = to_float(tensors[kWeight]).value();
    values[5] = std::numeric_limits<float>::quiet_NaN();
    tensors[kWeight] = make_tensor(tensors[kWeight].shape, values);
  });
  const std::string line = inspect(8);
  EXPECT_THAT(line, HasSubstr(kWeight));
  EXPECT_THAT(line, HasSubstr("finite"));
  if (built_with_torch(directory_.path())) {
    EXPECT_EQ(quantize(8), line);
  }
}

TEST_F(CliDamage, WrongShape) {
  change([](std::map<std::string, Tensor>& tensors) {
    tensors[kWeight].shape = {tensors[kWeight].shape[1], tensors[kWeight].shape[0]};
  });
  const std::string line = inspect(2);
  EXPECT_THAT(line, HasSubstr(kWeight));
  EXPECT_THAT(line, HasSubstr("[32, 48]"));
  EXPECT_THAT(line, HasSubstr("[48, 32]"));
}

TEST_F(CliDamage, MissingShard) {
  fs::rename(at("model/model.safetensors"), at("model/model-00001-of-00002.safetensors"));
  nlohmann::json index;
  SafetensorsFile file =
      read_safetensors(at("model/model-00001-of-00002.safetensors")).value();
  file.tensors.erase(kWeight);
  ASSERT_TRUE(write_safetensors(at("model/first.safetensors"), file.tensors, {}).ok());
  fs::rename(at("model/first.safetensors"), at("model/model-00001-of-00002.safetensors"));
  for (const auto& [name, tensor] : file.tensors) {
    index["weight_map"][name] = "model-00001-of-00002.safetensors";
  }
  index["weight_map"][kWeight] = "model-00002-of-00002.safetensors";
  write("model/model.safetensors.index.json", index.dump());
  EXPECT_THAT(inspect(4), HasSubstr("model-00002-of-00002.safetensors"));
}

TEST_F(CliDamage, WrongTokenizer) {
  std::vector<std::string> lines;
  for (uint64_t i = 0; i < 50; ++i) lines.push_back(make_story(9, i).text);
  write("model/tokenizer.json", train_bpe(lines, 400).value());
  write("text.txt", story_text(1, 3));
  const Outcome outcome = nibble(
      {"evaluate", at("model"), "--text", at("text.txt"), "--json"}, directory_.path());
  EXPECT_EQ(outcome.code, 8) << outcome.error;
  EXPECT_EQ(outcome.out, "");
  EXPECT_EQ(
      last_line(outcome, directory_.path()),
      "nibble: [tokenizer] tokenizer.json: ids below 300 (the model's vocabulary) were "
      "required; "
      "its ids reach 399; this is the wrong tokenizer for this model, give its own with "
      "--tokenizer FILE");
}

TEST_F(CliDamage, UnknownArchitecture) {
  std::string config = read("model/config.json");
  config.replace(config.find("LlamaForCausalLM"), 16, "LlamoForCausalLM");
  write("model/config.json", config);
  EXPECT_EQ(inspect(5),
            "nibble: [models] the architecture must be one of LlamaForCausalLM, "
            "MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, Qwen3MoeForCausalLM, "
            "BertModel, ResNetCIFAR, MLP; found LlamoForCausalLM");
}

TEST_F(CliDamage, BrokenRecipe) {
  if (!built_with_torch(directory_.path())) GTEST_SKIP() << "this build has no LibTorch";
  write("broken.yaml",
        "name: broken\nkind: ptq\nmethod: gptk\nlayers:\n  - pattern: \"*\"\n");
  EXPECT_EQ(quantize(2, {"--recipe", at("broken.yaml")}),
            "nibble: [quantize] command line: option '--recipe' cannot be specified more "
            "than once; "
            "see nibble quantize --help");
  const Outcome outcome = nibble(
      {"quantize", at("model"), "--recipe", at("broken.yaml"), "--output", at("out")},
      directory_.path());
  EXPECT_EQ(outcome.code, 2);
  EXPECT_EQ(last_line(outcome, directory_.path()),
            "nibble: [recipe] broken.yaml:3: method takes rtn or gptq or imatrix or awq "
            "or hqq or "
            "autoround or adaround; found 'gptk' (did "
            "you mean "
            "'gptq'?)");
  nothing_left();
}

TEST_F(CliDamage, Pickle) {
  fs::remove(at("model/model.safetensors"));
  write("model/pytorch_model.bin", std::string("PK\x03\x04", 4) + std::string(100, 'x'));
  const std::string line = inspect(5);
  EXPECT_THAT(line, HasSubstr("found a pickle"));
  EXPECT_THAT(line, HasSubstr("safetensors.torch"));
}

// An artifact without ptq: every linear layer rounded to nearest.
TEST_F(CliDamage, FlippedBitInAnArtifact) {
  const Artifact artifact = sample::quantized(sample::llama({}, 3), "int4/g16@f16");
  ASSERT_TRUE(write_artifact(artifact, at("artifact"), false).ok());
  ASSERT_EQ(nibble({"inspect", at("artifact")}, directory_.path()).code, 0);
  std::string file;
  for (const auto& entry : fs::directory_iterator(at("artifact"))) {
    if (entry.path().extension() == ".safetensors")
      file = entry.path().filename().string();
  }
  std::string bytes = read("artifact/" + file);
  bytes[bytes.size() - 40] = static_cast<char>(bytes[bytes.size() - 40] ^ 4);
  write("artifact/" + file, bytes);

  const Outcome inspected = nibble({"inspect", at("artifact")}, directory_.path());
  EXPECT_EQ(inspected.code, 3) << inspected.error;
  EXPECT_THAT(inspected.error, HasSubstr(file));
  EXPECT_THAT(inspected.error, HasSubstr("SHA-256 must be "));
  EXPECT_THAT(inspected.error, HasSubstr("; the file was changed or damaged"));
  const Outcome valid = nibble({"validate", at("artifact"), "--json"}, directory_.path());
  EXPECT_EQ(valid.code, 7) << valid.error;
  EXPECT_THAT(valid.error, HasSubstr("check files failed"));
  EXPECT_EQ(parse_json_or_throw(valid.out)["passed"], false);
}

TEST_F(CliDamage, FullDisk) {
  fs::create_directory(at("disk"));
  if (mount("none", at("disk").c_str(), "tmpfs", 0, "size=64k") != 0) {
    GTEST_SKIP() << "a small file system cannot be mounted here: "
                 << std::strerror(errno);
  }
  const Outcome stories = nibble(
      {"stories", "--count", "1000", "--output", at("disk/s.txt")}, directory_.path());
  std::string left;
  for (const auto& entry : fs::directory_iterator(at("disk")))
    left += entry.path().string() + " ";
  Outcome quantized;
  quantized.code = 6;
  if (built_with_torch(directory_.path())) {
    quantized =
        nibble({"quantize", at("model"), "--recipe", "w8a16", "--output", at("disk/out")},
               directory_.path());
    for (const auto& entry : fs::directory_iterator(at("disk")))
      left += entry.path().string() + " ";
  }
  umount(at("disk").c_str());
  EXPECT_EQ(stories.code, 6) << stories.error;
  EXPECT_THAT(stories.error, HasSubstr("No space left on device"));
  EXPECT_EQ(quantized.code, 6) << quantized.error;
  EXPECT_EQ(left, "");
}

}  // namespace
}  // namespace nibble
