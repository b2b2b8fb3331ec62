// The command on a convolutional net: data sets, static integer activations, the exact
// mode.
#include <gmock/gmock.h>

#include "tests/recipes/command.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;
using Json = nlohmann::json;

class CliImages : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!built_with_torch(directory_.path()))
      GTEST_SKIP() << "this build has no LibTorch";
    write_small_resnet(at("model"));
    fs::create_directory(at("data"));
    write_images(at("data/train.bin"), 96, 1);
    write_images(at("data/test_batch.bin"), 48, 2);
  }
  std::string at(const std::string& name) const {
    return (directory_.path() / name).string();
  }
  Outcome run(const std::vector<std::string>& arguments) const {
    return nibble(arguments, directory_.path());
  }

  TemporaryDirectory directory_;
};

TEST_F(CliImages, FromNoiseToAnIntegerNet) {
  const Json trained = parsed(run({"train",     at("model"),
                                   "--recipe",  "float",
                                   "--data",    at("data"),
                                   "--set",     "train.steps=24",
                                   "--set",     "train.batch=32",
                                   "--set",     "train.warmup_steps=2",
                                   "--set",     "train.learning_rate=0.01",
                                   "--set",     "seed=3",
                                   "--set",     "data.augment=false",
                                   "--threads", "1",
                                   "--output",  at("float"),
                                   "--json"}));
  EXPECT_GT(trained["after"]["accuracy"], 0.2);  // of ten classes
  EXPECT_EQ(trained["after"]["images"], 48);

  const Json made = parsed(run(
      {"quantize", at("float"), "--recipe", "w8a8-static", "--calibration", at("data"),
       "--set", "calibration.sequences=64", "--output", at("w8a8"), "--json"}));
  EXPECT_THAT(made["notes"].dump(), HasSubstr("integers and the classes of"));
  EXPECT_GT(made["after"]["argmax_agreement"], 0.8);
  EXPECT_GT(made["after"]["images_per_second"]["median"], 0);
  EXPECT_NEAR(made["before"]["accuracy"].get<double>(),
              trained["after"]["accuracy"].get<double>(), 1e-12);

  const Json inspected = parsed(run({"inspect", at("w8a8"), "--json"}));
  EXPECT_FALSE(inspected["activations"].empty());
  int folded = 0;
  for (const Json& entry : inspected["ledger"])
    folded += entry["method"] == "folded" ? 1 : 0;
  EXPECT_EQ(folded, 7 * 4);  // the batch norms' four vectors

  const Json quality = parsed(run({"evaluate", at("w8a8"), "--dataset", at("data"),
                                   "--reference", at("float"), "--json"}));
  for (const char* key : {"accuracy", "accuracy_ci95", "argmax_agreement", "images"}) {
    EXPECT_TRUE(quality.contains(key)) << key;
  }
  EXPECT_EQ(quality["argmax_agreement"], made["after"]["argmax_agreement"]);
  EXPECT_EQ(parsed(run({"evaluate", at("w8a8"), "--dataset", at("data"), "--limit", "10",
                        "--json"}))["images"],
            10);
  const Json valid = parsed(run({"validate", at("w8a8"), "--reference", at("float"),
                                 "--dataset", at("data"), "--json"}));
  EXPECT_EQ(valid["passed"], true) << valid.dump(1);
  EXPECT_GT(
      parsed(run({"bench", at("w8a8"), "--repeats", "1", "--json"}))["images_per_second"],
      0);

  const Json tuned =
      parsed(run({"train", at("float"), "--recipe", "w4a4-qat", "--data", at("data"),
                  "--set", "train.steps=3", "--set", "train.batch=16", "--set",
                  "calibration.sequences=32", "--set", "qat.batch_norm.epochs=0.2",
                  "--threads", "1", "--output", at("w4a4"), "--json"}));
  EXPECT_THAT(tuned["notes"].dump(), HasSubstr("integers and the classes of"));
  EXPECT_THAT(tuned["notes"].dump(), HasSubstr("steps with batch norms in place"));
  std::map<std::string, int> schemes;
  for (const Json& layer : tuned["layers"]) ++schemes[layer["scheme"].get<std::string>()];
  EXPECT_EQ(schemes["int8/r@f32"], 2);
  EXPECT_EQ(schemes["int4/r@f32"], 6);
}

TEST_F(CliImages, MixedImagesAreTheTeachersToJudge) {
  ASSERT_EQ(run({"train", at("model"), "--recipe", "float", "--data", at("data"), "--set",
                 "train.steps=2", "--threads", "1", "--output", at("float")})
                .code,
            0);
  const auto train = [&](const std::string& output, const std::string& mixup,
                         const std::string& teacher) {
    return run({"train",     at("float"),
                "--recipe",  "w4a4-qat",
                "--data",    at("data"),
                "--set",     "train.steps=3",
                "--set",     "train.batch=16",
                "--set",     "calibration.sequences=32",
                "--set",     "qat.batch_norm.epochs=0",
                "--set",     "data.mixup=" + mixup,
                "--set",     "distill.weight=" + teacher,
                "--threads", "1",
                "--output",  at(output),
                "--json"});
  };
  const Outcome labels = train("labels", "0.5", "0.5");
  EXPECT_EQ(labels.code, 2);
  EXPECT_THAT(labels.error, HasSubstr("data.mixup: distill.weight=1 is required"));
  EXPECT_FALSE(fs::exists(at("labels")));
  for (const char* output : {"mixed", "again"})
    ASSERT_EQ(train(output, "0.5", "1").code, 0) << output;
  ASSERT_EQ(train("plain", "0", "1").code, 0);
  EXPECT_EQ(files_of(at("mixed")).at("model.safetensors"),
            files_of(at("again")).at("model.safetensors"));
  EXPECT_NE(files_of(at("mixed")).at("model.safetensors"),
            files_of(at("plain")).at("model.safetensors"));
}

TEST_F(CliImages, TheWrongKindOfDataIsNamed) {
  ASSERT_EQ(run({"train", at("model"), "--recipe", "float", "--data", at("data"), "--set",
                 "train.steps=1", "--threads", "1", "--output", at("float")})
                .code,
            0);
  std::ofstream(at("text.txt")) << "Once upon a time.\n";
  const Outcome text = run({"evaluate", at("float"), "--text", at("text.txt")});
  EXPECT_EQ(text.code, 2);
  EXPECT_EQ(last_line(text, directory_.path()),
            "nibble: [data] text.txt: text needs a language model; found ResNetCIFAR; "
            "give images (a "
            "CIFAR or MNIST folder)");
  const Outcome prompt = run({"generate", at("float"), "--prompt", "x"});
  EXPECT_EQ(prompt.code, 2);
  EXPECT_THAT(prompt.error, HasSubstr("a language model is required; found ResNetCIFAR"));
}

}  // namespace
}  // namespace nibble
