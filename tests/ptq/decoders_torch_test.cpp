// The torch modules of every decoder architecture against transformers' logits, and the
// recipes w8a16 and w4a16-rtn from module to artifact: the runtime gives what the module
// gives.
#include <ATen/ATen.h>

#include "export/exporter.h"
#include "export/validate/validate.h"
#include "ptq/calibrate.h"
#include "ptq/module/program_module.h"
#include "recipes/recipe/recipe.h"
#include "tests/interop/transformers.h"

namespace nibble::transformers {
namespace {

constexpr double kLogits = 1e-4;

std::vector<float> module_logits(const Artifact& artifact,
                                 const std::vector<int32_t>& ids) {
  const torch::NoGradGuard no_gradient;
  ProgramModule module(artifact);
  module->eval();
  at::Tensor input = at::empty({1, static_cast<int64_t>(ids.size())}, at::kLong);
  std::copy(ids.begin(), ids.end(), input.mutable_data_ptr<int64_t>());
  const at::Tensor logits = module->forward(input).contiguous();
  return {logits.const_data_ptr<float>(),
          logits.const_data_ptr<float>() + logits.numel()};
}

// sqrt(sum (a - b)^2 / sum b^2)
double root_mean_square(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    difference += std::pow(static_cast<double>(a[i]) - b[i], 2);
    size += std::pow(static_cast<double>(b[i]), 2);
  }
  return std::sqrt(difference / size);
}

class TorchDecoders : public Checkpoints {};

TEST_F(TorchDecoders, GiveTransformersLogitsAndFreezeToWhatTheRuntimeGives) {
  for (const std::string& name : cases_) {
    SCOPED_TRACE(name);
    const Artifact artifact = load(name);
    const std::vector<int32_t> tokens = ids(name);
    EXPECT_LT(relative_difference(module_logits(artifact, tokens), logits(name)),
              kLogits);
    for (const char* recipe_name : {"w8a16", "w4a16-rtn"}) {
      SCOPED_TRACE(recipe_name);
      const Recipe recipe = sample::take(load_recipe(recipe_name, {"group=16"}));
      const Plan plan = sample::take(make_plan(recipe, artifact.program));
      const Artifact quantized =
          freeze(calibrate(std::make_shared<const Artifact>(artifact), plan, {}, {}),
                 artifact.provenance);
      EXPECT_TRUE(quantized.is_quantized());
      EXPECT_TRUE(check_artifact(quantized).ok());
      const std::vector<float> ours = runtime_logits(quantized, tokens, 11);
      EXPECT_LT(relative_difference(ours, module_logits(quantized, tokens)), kLogits);
      // Quantized, yet the same model: these random nets amplify every error, and a
      // router near a tie may choose another expert.
      const bool close = std::string(recipe_name) == "w8a16" && !name.starts_with("moe");
      EXPECT_GT(relative_difference(ours, logits(name)), 1e-4);
      EXPECT_LT(root_mean_square(ours, logits(name)), close ? 0.05 : 0.8);
    }
  }
}

// Embedding and lm_head, one tensor or two, in 8 and 4 bits: recipe, codes on disk
// (once), runtime, validate and ONNX.
TEST_F(TorchDecoders, EmbeddingAndHeadAreQuantizedLikeAnyLayer) {
  const Ran check = run_python("onnx_run.py", "check /nonexistent");
  for (const char* name : {"qwen3", "qwen3_tied"}) {
    const Artifact artifact = load(name);
    const bool tied = std::string(name) == "qwen3_tied";
    const std::string embedding = "model.embed_tokens.weight";
    for (const char* scheme : {"int8n/r@f32", "int4/g16@f16"}) {
      SCOPED_TRACE(cat(name, " ", scheme));
      std::vector<std::string> settings = {"group=16", cat("embedding=", scheme)};
      if (!tied) settings.push_back(cat("lm_head=", scheme));
      const Plan plan = sample::take(
          make_plan(sample::take(load_recipe("w4a16-rtn", settings)), artifact.program));
      const Artifact quantized =
          freeze(calibrate(std::make_shared<const Artifact>(artifact), plan, {}, {}),
                 artifact.provenance);
      EXPECT_EQ(to_string(quantized.packed.at(embedding).scheme), scheme);
      EXPECT_EQ(quantized.packed.count("lm_head.weight"), tied ? 0u : 1u);
      EXPECT_EQ(quantized.ledger.find(embedding)->method, "rtn");

      const auto path = directory_ / "ends";
      ExportOptions options;
      options.overwrite = true;
      Status status =
          sample::take(find_exporter("nibble"))->write(quantized, path, options);
      ASSERT_TRUE(status.ok()) << status.message();
      const ValidationReport report = validate_artifact(path);
      for (const Check& each : report.checks) {
        EXPECT_EQ(each.outcome, Check::Outcome::passed)
            << each.name << ": " << each.detail;
      }
      const Artifact read = sample::take(read_artifact(path));
      const std::vector<int32_t> tokens = ids(name);
      const std::vector<float> ours = runtime_logits(read, tokens, tokens.size());
      EXPECT_LT(relative_difference(ours, module_logits(quantized, tokens)), kLogits);
      EXPECT_LT(root_mean_square(ours, logits(name)), 0.8);

      if (check.status == 77) continue;  // no ONNX Runtime here
      const auto onnx = directory_ / "ends_onnx", out = directory_ / "ends_logits";
      status = sample::take(find_exporter("onnx"))->write(read, onnx, options);
      ASSERT_TRUE(status.ok()) << status.message();
      std::string prompt;
      for (const int32_t id : tokens) prompt += cat(prompt.empty() ? "" : ",", id);
      const Ran ran = run_python(
          "onnx_run.py", cat("tokens ", onnx.string(), " ", prompt, " 0 ", out.string()));
      ASSERT_EQ(ran.status, 0) << ran.output;
      EXPECT_LT(relative_difference(read_values<float>(out), ours), kLogits);
    }
  }
}

}  // namespace
}  // namespace nibble::transformers
