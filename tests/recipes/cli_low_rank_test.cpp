// Low-rank compensation by the command, on the model that ships: better than without, in
// every verb, counted in the size; refused where it cannot be.
#include <gmock/gmock.h>

#include "command.h"
#include "kernels/artifact/artifact.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;
namespace fs = std::filesystem;

class CliLowRank : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!built_with_torch(files_.path())) GTEST_SKIP() << "built without LibTorch";
    std::ofstream(path("text.txt")) << story_text(2, 60);
    std::ofstream(path("heldout.txt")) << story_text(3, 20);
  }
  std::string path(const char* name) const { return (files_.path() / name).string(); }
  static std::string stories() {
    return (fs::path(NIBBLE_SOURCE_DIR) / "recipes/examples/stories").string();
  }
  Outcome run(const std::vector<std::string>& arguments) {
    return nibble(arguments, files_.path());
  }
  Outcome quantize(const char* recipe, const char* output,
                   const std::vector<std::string>& more) {
    std::vector<std::string> arguments = {"quantize",     stories(),
                                          "--recipe",     recipe,
                                          "--output",     path(output),
                                          "--set",        "data.per_line=true",
                                          "--set",        "calibration.sequences=40",
                                          "--set",        "calibration.length=64",
                                          "--evaluation", path("heldout.txt"),
                                          "--json"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run(arguments);
  }
  TemporaryDirectory files_;
};

TEST_F(CliLowRank, GivesBackWhatTwoBitsTook) {
  for (const char* recipe : {"w4a16-rtn", "w4a16-gptq"}) {
    const std::vector<std::string> bits = {
        "--set",           "bits=2",        "--set",          "group=32",   "--set",
        "symmetric=false", "--calibration", path("text.txt"), "--overwrite"};
    auto with = bits;
    with.insert(with.end(), {"--set", "low_rank.rank=8"});
    // Of this model on its own stories gptq's loss is mostly chance: of two texts.
    double sum_plain = 0, sum_kept = 0;
    Json plain, kept;
    for (const uint64_t seed : {5, 2}) {
      std::ofstream(path("text.txt")) << story_text(seed, 60);
      plain = parsed(quantize(recipe, "plain", bits));
      kept = parsed(quantize(recipe, "kept", with));
      sum_plain += plain["after"]["kl"].get<double>();
      sum_kept += kept["after"]["kl"].get<double>();
    }
    EXPECT_LT(sum_kept, 0.8 * sum_plain) << recipe;
    // 16 bits a value of A and B over the weights that they stand beside.
    const Result<Artifact> read = read_artifact(files_.path() / "kept");
    ASSERT_TRUE(read.ok()) << read.status().message();
    double factors = 0, weights = 0;
    for (const LedgerEntry& entry : read->ledger.entries) {
      if (entry.method == "low_rank") factors += entry.bits;
      if (read->packed.count(entry.tensor))
        weights += static_cast<double>(entry.parameters);
    }
    EXPECT_GT(factors, 0);
    EXPECT_NEAR(
        kept["after"]["quantized_bits_per_weight"].get<double>(),
        plain["after"]["quantized_bits_per_weight"].get<double>() + factors / weights,
        1e-9);
  }
  EXPECT_EQ(parsed(run({"validate", path("kept"), "--json"}))["passed"], true);
  const Outcome looked = run({"inspect", path("kept")});
  EXPECT_THAT(looked.out, HasSubstr("self_attn.q_proj.lora_A.weight"));
  EXPECT_THAT(looked.out, HasSubstr("rtn -> error"));
  EXPECT_EQ(run({"generate", path("kept"), "--prompt", "", "--tokens", "5"}).code, 0);
  const Outcome exported =
      run({"export", path("kept"), "--to", "hf", "--output", path("x")});
  EXPECT_EQ(exported.code, 5);
  EXPECT_THAT(exported.error, HasSubstr("found adapters beside them"));
  EXPECT_EQ(run({"export", path("kept"), "--to", "onnx", "--output", path("onnx")}).code,
            0);
}

TEST_F(CliLowRank, OfWeightsNeedsNoCalibrationAndRulesDecideForTheirLayers) {
  std::ofstream(path("mine.yaml"))
      << "name: mine\nkind: ptq\nbits: 3\ngroup: 32\n"
         "low_rank:\n  rank: 4\n  error: weights\n"
         "layers:\n"
         "  - pattern: \"*embed_tokens\"\n    weight: float\n"
         "    reason: so\n"
         "  - pattern: lm_head\n    weight: float\n"
         "    reason: so\n    optional: true\n"
         "  - pattern: \"*.mlp.*\"\n    low_rank: 0\n"
         "  - pattern: \"*.o_proj\"\n    low_rank: 6\n"
         "  - pattern: \"*\"\n";
  const Outcome made = quantize(path("mine.yaml").c_str(), "mine", {});
  ASSERT_EQ(made.code, 0) << made.error;
  EXPECT_THAT(parsed(made)["settings"].get<std::string>(), HasSubstr("low_rank: 6"));
  const Result<Artifact> read = read_artifact(files_.path() / "mine");
  ASSERT_TRUE(read.ok()) << read.status().message();
  const std::string block = "model.layers.0.";
  EXPECT_EQ(read->tensors.at(block + "self_attn.q_proj.lora_A.weight").shape[0], 4);
  EXPECT_EQ(read->tensors.at(block + "self_attn.o_proj.lora_A.weight").shape[0], 6);
  EXPECT_EQ(read->tensors.count(block + "mlp.up_proj.lora_A.weight"), 0u);
}

// To the artifact layer by layer, below a cap, and over processes.
TEST_F(CliLowRank, StreamsToTheSameBytes) {
  const std::vector<std::string> asked = {
      "--set", "bits=2",          "--set",         "group=32",
      "--set", "low_rank.rank=4", "--calibration", path("text.txt")};
  const auto also = [&asked](std::vector<std::string> more) {
    more.insert(more.begin(), asked.begin(), asked.end());
    return more;
  };
  const Json free = parsed(quantize("w4a16-gptq", "free", asked));
  const int64_t foretold =
      parsed(quantize("w4a16-gptq", "x", also({"--dry-run"})))["memory_bytes"]
          .get<int64_t>();
  EXPECT_GT(foretold, 0);
  const Json capped = parsed(
      quantize("w4a16-gptq", "capped", also({"--memory", std::to_string(foretold - 1)})));
  EXPECT_LE(capped["memory"]["peak_bytes"].get<int64_t>(), foretold);
  std::vector<std::string> arguments = {"quantize",     stories(),
                                        "--recipe",     "w4a16-gptq",
                                        "--output",     path("ranks"),
                                        "--set",        "data.per_line=true",
                                        "--set",        "calibration.sequences=40",
                                        "--set",        "calibration.length=64",
                                        "--evaluation", path("heldout.txt")};
  arguments.insert(arguments.end(), asked.begin(), asked.end());
  const Outcome ranks = nibble_on_ranks(2, arguments, files_.path());
  const auto whole = files_of(path("free"));
  for (const char* other : {"capped", "ranks"}) {
    if (other == std::string("ranks") && ranks.code == -1) GTEST_SKIP() << ranks.out;
    const auto files = files_of(path(other));
    for (const char* name : {"model.safetensors", "manifest.json"})
      EXPECT_EQ(files.at(name), whole.at(name)) << other << " " << name;
  }
}

TEST_F(CliLowRank, IsRefusedBeforeAnyWork) {
  const auto refused = [&](const char* recipe, std::vector<std::string> more) {
    more.insert(more.end(), {"--set", "low_rank.rank=4"});
    const Outcome outcome = quantize(recipe, "never", more);
    EXPECT_NE(outcome.code, 0);
    EXPECT_FALSE(fs::exists(path("never")));
    EXPECT_FALSE(fs::exists(path("never.run")));
    return outcome.error;
  };
  EXPECT_THAT(refused("w4a16-rtn", {}), HasSubstr("calibration data is required"));
  EXPECT_THAT(refused("w8a8-static", {"--calibration", path("text.txt")}),
              HasSubstr("low_rank stands beside layers that read floats; found "
                        "activations.static"));
  EXPECT_THAT(refused("mixed-gptq", {"--calibration", path("text.txt")}),
              HasSubstr("the budget of mixed precision knows no factors"));
  EXPECT_THAT(refused("w4a16-rtn", {"--calibration", path("text.txt"), "--set",
                                    "group=32", "--target", "vllm"}),
              HasSubstr("its layers have no factors beside them"));
  EXPECT_THAT(refused("w4a16-qat", {}), HasSubstr("low_rank.rank means nothing in a "
                                                  "recipe of kind qat"));
  EXPECT_THAT(
      refused("w4a16-rtn", {"--calibration", path("text.txt"), "--set",
                            "low_rank.rank=9999", "--set", "low_rank.error=sums"}),
      HasSubstr("low_rank.error takes outputs or weights; found 'sums'"));
}

}  // namespace
}  // namespace nibble
