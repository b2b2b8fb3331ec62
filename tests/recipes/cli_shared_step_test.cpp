// train as several processes: the batches of a step are shared, the bytes are those of one.
#include <gmock/gmock.h>

#include "tests/recipes/command.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;

class SharedSteps : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!built_with_torch(scratch_.path())) GTEST_SKIP() << "this build has no LibTorch";
  }
  std::string at(const std::string& name) const { return (scratch_.path() / name).string(); }

  // One process, then 2 and 4; `files` of the output are compared.
  void expect_the_same(std::vector<std::string> arguments,
                       const std::vector<std::string>& files) {
    const std::vector<std::string> more = {"--set",     "train.accumulate=4", "--threads", "1",
                                           "--output"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const auto with_output = [&](const std::string& name) {
      std::vector<std::string> all = arguments;
      all.push_back(at(name));
      return all;
    };
    const Outcome alone = nibble(with_output("one"), scratch_.path());
    ASSERT_EQ(alone.code, 0) << alone.error;
    for (const int ranks : {2, 4}) {
      const std::string name = "ranks" + std::to_string(ranks);
      const Outcome outcome = nibble_on_ranks(ranks, with_output(name), scratch_.path());
      if (outcome.code == -1) GTEST_SKIP() << outcome.out;
      ASSERT_EQ(outcome.code, 0) << outcome.out;
      for (const std::string& file : files) {
        EXPECT_TRUE(*read_text_file(at("one/" + file)) ==
                    *read_text_file(at(name + "/" + file)))
            << file << " of " << ranks << " processes";
      }
      EXPECT_FALSE(fs::exists(at(name + ".training")));
    }
  }

  TemporaryDirectory scratch_;
};

TEST_F(SharedSteps, OfALanguageModelGiveTheSameBytes) {
  write_small_llama(scratch_.path() / "model");
  std::ofstream(at("train.txt")) << story_text(1, 120);
  expect_the_same({"train", at("model"), "--recipe", "w4a16-qat", "--data", at("train.txt"),
                   "--set", "group=16", "--set", "train.steps=3", "--set", "train.batch=2",
                   "--set", "distill.weight=1", "--set", "train.average=0.9", "--set",
                   "train.evaluate_every=2", "--set", "train.sequence_length=32"},
                  {"model.safetensors", "training.csv"});
  const Outcome few = nibble_on_ranks(
      2,
      {"train", at("model"), "--recipe", "w4a16-qat", "--data", at("train.txt"), "--set",
       "group=16", "--set", "train.steps=1", "--threads", "1", "--output", at("few")},
      scratch_.path());
  if (few.code == -1) return;
  EXPECT_NE(few.code, 0);
  EXPECT_THAT(few.out, HasSubstr("train.accumulate of at least 2 is required; found 1"));
  EXPECT_FALSE(fs::exists(at("few")));
}

TEST_F(SharedSteps, MoveBatchNormsAsOneProcessDoes) {
  fs::create_directory(at("model"));
  std::ofstream(at("model/config.json"))
      << R"({"architectures":["ResNetCIFAR"],"depth":8,"widths":[8,16,32],"num_classes":10,
             "image_mean":[0.5,0.5,0.5],"image_std":[0.25,0.25,0.25]})";
  fs::create_directory(at("data"));
  SplitMix64 random(5);
  for (const char* name : {"train.bin", "test_batch.bin"}) {
    std::ofstream file(at("data") + "/" + name, std::ios::binary);
    for (int i = 0; i < 64 * 3073; ++i)
      file.put(static_cast<char>(i % 3073 == 0 ? random.next() % 10 : random.next() % 256));
  }
  expect_the_same({"train", at("model"), "--recipe", "float", "--data", at("data"), "--set",
                   "train.steps=3", "--set", "train.batch=8"},
                  {"model.safetensors"});
}

}  // namespace
}  // namespace nibble
