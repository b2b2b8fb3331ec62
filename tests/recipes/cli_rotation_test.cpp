// Rotation, then AWQ, then GPTQ in one recipe, by the command: the artifact reads back,
// validates, exports where it can, and is refused where it cannot.
#include <gmock/gmock.h>

#include "command.h"
#include "kernels/artifact/artifact.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;
namespace fs = std::filesystem;

class CliRotation : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!built_with_torch(files_.path())) GTEST_SKIP() << "built without LibTorch";
    write_small_llama(files_.path() / "model");
    std::ofstream(path("text.txt")) << story_text(2, 60);
    std::ofstream(path("heldout.txt")) << story_text(3, 20);
  }
  std::string path(const char* name) const { return (files_.path() / name).string(); }
  Outcome quantize(const std::vector<std::string>& more) {
    std::vector<std::string> arguments = {
        "quantize", path("model"), "--set", "data.per_line=true", "--set",
        "calibration.sequences=40", "--set", "calibration.length=64", "--calibration",
        path("text.txt"), "--evaluation", path("heldout.txt"), "--overwrite", "--json"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return nibble(arguments, files_.path());
  }
  double kl(const std::vector<std::string>& more) {
    return parsed(quantize(more))["after"]["kl"].get<double>();
  }
  TemporaryDirectory files_;
};

TEST_F(CliRotation, ComposesWithAwqAndGptq) {
  const std::vector<std::string> scheme = {"--set", "bits=3", "--set", "group=16"};
  auto with = [&](std::vector<std::string> more) {
    more.insert(more.end(), scheme.begin(), scheme.end());
    return more;
  };
  const double nearest = kl(with({"--recipe", "w4a16-rtn", "--output", path("rtn")}));
  const double all =
      kl(with({"--recipe", "w4a16-gptq", "--set", "rotation.parts=residual,heads", "--set",
               "transforms=awq", "--output", path("all")}));
  EXPECT_LT(all, nearest);
  const Result<Artifact> read = read_artifact(files_.path() / "all");
  ASSERT_TRUE(read.ok()) << read.status().message();
  const Artifact& artifact = *read;
  EXPECT_EQ(artifact.program.find("lm_head")->parameter("weight"), "lm_head.weight");
  EXPECT_THAT(artifact.config_json, HasSubstr("\"tie_word_embeddings\": false"));
  size_t scaled = 0;
  for (const LedgerEntry& entry : artifact.ledger.entries)
    scaled += entry.note.find("awq") != std::string::npos;
  EXPECT_GT(scaled, 0u);
  const Outcome checked = nibble({"validate", path("all")}, files_.path());
  EXPECT_EQ(checked.code, 0) << checked.error;
  // Rotated weights are a checkpoint of the same architecture.
  const Outcome exported = nibble({"export", path("all"), "--to", "hf", "--output",
                                   path("plain")},
                                  files_.path());
  EXPECT_EQ(exported.code, 0) << exported.error;
  const Json same = parsed(nibble({"evaluate", path("plain"), "--text", path("heldout.txt"),
                                   "--per-line", "--reference", path("all"), "--json"},
                                  files_.path()));
  EXPECT_LT(same["kl"].get<double>(), 1e-6);
}

TEST_F(CliRotation, InputsOfFourBitsLoseLessWhenRotated) {
  const std::vector<std::string> inputs = {"--recipe", "w4a4-rotated"};
  auto with = [&](std::vector<std::string> more) {
    more.insert(more.end(), inputs.begin(), inputs.end());
    return more;
  };
  // An outlying channel, as large models have them.
  const Result<Artifact> model = load_model(files_.path() / "model", LoadOptions{});
  ASSERT_TRUE(model.ok()) << model.status().message();
  std::map<std::string, Tensor> tensors = model->tensors;
  for (auto& [name, tensor] : tensors) {
    if (name.find("layernorm") == std::string::npos) continue;
    std::vector<float> values = *to_float(tensor);
    values[5] *= 20;
    tensor = make_tensor(tensor.shape, values);
  }
  fs::remove(files_.path() / "model" / "model.safetensors");
  ASSERT_TRUE(
      write_safetensors(files_.path() / "model" / "model.safetensors", tensors, {}).ok());
  const double plain =
      kl(with({"--set", "rotation.parts=", "--output", path("plain")}));
  const double rotated = kl(with({"--output", path("rotated")}));
  EXPECT_LT(rotated, 0.8 * plain);
  // What no fixed architecture has is refused, before anything is written.
  const Outcome refused = nibble(
      {"export", path("rotated"), "--to", "hf", "--output", path("no")},
      files_.path());
  EXPECT_EQ(refused.code, 5) << refused.error;
  EXPECT_THAT(refused.error, HasSubstr("found hadamard nodes between them"));
  EXPECT_FALSE(fs::exists(path("no")));
  // Its weights stay in memory, which counts below a cap.
  const auto free = files_of(path("rotated"));
  const nlohmann::json capped = parsed(quantize(
      {"--recipe", "w4a4-rotated", "--memory", "1GiB", "--output", path("capped")}));
  EXPECT_LE(capped["memory"]["peak_bytes"].get<int64_t>(), int64_t{1} << 30);
  const auto kept = files_of(path("capped"));
  for (const char* file : {"model.safetensors", "manifest.json"})
    EXPECT_EQ(free.at(file), kept.at(file)) << file;
  const nlohmann::json plan =
      parsed(quantize({"--recipe", "w4a4-rotated", "--dry-run", "--output", path("x")}));
  EXPECT_GT(plan["memory"]["weights that are in memory already"].get<int64_t>(), 0);
}

}  // namespace
}  // namespace nibble
