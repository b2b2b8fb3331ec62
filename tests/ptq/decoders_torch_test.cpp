// The torch modules of every decoder architecture against transformers' logits, and the
// recipes w8a16 and w4a16-rtn from module to artifact: the runtime gives what the module
// gives.
#include <ATen/ATen.h>

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
      // Quantized, yet the same model: these random nets amplify every error.
      EXPECT_GT(relative_difference(ours, logits(name)), 1e-4);
      EXPECT_LT(root_mean_square(ours, logits(name)),
                std::string(recipe_name) == "w8a16" ? 0.05 : 0.8);
    }
  }
}

}  // namespace
}  // namespace nibble::transformers
