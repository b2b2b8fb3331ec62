// What a layer costs: equal to building the model with that layer exchanged and measuring
// it as a whole; and the parts of the executor that make it cheap.
#include "recipes/eval/attribution.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/base/json.h"
#include "kernels/runtime/kv_cache.h"
#include "kernels/tokenizer/tokenizer.h"
#include "recipes/data/story_grammar.h"
#include "recipes/models/load_model.h"
#include "recipes/report/quality_json.h"
#include "tests/recipes/tiny_mixture.h"

namespace nibble {
namespace {

using testing::HasSubstr;

// The model that ships, its layers of blocks 0 and 2 in coarse 3 bits, down_proj of 1
// too.
class Attributed : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    auto model = load_model(
        std::filesystem::path(NIBBLE_SOURCE_DIR) / "recipes/examples/stories", {});
    ASSERT_TRUE(model.ok()) << model.status().message();
    floats_ = new std::shared_ptr<const Artifact>(
        std::make_shared<const Artifact>(std::move(model).value()));
    const auto tokenizer = make_tokenizer((*floats_)->tokenizer, 896);
    ASSERT_TRUE(tokenizer.ok());
    sequences_ = new std::vector<std::vector<int32_t>>;
    for (uint64_t i = 0; i < 4; ++i)
      sequences_->push_back(*(*tokenizer)->encode(make_story(5, i).text));
  }
  static void TearDownTestSuite() {
    delete floats_;
    delete sequences_;
  }
  static Artifact with_quantized(const std::vector<std::string>& layers) {
    return with_quantized(**floats_, layers);
  }
  static Artifact with_quantized(Artifact artifact,
                                 const std::vector<std::string>& layers) {
    const QuantScheme scheme = *parse_scheme("int3/g32@f16");
    for (const std::string& name : layers) {
      const Tensor tensor = artifact.tensors.at(name);
      const std::vector<float> values = *to_float(tensor);
      const MatrixView<const float> x(values.data(), tensor.rows(), tensor.cols());
      Result<CodedMatrix> q = choose_scales(x, scheme, ScaleRule{});
      EXPECT_TRUE(q.ok() && quantize(x, *q).ok());
      artifact.packed[name] = *pack(*q, tensor.shape);
      artifact.layers[name].weight = scheme;
      artifact.tensors.erase(name);
    }
    return artifact;
  }
  static Executor run(Artifact artifact) {
    auto executor =
        Executor::create(std::make_shared<const Artifact>(std::move(artifact)), {});
    EXPECT_TRUE(executor.ok()) << executor.status().message();
    return std::move(executor).value();
  }
  static double kl_of(Executor& model, Executor& reference) {
    const auto quality = evaluate_text(model, &reference, *sequences_, {});
    EXPECT_TRUE(quality.ok()) << quality.status().message();
    return *quality->kl;
  }

  const std::vector<std::string> layers_ = {
      "model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight",
      "model.layers.1.mlp.down_proj.weight", "model.layers.2.self_attn.v_proj.weight"};
  static std::shared_ptr<const Artifact>* floats_;
  static std::vector<std::vector<int32_t>>* sequences_;
};
std::shared_ptr<const Artifact>* Attributed::floats_ = nullptr;
std::vector<std::vector<int32_t>>* Attributed::sequences_ = nullptr;

TEST_F(Attributed, RestoredEqualsTheModelWithoutThatLayer) {
  Executor reference = run(**floats_), quantized = run(with_quantized(layers_));
  const auto found = attribute_layers(quantized, reference, *sequences_, false, {});
  ASSERT_TRUE(found.ok()) << found.status().message();
  ASSERT_EQ(found->layers.size(), layers_.size());
  const double whole = kl_of(quantized, reference);
  EXPECT_NEAR(found->kl, whole, 1e-9);
  for (size_t i = 0; i < found->layers.size(); ++i) {
    const LayerCost& layer = found->layers[i];
    if (i > 0) {
      EXPECT_GE(found->layers[i - 1].cost, layer.cost);
    }
    EXPECT_LE(layer.ci95.low, layer.cost);
    EXPECT_GE(layer.ci95.high, layer.cost);
    EXPECT_EQ(layer.scheme, "int3/g32@f16");
    std::vector<std::string> others;
    for (const std::string& name : layers_) {
      if (name != layer.layer) others.push_back(name);
    }
    Executor without = run(with_quantized(others));
    EXPECT_NEAR(layer.cost, whole - kl_of(without, reference), 1e-9) << layer.layer;
  }
  // The executor is as it was.
  EXPECT_EQ(kl_of(quantized, reference), whole);
  const nlohmann::json json = attribution_json(*found);
  EXPECT_EQ(json["layers"][0]["layer"], found->layers[0].layer);
  EXPECT_EQ(attribution_rows(*found).size(), layers_.size() + 1);
}

TEST_F(Attributed, AloneEqualsTheModelWithOnlyThatLayer) {
  Executor reference = run(**floats_), quantized = run(with_quantized(layers_));
  const auto found = attribute_layers(quantized, reference, *sequences_, true, {});
  ASSERT_TRUE(found.ok()) << found.status().message();
  for (const LayerCost& layer : found->layers) {
    Executor only = run(with_quantized({layer.layer}));
    EXPECT_NEAR(layer.cost, kl_of(only, reference), 1e-9) << layer.layer;
    EXPECT_GT(layer.cost, 0) << layer.layer;
  }
}

// A mixture's layers are its experts': each is exchanged by itself.
TEST_F(Attributed, EveryExpertHasItsOwnCost) {
  const Artifact mixture = tiny_mixture();
  const std::vector<std::string> layers = {"model.layers.0.mlp.experts.2.gate_proj.weight",
                                           "model.layers.1.mlp.experts.0.down_proj.weight",
                                           "model.layers.1.mlp.experts.3.up_proj.weight",
                                           "model.layers.1.self_attn.o_proj.weight"};
  std::vector<std::vector<int32_t>> sequences(3);
  for (int32_t i = 0; i < 60; ++i) {
    sequences[static_cast<size_t>(i % 3)].push_back(i * i * 7 % 40);
  }
  const auto kl = [&](Executor& model, Executor& reference) {
    return *evaluate_text(model, &reference, sequences, {})->kl;
  };
  Executor reference = run(mixture), quantized = run(with_quantized(mixture, layers));
  const double whole = kl(quantized, reference);
  const auto restored = attribute_layers(quantized, reference, sequences, false, {});
  const auto alone = attribute_layers(quantized, reference, sequences, true, {});
  ASSERT_TRUE(restored.ok()) << restored.status().message();
  ASSERT_TRUE(alone.ok()) << alone.status().message();
  ASSERT_EQ(restored->layers.size(), layers.size());
  for (const LayerCost& layer : restored->layers) {
    std::vector<std::string> others;
    for (const std::string& name : layers) {
      if (name != layer.layer) others.push_back(name);
    }
    Executor without = run(with_quantized(mixture, others));
    EXPECT_NEAR(layer.cost, whole - kl(without, reference), 1e-9) << layer.layer;
    EXPECT_NE(layer.cost, 0) << layer.layer;
  }
  for (const LayerCost& layer : alone->layers) {
    Executor only = run(with_quantized(mixture, {layer.layer}));
    EXPECT_NEAR(layer.cost, kl(only, reference), 1e-9) << layer.layer;
    EXPECT_GT(layer.cost, 0) << layer.layer;
  }
  EXPECT_EQ(kl(quantized, reference), whole);  // the executor is as it was
}

TEST_F(Attributed, Refusals) {
  Executor reference = run(**floats_), other = run(**floats_),
           quantized = run(with_quantized({layers_[0]}));
  EXPECT_THAT(
      attribute_layers(other, reference, *sequences_, false, {}).status().message(),
      HasSubstr("a quantized artifact was required; found no quantized layer"));
  EXPECT_THAT(
      attribute_layers(quantized, quantized, *sequences_, false, {}).status().message(),
      HasSubstr("the reference must have the layer in float"));
  EXPECT_THAT(attribute_layers(quantized, reference, {}, false, {}).status().message(),
              HasSubstr("at least one was required"));
}

// A cache belongs to executors that store it alike.
TEST_F(Attributed, ACacheOfOtherSchemesIsRefused) {
  auto plain = Executor::create(*floats_, {});
  auto eight = Executor::create(*floats_, ExecutorOptions{.kv = "int8"});
  ASSERT_TRUE(plain.ok() && eight.ok());
  auto cache = eight->make_cache(4);
  ASSERT_TRUE(cache.ok());
  std::vector<float> logits(896);
  const std::vector<int32_t> ids = {1};
  EXPECT_THAT(plain->forward(ids, **cache, {logits.data(), 1, 896}).message(),
              HasSubstr("another model's"));
  EXPECT_TRUE(eight->forward(ids, **cache, {logits.data(), 1, 896}).ok());
}

TEST_F(Attributed, APassFromAStageIsTheWholePass) {
  for (const char* kv : {"f32", "int8"}) {
    auto executor = Executor::create(*floats_, ExecutorOptions{.kv = kv});
    ASSERT_TRUE(executor.ok()) << executor.status().message();
    const std::vector<int32_t>& ids = (*sequences_)[0];
    const int64_t n = static_cast<int64_t>(ids.size());
    auto cache = executor->make_cache(n);
    ASSERT_TRUE(cache.ok());
    std::vector<float> whole(static_cast<size_t>(n * 896)), part = whole;
    BlockInputs kept;
    ASSERT_TRUE(
        executor->forward_keeping(ids, **cache, {whole.data(), n, 896}, kept).ok());
    // The start, a stage a block, and what comes after the blocks.
    const int blocks = (*floats_)->program.block_count();
    ASSERT_EQ(kept.stages.size(), static_cast<size_t>(blocks) + 2);
    EXPECT_EQ(*executor->stage_of("model.layers.1.mlp.down_proj.weight"), 2u);
    for (size_t stage = 0; stage < kept.stages.size(); ++stage) {
      (*cache)->truncate(0);
      std::fill(part.begin(), part.end(), 0.0f);
      ASSERT_TRUE(
          executor->forward_from(stage, kept, ids, **cache, {part.data(), n, 896}).ok());
      EXPECT_EQ(whole, part) << "stage " << stage;
    }
    (*cache)->truncate(0);
    EXPECT_THAT(
        executor->forward_from(99, kept, ids, **cache, {part.data(), n, 896}).message(),
        HasSubstr("found stage 99"));
    EXPECT_EQ(executor->exchange_layer("nothing", floats_->get()).code(),
              StatusCode::not_found);
    EXPECT_EQ(executor->stage_of("nothing").status().code(), StatusCode::not_found);
  }
}

}  // namespace
}  // namespace nibble
