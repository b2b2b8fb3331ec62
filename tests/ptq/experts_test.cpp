// Mixtures of experts: module and runtime agree, each expert is calibrated on its own
// tokens, and one that too few tokens reach is named, or rounded to nearest and said so.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "export/exporter.h"
#include "export/validate/validate.h"
#include "kernels/base/parallel.h"
#include "kernels/program/layers.h"
#include "kernels/runtime/executor.h"
#include "kernels/runtime/kv_cache.h"
#include "ptq/calibrate.h"
#include "ptq/error.h"
#include "ptq/methods/method.h"
#include "ptq/module/mixture.h"
#include "ptq/module/program_module.h"
#include "recipes/models/architecture.h"
#include "recipes/models/initialise.h"
#include "recipes/recipe/recipe.h"
#include "tests/kernels/temporary_directory.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr int64_t kExperts = 4, kVocabulary = 40;

// Two layers of four experts, two a token.
std::shared_ptr<const Artifact> mixture(uint64_t seed) {
  auto artifact = std::make_shared<Artifact>();
  artifact->config_json =
      R"({"architectures":["Qwen3MoeForCausalLM"],"model_type":"qwen3_moe",
          "vocab_size":40,"hidden_size":16,"intermediate_size":24,"num_hidden_layers":2,
          "num_attention_heads":2,"num_key_value_heads":1,"head_dim":8,
          "max_position_embeddings":64,"num_experts":4,"num_experts_per_tok":2,
          "moe_intermediate_size":12,"norm_topk_prob":true,"tie_word_embeddings":false})";
  artifact->program =
      find_architecture("qwen3_moe").value()->program(artifact->config_json).value();
  artifact->tensors = initialise(artifact->program, 0.4, seed).value();
  return artifact;
}

CalibrationData sequences(int64_t count, int64_t length, uint64_t seed) {
  at::Generator generator = at::detail::createCPUGenerator(seed);
  CalibrationData data;
  for (int64_t i = 0; i < count; ++i) {
    const at::Tensor ids = at::randint(0, kVocabulary, {length}, generator, at::kInt);
    data.sequences.emplace_back(ids.data_ptr<int32_t>(),
                                ids.data_ptr<int32_t>() + length);
  }
  data.description = "random ids";
  return data;
}

Plan gptq_plan(const Artifact& model, int64_t count, int64_t length,
               std::vector<std::string> overrides = {}) {
  for (const std::string& setting :
       {cat("calibration.sequences=", count), cat("calibration.length=", length),
        std::string("group=8")}) {
    overrides.push_back(setting);
  }
  return make_plan(load_recipe("w4a16-gptq", overrides).value(), model.program).value();
}

// What the float model's experts read: layer name -> rows, over all sequences in order.
std::map<std::string, at::Tensor> expert_inputs(const Artifact& model,
                                                const CalibrationData& data) {
  const at::NoGradGuard no_gradients;
  ProgramModule module(model);
  module->eval();
  std::map<std::string, std::vector<at::Tensor>> rows;
  module->set_tap(
      [&](const Node& node, const std::vector<at::Tensor>& inputs, const at::Tensor&) {
        if (node.op != "moe") return;
        const at::Tensor x = inputs[0].reshape({-1, inputs[0].size(-1)});
        const at::Tensor chosen = route(node, inputs[1]).chosen;
        for (int64_t e = 0; e < kExperts; ++e) {
          rows[cat(node.name, ".", e)].push_back(
              x.index_select(0, tokens_of(chosen, e).tokens));
        }
      });
  for (const std::vector<int32_t>& ids : data.sequences) {
    module->forward(at::tensor(ids).to(at::kLong).unsqueeze(0));
  }
  std::map<std::string, at::Tensor> all;
  for (const auto& [name, parts] : rows) all[name] = at::cat(parts);
  return all;
}

TEST(Experts, RoutingIsTheSameAsTheRuntimesAndTiesGoToTheFirst) {
  Node node;
  node.attributes = {{"experts_per_token", int64_t{2}}, {"normalize", int64_t{0}}};
  const Routing routing =
      route(node, at::tensor({0.0f, 3.0f, 3.0f, 1.0f, 5.0f, 5.0f, 5.0f, 5.0f}, at::kFloat)
                      .reshape({1, 2, 4}));
  EXPECT_TRUE(
      at::equal(routing.chosen, at::tensor({1, 2, 0, 1}, at::kLong).reshape({2, 2})));
  const ExpertTokens first = tokens_of(routing.chosen, 1);
  EXPECT_TRUE(at::equal(first.tokens, at::tensor({0, 1}, at::kLong)));
  EXPECT_TRUE(at::equal(first.places, at::tensor({0, 1}, at::kLong)));
}

TEST(Experts, ModuleAndRuntimeAgreeAtAnyThreadCount) {
  const auto model = mixture(1);
  const std::vector<int32_t> ids = sequences(1, 30, 5).sequences[0];
  const at::NoGradGuard no_gradients;
  ProgramModule module(*model);
  module->eval();
  const at::Tensor expected =
      module->forward(at::tensor(ids).to(at::kLong).unsqueeze(0)).contiguous();
  std::vector<float> before;
  const int threads = thread_count();
  for (const int count : {1, 2, 3}) {
    set_thread_count(count);
    Executor executor = Executor::create(model, {}).value();
    auto cache = executor.make_cache(30).value();
    std::vector<float> logits(30 * kVocabulary);
    ASSERT_TRUE(
        executor.forward(ids, *cache, MatrixView<float>(logits.data(), 30, kVocabulary))
            .ok());
    if (before.empty()) before = logits;
    EXPECT_EQ(logits, before);
    const at::Tensor ours = at::tensor(logits).reshape(expected.sizes());
    EXPECT_LT((ours - expected).abs().max().item<double>(),
              1e-5 * expected.abs().max().item<double>());
  }
  set_thread_count(threads);
}

TEST(Experts, GradientsReachEveryExpertAndTheRouter) {
  ProgramModule module(*mixture(2));
  const std::vector<int32_t> ids = sequences(1, 40, 6).sequences[0];
  module->forward(at::tensor(ids).to(at::kLong).unsqueeze(0)).square().sum().backward();
  for (const Layer& layer : layers_of(module->program())) {
    const at::Tensor gradient = module->parameter(layer.tensor).grad();
    ASSERT_TRUE(gradient.defined()) << layer.name;
    EXPECT_GT(gradient.abs().max().item<double>(), 0) << layer.name;
  }
}

// Eight sequences are one round, so that the test's Hessian is the solver's bit for bit.
TEST(Experts, EachIsSolvedOnItsOwnTokensAlone) {
  const auto model = mixture(3);
  const CalibrationData data = sequences(8, 40, 7);
  const Plan plan =
      gptq_plan(*model, 8, 40, {"gptq.quantized_prefix=false", "gptq.match_float=false"});
  const Calibrated result = calibrate(model, plan, data, {});
  const auto inputs = expert_inputs(*model, data);
  int64_t total = 0;
  for (const auto& [expert, rows] : inputs) {
    total += rows.size(0);
    for (const char* part : {".gate_proj", ".up_proj", ".down_proj"}) {
      const std::string tensor = cat(expert, part, ".weight");
      EXPECT_EQ(result.accounts.at(tensor).tokens, rows.size(0)) << tensor;
      EXPECT_GT(result.accounts.at(tensor).output_error, 0) << tensor;
      at::Tensor mine = rows;
      if (std::string(part) == ".down_proj") {
        const auto weight = [&](const char* which) {
          return to_torch(model->tensors.at(cat(expert, which, ".weight")));
        };
        mine = at::silu(at::linear(rows, weight(".gate_proj"))) *
               at::linear(rows, weight(".up_proj"));
      }
      Hessian hessian(mine.size(1));
      hessian.accumulate(mine);
      const std::vector<float> values = to_float(model->tensors.at(tensor)).value();
      const LayerPlan& layer = *plan.find(tensor);
      const LayerProblem problem{
          .node = layer.node,
          .weight = {values.data(), model->tensors.at(tensor).rows(),
                     model->tensors.at(tensor).cols()},
          .scheme = layer.scheme.weight,
          .rule = layer.rule,
          .gptq = plan.gptq,
          .autoround = {},
          .inputs = &hessian};
      EXPECT_EQ(find_method("gptq")->solve(problem).coded.codes,
                result.weights.at(tensor).codes)
          << tensor;
    }
  }
  EXPECT_EQ(total, 2 * 2 * 8 * 40);  // two layers, two experts a token
  EXPECT_EQ(result.accounts.count("model.layers.0.mlp.gate.weight"), 0u);  // stays float
}

TEST(Experts, TheSameCodesAtAnyThreadCountAndOneArtifact) {
  const auto model = mixture(4);
  const CalibrationData data = sequences(20, 24, 8);
  const Plan plan = gptq_plan(*model, 20, 24);
  Artifact first;
  const int threads = thread_count();
  for (const int count : {1, 2}) {
    set_thread_count(count);
    const Artifact frozen = freeze(calibrate(model, plan, data, {}), {});
    if (count == 1) first = frozen;
    for (const auto& [name, packed] : frozen.packed) {
      EXPECT_EQ(packed.codes.text(), first.packed.at(name).codes.text()) << name;
    }
  }
  set_thread_count(threads);
  int64_t tokens = 0;
  for (const LedgerEntry& entry : first.ledger.entries) {
    if (entry.tensor.find(".experts.") == std::string::npos) continue;
    EXPECT_EQ(entry.method, "gptq") << entry.tensor;
    if (entry.tensor.ends_with("gate_proj.weight")) tokens += entry.tokens;
  }
  EXPECT_EQ(tokens, 2 * 2 * 20 * 24);
  EXPECT_EQ(first.ledger.find("model.layers.1.mlp.gate.weight")->reason,
            "the router chooses experts; a wrong choice costs more than its bits");

  TemporaryDirectory directory;
  const auto path = directory.path() / "artifact";
  const Status written = find_exporter("nibble").value()->write(first, path, {});
  ASSERT_TRUE(written.ok()) << written.message();
  const ValidationReport report = validate_artifact(path);
  for (const Check& check : report.checks) {
    EXPECT_NE(check.outcome, Check::Outcome::failed)
        << check.name << ": " << check.detail;
    if (check.name == "kernels") {
      // Two layers of q, k, v, o and twelve experts' matrices, one float head and
      // routers.
      EXPECT_THAT(check.detail, HasSubstr(" layers)"));
    }
  }
  EXPECT_EQ(read_artifact(path).value().program, model->program);
}

TEST(Experts, TooFewTokensAreAnErrorThatNamesTheExpert) {
  const auto model = mixture(5);
  const CalibrationData data = sequences(2, 10, 9);
  const Plan plan = gptq_plan(*model, 2, 10, {"gptq.quantized_prefix=false"});
  const auto inputs = expert_inputs(*model, data);
  try {
    calibrate(model, plan, data, {});
    FAIL() << "calibrate accepted it";
  } catch (const Error& error) {
    EXPECT_EQ(error.status().code(), StatusCode::failed_precondition);
    EXPECT_EQ(std::string(error.what()),
              cat("[calibrate] model.layers.0.mlp.experts.0: an expert needs 32 "
                  "calibration tokens (calibration.minimum_tokens_per_expert); found ",
                  inputs.at("model.layers.0.mlp.experts.0").size(0),
                  "; give more or other calibration data, or set it to 0, which rounds "
                  "such experts to nearest"));
  }
  // Enough for those who ask for less.
  int64_t fewest = 1000;
  for (const auto& [name, rows] : inputs) fewest = std::min(fewest, rows.size(0));
  const Plan less = gptq_plan(*model, 2, 10,
                              {"gptq.quantized_prefix=false",
                               cat("calibration.minimum_tokens_per_expert=", fewest)});
  EXPECT_EQ(less.minimum_tokens_per_expert, fewest);
  if (fewest > 0) {
    EXPECT_EQ(calibrate(model, less, data, {})
                  .plan.find("model.layers.0.mlp.experts.0.up_proj.weight")
                  ->method,
              "gptq");
  }
}

TEST(Experts, WithoutAMinimumTheyAreRoundedToNearestAndTheLedgerSaysSo) {
  const auto model = mixture(6);
  const CalibrationData data = sequences(4, 18, 10);
  const Plan plan = gptq_plan(
      *model, 4, 18,
      {"calibration.minimum_tokens_per_expert=0", "gptq.quantized_prefix=false"});
  const Artifact frozen = freeze(calibrate(model, plan, data, {}), {});
  int rounded = 0, solved = 0;
  for (const auto& [expert, rows] : expert_inputs(*model, data)) {
    const bool few = rows.size(0) < 32;
    (few ? rounded : solved) += 1;
    for (const char* part : {".gate_proj", ".up_proj", ".down_proj"}) {
      const LedgerEntry& entry = *frozen.ledger.find(cat(expert, part, ".weight"));
      EXPECT_EQ(entry.method, few ? "rtn" : "gptq") << entry.tensor;
      EXPECT_EQ(entry.tokens, rows.size(0)) << entry.tensor;
      if (!few) continue;
      EXPECT_EQ(entry.note,
                cat("rounded to nearest: ", rows.size(0),
                    " calibration tokens reached this expert, fewer than 32"));
    }
  }
  // 72 tokens to 2 of 4 experts: 36 each on average, so both kinds are there.
  EXPECT_GT(rounded, 0);
  EXPECT_GT(solved, 0);
}

TEST(Experts, ReadFloatsAndSayIt) {
  const auto model = mixture(7);
  Recipe recipe = load_recipe("w8a16", {}).value();
  recipe.layers.back().input = "int8n/r@f32";
  EXPECT_THAT(make_plan(recipe, model->program).status().message(),
              HasSubstr("experts read floats; found input int8n/r@f32 for those of "
                        "model.layers.0.mlp.experts; allowed: leave it out"));
  // All of them run as int8 where the caller asks for it.
  const Plan plan = make_plan(load_recipe("w8a16", {}).value(), model->program).value();
  const auto frozen =
      std::make_shared<const Artifact>(freeze(calibrate(model, plan, {}, {}), {}));
  const Executor executor =
      Executor::create(frozen, {.compute = Compute::dynamic_int8}).value();
  EXPECT_THAT(executor.kernels().at("model.layers.1.mlp.experts.3.down_proj.weight"),
              StartsWith("linear_s8_"));
}

}  // namespace
}  // namespace nibble
