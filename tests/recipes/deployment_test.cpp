// What the programs that serve models ask of a plan: the messages, and that what they can
// serve passes.
#include "recipes/recipe/deployment.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "recipes/models/architecture.h"
#include "recipes/models/initialise.h"
#include "recipes/recipe/recipe.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

// One layer of a Llama with an MLP of 11,008, as wide as Llama-2's; the rest is small.
const Artifact& model() {
  static const Artifact artifact = [] {
    Artifact made;
    made.config_json =
        R"({"model_type":"llama","vocab_size":128,"hidden_size":256,
            "intermediate_size":11008,"num_hidden_layers":1,"num_attention_heads":8,
            "num_key_value_heads":2,"max_position_embeddings":64})";
    made.program = *(*find_architecture("LlamaForCausalLM"))->program(made.config_json);
    made.tensors = *initialise(made.program, 0.02, 1);
    return made;
  }();
  return artifact;
}

std::string message(const std::string& recipe, const std::vector<std::string>& overrides,
                    const std::string& target, int64_t devices) {
  const Result<Recipe> loaded = load_recipe(recipe, overrides);
  EXPECT_TRUE(loaded.ok()) << loaded.status().message();
  const Result<Plan> plan = make_plan(*loaded, model().program);
  EXPECT_TRUE(plan.ok()) << plan.status().message();
  return check_deployment(*plan, model(), target, devices).message();
}

const std::string kDown = "[vllm] model.layers.0.mlp.down_proj";

TEST(Deployment, GroupsMustEndWhereADeviceDoes) {
  EXPECT_EQ(message("w4a16-rtn", {}, "vllm", 1), "");
  EXPECT_EQ(message("w4a16-rtn", {}, "vllm", 2), "");
  EXPECT_EQ(
      message("w4a16-rtn", {}, "vllm", 4),
      "[vllm] model.layers.0.self_attn.o_proj: o_proj has 256 columns; tensor-parallel "
      "4 leaves 64 = 0.5 groups of 128; use group 64 or tensor-parallel 2");
  // A scale a row is whole on every device, and a group of 64 is.
  EXPECT_EQ(message("w4a16-rtn", {"group=0"}, "vllm", 4), "");
  EXPECT_EQ(message("w4a16-rtn", {"group=64"}, "vllm", 4), "");
}

TEST(Deployment, TheMessageSaysWhatIsLeftAndWhatWouldDo) {
  // o_proj passes with groups of 64: only the MLP is left to refuse.
  Plan plan = *make_plan(*load_recipe("w4a16-rtn", {}), model().program);
  for (LayerPlan& layer : plan.layers) {
    if (layer.node.ends_with("o_proj")) layer.method = "float";
  }
  EXPECT_EQ(check_deployment(plan, model(), "vllm", 4).message(),
            kDown +
                ": down_proj has 11008 columns; tensor-parallel 4 leaves 2752 = 21.5 "
                "groups of 128; use group 64 or tensor-parallel 2");
}

TEST(Deployment, HeadsAndRowsDivide) {
  EXPECT_EQ(message("w8a16", {}, "vllm", 3),
            "[vllm] model.layers.0.self_attn.attention has 8 heads and 2 key heads; "
            "tensor-parallel 3 does not divide them; use tensor-parallel 2");
  EXPECT_EQ(message("w8a16", {}, "vllm", 8), "");  // key heads are copied
  EXPECT_EQ(
      message("w8a16", {}, "onnxruntime", 2),
      "[onnxruntime] it does not split a layer over devices; found tensor-parallel 2; "
      "leave it out");
  EXPECT_EQ(message("w8a16", {}, "vllm", 0),
            "[recipe] --tensor-parallel: must be at least 1; found 0");
  EXPECT_EQ(
      message("w8a16", {}, "vlm", 1),
      "[recipe] --target: must be one of vllm, tensorrt-llm, onnxruntime, llama.cpp; "
      "found `vlm` (did you mean 'vllm'?)");
}

TEST(Deployment, SchemesThatATargetHasKernelsFor) {
  EXPECT_EQ(
      message("w4a16-rtn", {"bits=3"}, "vllm", 1),
      "[vllm] model.layers.0.self_attn.q_proj would be int3/g128@f16; it serves 4 and "
      "8-bit integers with scales of f16 or bf16, groups of a row, 32, 64 or 128, FP8, "
      "NF4 and FP4; choose one of these");
  EXPECT_EQ(
      message("w4a16-rtn", {"group=16"}, "vllm", 1),
      "[vllm] model.layers.0.self_attn.q_proj would have groups of 16; it has kernels "
      "for a row, 32, 64 or 128; use --set group=128");
  EXPECT_EQ(
      message("w4a16-rtn", {"symmetric=false"}, "llama.cpp", 1),
      "[llama.cpp] model.layers.0.self_attn.q_proj would be "
      "uint4/g128@f16+z/g128@uint4; it serves 4 and 8-bit integers with scales of f16 "
      "or bf16, groups of 32, 64, 128 or 256, symmetric; choose one of these");
  EXPECT_EQ(message("w4a16-rtn", {"embedding=int8n/r@f32"}, "vllm", 1),
            "[vllm] model.embed_tokens is an embedding, which must be float; found "
            "int8n/r@f32; use --set embedding=float");
  EXPECT_EQ(message("w4a16-rtn", {"weight=nf4/f64@f32"}, "vllm", 1), "");
  EXPECT_THAT(
      message("w4a16-rtn", {"weight=nf4/f64@f32"}, "vllm", 2),
      HasSubstr("whose blocks run over the ends of rows; tensor-parallel 2 cannot "
                "split it"));
  EXPECT_THAT(message("w4a16-rtn", {"weight=nf4/f64@f32"}, "tensorrt-llm", 1),
              HasSubstr("would be nf4/f64@f32"));
  EXPECT_EQ(message("w8a8-dynamic", {}, "vllm", 2), "");
  EXPECT_THAT(message("w8a8-dynamic", {}, "llama.cpp", 1),
              HasSubstr("it reads float inputs; leave `input` out"));
  EXPECT_EQ(message("w4a16-rtn", {"weight=e4m3/r@f32"}, "vllm", 2), "");
  EXPECT_EQ(
      message("w4a16-rtn", {"weight=e4m3/b128x128@f32"}, "vllm", 4),
      "[vllm] model.layers.0.self_attn.q_proj has 256 rows; tensor-parallel 4 leaves 64 "
      "= 0.5 blocks of 128; use a scale a row or tensor-parallel 2");
  EXPECT_THAT(message("w4a16-rtn", {"weight=e4m3/b64x64@f32"}, "vllm", 1),
              HasSubstr("its FP8 has a scale a tensor, a row or 128x128"));
}

TEST(Deployment, EveryTargetHasAnExampleThatPasses) {
  for (const DeploymentTarget& target : deployment_targets()) {
    EXPECT_EQ(message("w4a16-rtn", {}, target.name, 1), "") << target.name;
  }
}

}  // namespace
}  // namespace nibble
