#include "recipes/recipe/predict.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "recipes/eval/weight_statistics.h"
#include "recipes/recipe/recipe.h"
#include "tests/recipes/command.h"

namespace nibble {
namespace {

Artifact small_llama(const std::filesystem::path& directory) {
  write_small_llama(directory);
  auto model = load_model(directory, {});
  EXPECT_TRUE(model.ok()) << model.status().message();
  return std::move(model).value();
}

Plan plan_of(const Artifact& model, const std::string& recipe,
             const std::vector<std::string>& settings = {}) {
  const auto loaded = load_recipe(recipe, settings);
  EXPECT_TRUE(loaded.ok()) << loaded.status().message();
  const auto plan = make_plan(*loaded, model.program);
  EXPECT_TRUE(plan.ok()) << plan.status().message();
  return *plan;
}

TEST(PredictSize, CountsCodesScalesAndWhatStaysFloat) {
  TemporaryDirectory directory;
  const Artifact model = small_llama(directory.path() / "llama");
  const Plan plan = plan_of(model, "w4a16-rtn", {"group=16"});
  const PlanSize size = predict_size(plan, model);
  int64_t floats = 0, quantized = 0;
  for (const auto& [name, tensor] : model.tensors) {
    const LayerPlan* layer = plan.find(name);
    if (layer != nullptr && layer->method != "float") {
      quantized += tensor.numel();
    } else {
      floats += static_cast<int64_t>(tensor.bytes.size());
    }
  }
  ASSERT_GT(quantized, 0);
  // 4 bits and an f16 scale every 16: 5 bits. Rows of 32 and 48 have no remainder.
  EXPECT_EQ(size.bytes, floats + quantized * 5 / 8);
  EXPECT_DOUBLE_EQ(size.quantized_bits_per_weight, 5.0);
  EXPECT_EQ(size.layers, static_cast<int64_t>(plan.layers.size()));
}

TEST(PredictSize, IsWhatQuantizeMakes) {
  TemporaryDirectory directory;
  if (!built_with_torch(directory.path())) GTEST_SKIP() << "built without LibTorch";
  const auto folder = directory.path() / "llama";
  const Artifact model = small_llama(folder);
  for (const std::string recipe : {"w8a16", "w4a16-rtn"}) {
    const auto settings = recipe == "w8a16"
                              ? std::vector<std::string>{}
                              : std::vector<std::string>{"group=20", "low_rank.rank=3",
                                                         "low_rank.error=weights"};
    const PlanSize size = predict_size(plan_of(model, recipe, settings), model);
    std::vector<std::string> command = {"quantize", folder,     "--recipe",
                                        recipe,     "--output", directory.path() / recipe,
                                        "--json"};
    for (const std::string& setting : settings)
      command.insert(command.end(), {"--set", setting});
    const nlohmann::json made = parsed(nibble(command, directory.path()));
    EXPECT_EQ(size.bytes, made["after"]["bytes"].get<int64_t>()) << recipe;
    EXPECT_NEAR(size.bits_per_weight, made["after"]["bits_per_weight"].get<double>(),
                1e-9);
  }
}

TEST(PlanMemory, NamesItsParts) {
  TemporaryDirectory directory;
  const Artifact model = small_llama(directory.path() / "llama");
  const auto plan = [&](const std::vector<std::string>& settings, int64_t cap = 0) {
    const auto memory = plan_memory(plan_of(model, "w4a16-gptq", settings), model,
                                    {.cap = cap, .threads = 1, .evaluates = false});
    EXPECT_TRUE(memory.ok()) << memory.status().message();
    return *memory;
  };
  const auto bytes_of = [&](const std::vector<std::string>& settings, int64_t cap = 0) {
    std::map<std::string, int64_t> bytes;
    for (const MemoryPart& part : plan(settings, cap).parts) bytes[part.what] = part.bytes;
    return bytes;
  };
  const auto one = bytes_of({"calibration.sequences=1600", "calibration.length=64"});
  const auto two = bytes_of({"calibration.sequences=3200", "calibration.length=64"});
  const auto long_one =
      bytes_of({"calibration.sequences=1600", "calibration.length=4096"});
  ASSERT_TRUE(one.count("calibration activations"));
  // All tokens wait before down_proj with the residual and its input; two streams.
  EXPECT_EQ(one.at("calibration activations"), (32 + 48) * 102400 * 4 * 2);
  EXPECT_EQ(two.at("calibration activations"),
            2 * one.at("calibration activations"));
  // No sequence is longer than the context, 128.
  EXPECT_EQ(long_one.at("calibration activations"),
            2 * one.at("calibration activations"));
  EXPECT_EQ(one.at("Hessians of the widest layer"), 48 * 48 * 8 * 4);

  // Below that, only a round of eight sequences is in memory.
  const MemoryPlan free =
      plan({"calibration.sequences=1600", "calibration.length=64"});
  EXPECT_FALSE(free.spills);
  const auto spilled = bytes_of({"calibration.sequences=1600", "calibration.length=64"},
                                free.bytes() - 1);
  EXPECT_EQ(spilled.at("calibration activations"), (32 + 48) * 512 * 4 * 2);
  const auto refused =
      plan_memory(plan_of(model, "w4a16-gptq", {"calibration.length=64"}), model,
                  {.cap = free.least / 2, .threads = 1, .evaluates = false});
  EXPECT_EQ(refused.status().code(), StatusCode::resource_exhausted);
  EXPECT_THAT(refused.status().message(),
              ::testing::HasSubstr("[quantize] --memory: at least "));
}

TEST(WeightStatistics, OfKnownDistributions) {
  // Alternating signs: peak = rms, kurtosis 1. One outlier among n: peak about sqrt(n).
  std::vector<float> values(1000);
  for (size_t i = 0; i < values.size(); ++i) values[i] = i % 2 ? 0.5f : -0.5f;
  auto found = weight_statistics(make_tensor({10, 100}, values));
  ASSERT_TRUE(found.ok());
  EXPECT_DOUBLE_EQ(found->rms, 0.5);
  EXPECT_DOUBLE_EQ(found->peak, 1);
  EXPECT_NEAR(found->kurtosis, 1, 1e-12);

  values.assign(10000, 0.0f);
  values[77] = -3;
  found = weight_statistics(make_tensor({100, 100}, values));
  ASSERT_TRUE(found.ok());
  EXPECT_NEAR(found->peak, 100, 1e-9);
  EXPECT_NEAR(found->kurtosis, 1e4, 10);  // (1 - 1/n)-ish of n

  SplitMix64 random(3);  // uniform: 9/5
  values.resize(200000);
  for (float& value : values) value = static_cast<float>(random.below(1 << 20));
  found = weight_statistics(make_tensor({200000}, values));
  ASSERT_TRUE(found.ok());
  EXPECT_NEAR(found->kurtosis, 1.8, 0.01);

  found = weight_statistics(make_tensor({2, 2}, std::vector<float>(4, 7.0f)));
  ASSERT_TRUE(found.ok());
  EXPECT_EQ(found->kurtosis, 0);  // constant
}

}  // namespace
}  // namespace nibble
