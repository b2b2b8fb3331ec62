// Inputs rounded to FP8 and to few bits: the formula, and a layer that reads them.
#include "kernels/runtime/rounded_inputs.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/base/float_types.h"
#include "kernels/runtime/executor.h"
#include "kernels/runtime/kv_cache.h"
#include "tests/kernels/random_artifact.h"

namespace nibble {
namespace {

ActivationScheme scheme(const char* text, bool dynamic, float scale = 0) {
  return {.scheme = *parse_scheme(text), .dynamic = dynamic, .scale = scale};
}

TEST(RoundedInputs, WhichSchemesAreMeant) {
  EXPECT_TRUE(is_rounded_input(scheme("e4m3/r@f32", true)));
  EXPECT_TRUE(is_rounded_input(scheme("e4m3/t@f32", false, 0.5f)));
  EXPECT_FALSE(is_rounded_input(scheme("e4m3/r@f32", false, 0.5f)));
  EXPECT_FALSE(is_rounded_input(scheme("e4m3/t@f32", true)));
  EXPECT_TRUE(is_rounded_input(scheme("int4n/r@f32", true)));
  EXPECT_FALSE(is_rounded_input(scheme("int4n/t@f32", false, 0.5f)));
  EXPECT_FALSE(is_rounded_input(scheme("int4/r@f32", true)));  // -8 has no opposite
  EXPECT_FALSE(is_rounded_input(scheme("int8n/r@f32", true)));
}

TEST(RoundedInputs, EachTokenHasItsOwnScale) {
  // 896 / 448 = 2: values are halved, rounded to 3 bits after the first, and doubled.
  const std::vector<float> x = {896, 1, 37, -2.2f, 0, 0, 0, 0};
  std::vector<float> y(8, -1);
  round_inputs(scheme("e4m3/r@f32", true), {x.data(), 2, 4}, y.data());
  EXPECT_EQ(y, (std::vector<float>{896, 1, 36, -2.25f, 0, 0, 0, 0}));
  // Static: what does not fit saturates.
  round_inputs(scheme("e4m3/t@f32", false, 1.0f), {x.data(), 2, 4}, y.data());
  EXPECT_EQ(y, (std::vector<float>{448, 1, 36, -2.25f, 0, 0, 0, 0}));
}

TEST(RoundedInputs, FewBits) {
  // 14 / 7 = 2; halves go to the even code.
  const std::vector<float> x = {14, 3, -5, -2.2f, 0, 0, 0, 0};
  std::vector<float> y(8, -1);
  round_inputs(scheme("int4n/r@f32", true), {x.data(), 2, 4}, y.data());
  EXPECT_EQ(y, (std::vector<float>{14, 4, -4, -2, 0, 0, 0, 0}));
}

// A layer with FP8 inputs gives what the same layer gives for inputs that are rounded
// before.
TEST(RoundedInputs, ALayerReadsThem) {
  SplitMix64 random(8);
  Artifact artifact;
  Program& program = artifact.program;
  program.architecture = "Chain";
  program.vocabulary = 5;
  program.context_length = 8;
  program.inputs = {{"input_ids", DType::i64, {"batch", "sequence"}}};
  program.outputs = {{"logits", DType::f32, {"batch", "sequence", "5"}}};
  program.nodes = {
      {"embedding", "embed", 0, {"input_ids"}, {"x"}, {{"weight", "embed.weight"}}, {}},
      {"linear", "head", 0, {"x"}, {"logits"}, {{"weight", "head.weight"}}, {}}};
  artifact.tensors["embed.weight"] = random_tensor({5, 40}, random);
  artifact.packed["head.weight"] = *pack_as(random_tensor({5, 40}, random), "e4m3/r@f32");
  LayerScheme& layer = artifact.layers["head.weight"];
  layer.weight = artifact.packed["head.weight"].scheme;
  Artifact before = artifact;
  layer.input = scheme("e4m3/r@f32", true);
  const std::vector<float> rows = *to_float(artifact.tensors["embed.weight"]);
  std::vector<float> rounded(rows.size());
  round_inputs(*layer.input, {rows.data(), 5, 40}, rounded.data());
  EXPECT_NE(rounded, rows);
  before.tensors["embed.weight"] = make_tensor({5, 40}, std::span<const float>(rounded));
  std::vector<std::vector<float>> logits;
  for (const Artifact& each : {artifact, before}) {
    Result<Executor> executor =
        Executor::create(std::make_shared<const Artifact>(each), ExecutorOptions{});
    ASSERT_TRUE(executor.ok()) << executor.status().message();
    auto cache = executor->make_cache(4);
    ASSERT_TRUE(cache.ok());
    logits.emplace_back(15);
    const std::vector<int32_t> tokens = {1, 4, 2};
    ASSERT_TRUE(executor->forward(tokens, **cache, {logits.back().data(), 3, 5}).ok());
  }
  EXPECT_EQ(logits[0], logits[1]);
}

}  // namespace
}  // namespace nibble
