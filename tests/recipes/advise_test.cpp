// What advise says holds together: bytes are those of the artifact that the recipe makes,
// kernels are those that serve it, and what it refuses.
#include "recipes/eval/advise.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>

#include "kernels/ops/linear/linear.h"
#include "kernels/runtime/kv_cache.h"
#include "recipes/models/load_model.h"
#include "recipes/recipe/predict.h"
#include "recipes/recipe/recipe.h"
#include "tests/recipes/tiny_mixture.h"

namespace nibble {
namespace {

using testing::HasSubstr;

constexpr AdviseOptions kQuick = {.context = 32, .prefill = 16, .repeats = 1};

std::shared_ptr<const Artifact> stories() {
  auto model = load_model(
      std::filesystem::path(NIBBLE_SOURCE_DIR) / "recipes/examples/stories", {});
  EXPECT_TRUE(model.ok()) << model.status().message();
  return std::make_shared<const Artifact>(std::move(model).value());
}

const Advice& named(const AdviceReport& report, const std::string& name) {
  for (const Advice& advice : report.advice) {
    if (advice.name == name) return advice;
  }
  ADD_FAILURE() << name;
  return report.advice[0];
}

// What the recipe of "--recipe NAME --set KEY=VALUE ...; --compute int8" will take.
int64_t predicted_bytes(const Artifact& model, const std::string& command) {
  std::istringstream words(command.substr(0, command.find(';')));
  std::string recipe;
  std::vector<std::string> settings;
  for (std::string flag, value; words >> flag >> value;) {
    if (flag == "--recipe") recipe = value;
    if (flag == "--set") settings.push_back(value);
  }
  const Result<Recipe> loaded = load_recipe(recipe, settings);
  EXPECT_TRUE(loaded.ok()) << loaded.status().message();
  return predict_size(*make_plan(*loaded, model.program), model).bytes;
}

TEST(Advise, SaysWhatTheRecipesWillMake) {
  const auto model = stories();
  int64_t steps = 0;
  const Result<AdviceReport> made = advise(
      model, kQuick, [&](int64_t done, int64_t total) {
        EXPECT_EQ(done, ++steps);
        EXPECT_LE(done, total);
      });
  ASSERT_TRUE(made.ok()) << made.status().message();
  const AdviceReport& report = *made;
  EXPECT_GT(report.read_bandwidth, 1e8);
  ASSERT_GE(report.advice.size(), 10u);
  for (size_t i = 1; i < report.advice.size(); ++i) {
    EXPECT_GE(report.advice[i].decode_seconds, report.advice[i - 1].decode_seconds);
  }
  const Advice& floats = named(report, "float");
  EXPECT_EQ(floats.weight_bytes, model->weight_bytes());
  EXPECT_EQ(floats.error, 0);
  // Each command makes an artifact of the size that was said, but for the padding of codes.
  for (const Advice& advice : report.advice) {
    if (advice.command.rfind("--recipe", 0) != 0) continue;
    const auto bytes = static_cast<double>(predicted_bytes(*model, advice.command));
    EXPECT_NEAR(static_cast<double>(advice.weight_bytes), bytes, 0.002 * bytes)
        << advice.name << ": " << advice.command;
  }
  EXPECT_LT(named(report, "w8a16").error, named(report, "w4a16 group 32").error);
  EXPECT_LT(named(report, "w4a16 group 32").error, named(report, "w4a16 group 128").error);
  for (const Advice& advice : report.advice) {
    double layers = 0;
    for (const AdvisedKind& kind : advice.kinds) {
      EXPECT_GT(kind.decode_seconds, 0);
      EXPECT_GT(kind.prefill_seconds, 0);
      layers += static_cast<double>(kind.layers) * kind.decode_seconds;
      bool known = false;
      for (const LinearKernel& row : linear_kernels()) known |= kind.kernel == row.name;
      EXPECT_TRUE(known) << kind.kernel;
    }
    EXPECT_GE(advice.decode_seconds, layers) << advice.name;
    EXPECT_EQ(advice.cache_bytes, floats.cache_bytes);
  }
  const Result<MeasuredAdvice> measured =
      measure_advice(model, named(report, "w4a16 group 128, lm_head w8"), kQuick);
  ASSERT_TRUE(measured.ok()) << measured.status().message();
  EXPECT_GT(measured->decode_seconds, 0);
  EXPECT_GT(measured->prefill_seconds, 0);
  Advice unknown;
  unknown.name = "w3";
  EXPECT_EQ(measure_advice(model, unknown, kQuick).status().code(),
            StatusCode::invalid_argument);
}

TEST(Advise, RefusesWhatItCannotJudge) {
  const auto nothing = [](int64_t, int64_t) {};
  EXPECT_THAT(
      advise(std::make_shared<const Artifact>(tiny_mixture()), kQuick, nothing).status().message(),
      HasSubstr("found a mixture"));

  Artifact quantized = *stories();
  const std::string name = "model.layers.0.mlp.up_proj.weight";
  quantized.tensors.erase(name);
  EXPECT_THAT(
      advise(std::make_shared<const Artifact>(quantized), kQuick, nothing).status().message(),
      HasSubstr("found a quantized one; give the model that it was made from"));
}

}  // namespace
}  // namespace nibble
