// train as a process: distillation, blocks alone, the artifact's own figure, adapters.
#include <gmock/gmock.h>

#include <algorithm>

#include "tests/recipes/command.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;

class Training : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    shared_ = new TemporaryDirectory;
    write_small_llama(shared_->path() / "model");
    std::ofstream(shared_->path() / "train.txt") << story_text(1, 200);
  }
  static void TearDownTestSuite() { delete shared_; }
  void SetUp() override {
    if (!built_with_torch(scratch_.path())) GTEST_SKIP() << "this build has no LibTorch";
  }

  std::string at(const std::string& name) const {
    return (shared_->path() / name).string();
  }
  std::string mine(const std::string& name) const {
    return (scratch_.path() / name).string();
  }
  Outcome train(const std::string& recipe, const std::string& output,
                const std::vector<std::string>& settings, bool resume = false) {
    std::vector<std::string> arguments = {
        "train",    at("model"),  "--recipe",  recipe, "--data", at("train.txt"),
        "--output", mine(output), "--threads", "1",    "--json"};
    if (resume) arguments.push_back("--resume");
    for (const char* setting :
         {"data.per_line=true", "evaluation.sequences=4", "train.warmup_steps=2"}) {
      arguments.insert(arguments.end(), {"--set", setting});
    }
    for (const std::string& setting : settings)
      arguments.insert(arguments.end(), {"--set", setting});
    return nibble(arguments, scratch_.path());
  }
  nlohmann::json run(const std::vector<std::string>& arguments) {
    return parsed(nibble(arguments, scratch_.path()));
  }

  TemporaryDirectory scratch_;
  static TemporaryDirectory* shared_;
};
TemporaryDirectory* Training::shared_ = nullptr;

TEST_F(Training, ATeacherAndTheArtifactsOwnFigureBeatRounding) {
  const std::vector<std::string> two_bits = {"bits=2", "group=16", "symmetric=false",
                                             "scale=f16", "train.batch=8"};
  auto with = [&](std::vector<std::string> more) {
    more.insert(more.end(), two_bits.begin(), two_bits.end());
    return more;
  };
  const auto start = parsed(train(
      "w4a16-qat", "start", with({"train.steps=1", "train.learning_rate=0.000000001"})));
  const auto tuned =
      parsed(train("w4a16-qat", "tuned",
                   with({"train.steps=40", "train.log_every=5", "distill.weight=1",
                         "distill.hidden=0.1", "train.learning_rate=0.003",
                         "train.scale_learning_rate=0.001", "train.evaluate_every=10",
                         "train.average=0.8"})));
  EXPECT_LT(tuned["after"]["kl"].get<double>(), 0.6 * start["after"]["kl"].get<double>());
  EXPECT_GT(tuned["training_seconds"].get<double>(), 0);
  // Its course lies beside it, and the run's folder is gone.
  const auto csv = read_text_file(mine("tuned/training.csv"));
  ASSERT_TRUE(csv.ok());
  EXPECT_EQ(std::count(csv->begin(), csv->end(), '\n'), 9);  // head, 8 entries
  EXPECT_THAT(*csv, HasSubstr("\n40,"));
  EXPECT_TRUE(fs::exists(mine("tuned/events.out.tfevents.0.nibble")));
  EXPECT_FALSE(fs::exists(mine("tuned.training")));
  EXPECT_EQ(run({"validate", mine("tuned"), "--json"})["passed"], true);

  // Blocks alone come near that without one pass through the whole.
  const auto blocks = parsed(train(
      "w4a16-qat", "blocks",
      with({"train.epochs=0", "qat.blocks.epochs=6", "qat.blocks.sequences=64",
            "qat.blocks.learning_rate=0.003", "qat.blocks.scale_learning_rate=0.001"})));
  EXPECT_LT(blocks["after"]["kl"].get<double>(),
            0.7 * start["after"]["kl"].get<double>());
  EXPECT_THAT(blocks.dump(), HasSubstr("2 blocks trained alone on 64 sequences"));
}

TEST_F(Training, AdaptersStayBesideThePackedWeightsOrBecomePartOfFloats) {
  const std::vector<std::string> settings = {"train.steps=20", "train.batch=8",
                                             "lora.rank=4", "train.learning_rate=0.01"};
  const auto kept = parsed(train("qlora", "kept", settings));
  EXPECT_LT(kept["after"]["nll"].get<double>(), kept["before"]["nll"].get<double>());
  EXPECT_EQ(run({"validate", mine("kept"), "--json"})["passed"], true);
  const auto looked = run({"inspect", mine("kept"), "--json"});
  EXPECT_THAT(looked.dump(), HasSubstr("self_attn.q_proj.lora_A.weight"));
  EXPECT_EQ(looked["quantized"], true);
  EXPECT_EQ(
      nibble({"generate", mine("kept"), "--prompt", "", "--tokens", "8", "--seed", "1"},
             scratch_.path())
          .code,
      0);
  // What a Hugging Face directory of the architecture cannot hold is not left out.
  const Outcome exported = nibble(
      {"export", mine("kept"), "--to", "hf", "--output", mine("hf")}, scratch_.path());
  EXPECT_EQ(exported.code, 5);
  EXPECT_THAT(exported.error, HasSubstr("adapters"));
  EXPECT_FALSE(fs::exists(mine("hf")));

  std::vector<std::string> merging = settings;
  merging.push_back("lora.merge=true");
  const auto merged = parsed(train("qlora", "merged", merging));
  const auto floats = run({"inspect", mine("merged"), "--json"});
  EXPECT_EQ(floats["quantized"], false);
  EXPECT_THAT(floats.dump(), ::testing::Not(HasSubstr("lora_A")));
  // The same function as the kept one, but for the dtype that the sum is rounded to.
  EXPECT_NEAR(merged["after"]["nll"].get<double>(), kept["after"]["nll"].get<double>(),
              0.02);

  const auto plain = parsed(train("lora", "plain", settings));
  EXPECT_LT(plain["after"]["nll"].get<double>(), plain["before"]["nll"].get<double>());
  EXPECT_EQ(run({"inspect", mine("plain"), "--json"})["quantized"], false);
}

TEST_F(Training, WhatMakesNoSenseIsSaidBeforeAnythingStarts) {
  Outcome outcome = train("lora", "x", {"lora.merge=false"});
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(outcome.error, HasSubstr("lora.merge: false needs layers"));
  outcome = train("lora", "x", {"lora.pattern=*.nothing"});
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(outcome.error, HasSubstr("a linear layer inside a block was required"));
  outcome = train("w4a16-qat", "x", {"group=16", "distill.teacher=/nowhere"});
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(outcome.error, HasSubstr("distill.weight or distill.hidden above 0"));
  outcome = train("w4a16-qat", "x",
                  {"group=16", "distill.weight=1", "distill.teacher=/nowhere"});
  EXPECT_EQ(outcome.code, 4);
  outcome = train("w4a16-qat", "x", {"group=16", "train.epochs=0"});
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(outcome.error, HasSubstr("qat.blocks.epochs above 0 is required"));
  EXPECT_FALSE(fs::exists(mine("x")));
}

}  // namespace
}  // namespace nibble
