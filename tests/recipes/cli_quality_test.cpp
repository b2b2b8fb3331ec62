// The command's quality figures: windows, noise floor, KV caches, attribution, gates and
// several recipes at once.
#include <gmock/gmock.h>

#include "tests/recipes/command.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;
using Json = nlohmann::json;

class CliQuality : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    shared_ = new TemporaryDirectory;
    write_small_llama(shared_->path() / "model");
    std::ofstream(shared_->path() / "heldout.txt") << story_text(2, 6);
  }
  static void TearDownTestSuite() { delete shared_; }
  std::string at(const std::string& name) const {
    return (shared_->path() / name).string();
  }
  std::string mine(const std::string& name) const {
    return (scratch_.path() / name).string();
  }
  Outcome run(std::vector<std::string> arguments,
              const std::vector<std::string>& more = {}) const {
    arguments.insert(arguments.end(), more.begin(), more.end());
    return nibble(arguments, scratch_.path());
  }
  std::vector<std::string> evaluate(const std::vector<std::string>& more) const {
    std::vector<std::string> arguments = {"evaluate", at("model"), "--text",
                                          at("heldout.txt")};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  }
  std::vector<std::string> quantize(const std::string& recipe,
                                    const std::string& output) const {
    return {"quantize", at("model"),    "--recipe",        recipe,     "--set",
            "group=16", "--evaluation", at("heldout.txt"), "--output", output};
  }

  TemporaryDirectory scratch_;
  static TemporaryDirectory* shared_;
};
TemporaryDirectory* CliQuality::shared_ = nullptr;

#define SKIP_WITHOUT_TORCH() \
  if (!built_with_torch(scratch_.path())) GTEST_SKIP() << "this build has no LibTorch"

TEST_F(CliQuality, WindowsOverlapAndTheReferenceHasItsNoise) {
  const Json json = parsed(run(evaluate({"--reference", at("model"), "--stride", "32",
                                         "--sequence-length", "64", "--json"})));
  EXPECT_EQ(json["stride"], 32);
  EXPECT_EQ(json["kl"], 0);
  EXPECT_TRUE(json["kl_is_noise"]);
  EXPECT_GT(json["noise_floor"]["kl_p99"], 0);
  EXPECT_LT(json["noise_floor"]["kl"], 1e-7);
  for (const char* name : {"perplexity", "kl", "kl_p90", "kl_p99", "top1_agreement"}) {
    const Json& interval = json[std::string(name) + "_ci95"];
    ASSERT_EQ(interval.size(), 2u) << name;
    EXPECT_LE(interval[0], interval[1]) << name;
  }
  EXPECT_THAT(json["intervals"].get<std::string>(), HasSubstr("bootstrap over"));
  EXPECT_GT(json["positions"].size(), 4u);
  const Json plain = parsed(run(evaluate({"--sequence-length", "64", "--json"})));
  // Every token is predicted once in both; overlapping windows have more context.
  EXPECT_EQ(plain["tokens"], json["tokens"]);
  EXPECT_FALSE(plain.contains("noise_floor"));
  const Outcome text = run(evaluate({"--reference", at("model")}));
  EXPECT_EQ(text.code, 0) << text.error;
  EXPECT_THAT(text.out, HasSubstr("noise floor  KL "));
  EXPECT_THAT(text.out, HasSubstr("is not over it: noise"));
  EXPECT_THAT(text.out, HasSubstr("positions"));
  const Outcome wrong = run(evaluate({"--noise-floor"}));
  EXPECT_EQ(wrong.code, 2);
  EXPECT_THAT(wrong.error, HasSubstr("give --reference MODEL"));
}

TEST_F(CliQuality, KvCachesOfEveryVerb) {
  const Json json =
      parsed(run(evaluate({"--reference", at("model"), "--kv", "int4", "--json"})));
  EXPECT_EQ(json["kv_cache"]["scheme"],
            "uint4/b32x1@f16+m/b32x1@f16,uint4/r@f16+m/r@f16");
  EXPECT_EQ(json["kv_cache"]["positions"], 128);
  EXPECT_LT(json["kv_cache"]["of_f16"], 0.5);
  EXPECT_GT(json["kl"], 0);
  EXPECT_FALSE(json["kl_is_noise"]);
  EXPECT_EQ(json["f32_cache"]["kl"], 0);  // the weights are the reference's
  const Json eight =
      parsed(run(evaluate({"--reference", at("model"), "--kv", "int8", "--json"})));
  EXPECT_LT(eight["kl"], json["kl"]);
  const Outcome text = run(evaluate({"--reference", at("model"), "--kv", "fp8"}));
  EXPECT_THAT(text.out, HasSubstr("KV cache"));
  EXPECT_THAT(text.out, HasSubstr(" of f16"));
  const std::vector<std::string> generate = {
      "generate", at("model"), "--prompt", "Once", "--tokens", "8", "--greedy", "--json"};
  EXPECT_EQ(parsed(run(generate, {"--kv", "f32"}))["ids"], parsed(run(generate))["ids"]);
  parsed(run(generate, {"--kv", "int8"}));
  const Json bench = parsed(run({"bench", at("model"), "--repeats", "1", "--tokens", "2",
                                 "--prefill", "8", "--kv", "int8", "--json"}));
  EXPECT_EQ(bench["kv_cache"]["scheme"], "int8n/r@f16");
  const Outcome wrong = run(evaluate({"--kv", "int9"}));
  EXPECT_EQ(wrong.code, 2);
  EXPECT_THAT(wrong.error, HasSubstr("[kv] int9: f32, f16, bf16, int8, fp8, int4"));
}

TEST_F(CliQuality, AnArtifactKeepsItsKvCacheAndItsLayersCost) {
  SKIP_WITHOUT_TORCH();
  const Json made =
      parsed(run(quantize("w4a16-rtn", mine("w4")), {"--set", "kv=int8", "--json"}));
  EXPECT_EQ(made["after"]["kv_cache"]["scheme"], "int8n/r@f16");
  EXPECT_EQ(made["parts"][0]["name"], "same, f32 cache");
  EXPECT_TRUE(made.contains("noise_floor"));
  const std::string manifest = *read_text_file(mine("w4") + "/manifest.json");
  EXPECT_THAT(manifest, HasSubstr(R"(kv_heads 2 head_dim 8 keys \"int8n/r@f16\")"));
  const std::vector<std::string> measure = {"evaluate",        mine("w4"),    "--text",
                                            at("heldout.txt"), "--reference", at("model"),
                                            "--json"};
  const Json own = parsed(run(measure));
  EXPECT_EQ(own["kv_cache"]["scheme"], "int8n/r@f16");
  const Json other = parsed(run(measure, {"--kv", "f32"}));
  EXPECT_EQ(own["f32_cache"]["kl"], other["kl"]);
  EXPECT_NE(own["kl"], other["kl"]);

  const Json costs = parsed(run(measure, {"--attribute", "--report", mine("page.html")}));
  const Json& layers = costs["attribution"]["layers"];
  EXPECT_EQ(layers.size(), 14u);
  for (size_t i = 1; i < layers.size(); ++i)
    EXPECT_GE(layers[i - 1]["kl_cost"], layers[i]["kl_cost"]);
  const std::string page = *read_text_file(mine("page.html"));
  for (const char* canvas : {"id=\"attribution\"", "id=\"positions\""})
    EXPECT_TRUE(page.find(canvas) != std::string::npos) << canvas;
  const Outcome wrong =
      run({"evaluate", mine("w4"), "--text", at("heldout.txt"), "--attribute"});
  EXPECT_EQ(wrong.code, 2);
}

TEST_F(CliQuality, AStaticCacheHasItsScalesFromCalibration) {
  SKIP_WITHOUT_TORCH();
  const std::vector<std::string> fp8 = {"--set", "kv=fp8-static", "--json"};
  const Outcome none = run(quantize("w8a16", mine("none")), fp8);
  EXPECT_EQ(none.code, 7) << none.error;
  EXPECT_THAT(none.error, HasSubstr("calibration data is required; found none"));
  const auto with_text = [&](const char* recipe, const std::string& output) {
    std::vector<std::string> words = quantize(recipe, output);
    words.insert(words.end(),
                 {"--calibration", at("heldout.txt"), "--set", "calibration.sequences=8",
                  "--set", "calibration.length=64"});
    return words;
  };
  const Json made = parsed(run(with_text("w8a16", mine("fp8")), fp8));
  EXPECT_THAT(std::string(made["after"]["kv_cache"]["scheme"]),
              ::testing::StartsWith("e4m3/t@bf16="));
  // Loose enough for f32's logits, tight enough that scales cannot be wrong by much.
  EXPECT_LT(made["after"]["kl"], 0.05);
  const auto figures = [&](const std::string& model,
                           const std::vector<std::string>& more) {
    std::vector<std::string> words = {"evaluate",        model,         "--text",
                                      at("heldout.txt"), "--reference", at("model"),
                                      "--json"};
    words.insert(words.end(), more.begin(), more.end());
    return parsed(run(words));
  };
  const Json own = figures(mine("fp8"), {});
  EXPECT_NE(own["kl"], figures(mine("fp8"), {"--kv", "f32"})["kl"]);
  // The checkpoint that other runtimes load says the same, and reads back as the same.
  parsed(run({"export", mine("fp8"), "--to", "compressed-tensors", "--output",
              mine("exported"), "--json"}));
  // Rows in transformers' order add up in another one.
  EXPECT_NEAR(figures(mine("exported"), {})["kl"], own["kl"], 1e-5);
  const Outcome trained =
      run({"train", at("model"), "--recipe", "w4a16-qat", "--data", at("heldout.txt"),
           "--set", "kv=int8-static", "--output", mine("trained")});
  EXPECT_EQ(trained.code, 2);
  EXPECT_THAT(trained.error,
              HasSubstr("training quantizes each position by scales of its "
                        "own; found 'int8-static'"));
  const Outcome bare = run({"generate", at("model"), "--prompt", "Once", "--tokens", "2",
                            "--kv", "fp8-static"});
  EXPECT_NE(bare.code, 0);
  EXPECT_THAT(bare.error, HasSubstr("a calibrated scale is required; found none"));
}

TEST_F(CliQuality, AGateThatIsNotMetKeepsTheNameFree) {
  SKIP_WITHOUT_TORCH();
  const Outcome rejected =
      run(quantize("w4a16-rtn", mine("w4")), {"--max-kl", "0.00001", "--json"});
  EXPECT_EQ(rejected.code, 11) << rejected.error;
  EXPECT_FALSE(fs::exists(mine("w4")));
  EXPECT_TRUE(fs::exists(mine("w4.rejected") + "/manifest.json"));
  const Json json = parse_json_or_throw(rejected.out);
  EXPECT_TRUE(json["rejected"]);
  EXPECT_EQ(json["gates"][0]["gate"], "max_kl");
  EXPECT_THAT(rejected.error, HasSubstr("max_kl at most"));
  EXPECT_THAT(rejected.error, HasSubstr("w4.rejected"));
  // Met: the artifact has its name.
  const Outcome met = run(quantize("w4a16-rtn", mine("w4")),
                          {"--max-kl", "100", "--max-perplexity-increase", "10000%"});
  EXPECT_EQ(met.code, 0) << met.error;
  EXPECT_TRUE(fs::exists(mine("w4") + "/manifest.json"));
  EXPECT_THAT(met.out, HasSubstr("gate  max_kl at most 100.0: met"));
  // Without data there is nothing to decide by, and that is said before any work.
  const Outcome blind = run({"quantize", at("model"), "--recipe", "w8a16", "--output",
                             mine("blind"), "--set", "gate.max_kl=1"});
  EXPECT_EQ(blind.code, 7);
  EXPECT_THAT(blind.error, HasSubstr("give --evaluation"));
  const Outcome kind = run(quantize("w8a16", mine("kind")), {"--min-accuracy", "90"});
  EXPECT_EQ(kind.code, 2);
  EXPECT_THAT(kind.error, HasSubstr("a classifier of images is required"));
}

TEST_F(CliQuality, SeveralRecipesSideBySide) {
  SKIP_WITHOUT_TORCH();
  const Json json =
      parsed(run({"quantize", at("model"), "--recipe", "w4a16-rtn,w8a16", "--evaluation",
                  at("heldout.txt"), "--output", mine("many"), "--json"}));
  ASSERT_EQ(json["recipes"].size(), 2u);
  EXPECT_EQ(json["recipes"][0]["recipe"], "w8a16");  // 8 bits lose far less than a half
  EXPECT_LE(json["recipes"][0]["loss_times_megabytes"],
            json["recipes"][1]["loss_times_megabytes"]);
  for (const char* file :
       {"w4a16-rtn/manifest.json", "w8a16/manifest.json", "report.html"})
    EXPECT_TRUE(fs::exists(mine("many") + "/" + file)) << file;
  const Outcome again = run(
      {"quantize", at("model"), "--recipe", "w4a16-rtn,w8a16", "--output", mine("many")});
  EXPECT_EQ(again.code, 9);
  const Outcome twice = run(
      {"quantize", at("model"), "--recipe", "w8a16,w8a16", "--output", mine("twice")});
  EXPECT_EQ(twice.code, 2);
  EXPECT_FALSE(fs::exists(mine("twice")));
}

TEST_F(CliQuality, BudgetsOfASweepBesideAUniformRecipe) {
  SKIP_WITHOUT_TORCH();
  std::ofstream(mine("train.txt")) << story_text(3, 8);
  const Json json = parsed(
      run({"quantize", at("model"), "--recipe", "mixed-gptq,w4a16-rtn", "--sweep",
           "mixed.bits=3,5", "--calibration", mine("train.txt"), "--evaluation",
           at("heldout.txt"), "--output", mine("sweep"), "--set",
           "calibration.sequences=2", "--set", "calibration.length=16", "--json"}));
  // The uniform one has no budget to be swept: it runs once.
  std::map<std::string, double> bits;
  for (const Json& entry : json["recipes"])
    bits[entry["recipe"]] = entry["after"]["quantized_bits_per_weight"];
  ASSERT_EQ(bits.size(), 3u);
  EXPECT_LE(bits.at("mixed-gptq mixed.bits=3"), 3);
  EXPECT_LE(bits.at("mixed-gptq mixed.bits=5"), 5);
  EXPECT_GT(bits.at("mixed-gptq mixed.bits=5"), bits.at("mixed-gptq mixed.bits=3"));
  EXPECT_EQ(bits.count("w4a16-rtn"), 1u);
  // A sweep of another key goes through every recipe.
  const Outcome every =
      run({"quantize", at("model"), "--recipe", "w8a16,w4a16-rtn", "--sweep",
           "group=32,64", "--dry-run", "--output", mine("every")});
  EXPECT_EQ(every.code, 0) << every.error;
  for (const char* name : {"w8a16 group=32", "w8a16 group=64", "w4a16-rtn group=64"})
    EXPECT_THAT(every.out, HasSubstr(name));
}

}  // namespace
}  // namespace nibble
