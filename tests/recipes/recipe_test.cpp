// Recipes: every wrong key, type, pattern and combination has its message, with file and
// line.
#include "recipes/recipe/recipe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "recipes/recipe/nearest_name.h"
#include "tests/kernels/temporary_directory.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

constexpr const char* kGood = R"(name: mine
kind: ptq
bits: 4
group: 32
method: rtn
layers:
  - pattern: lm_head
    weight: float
    reason: close tokens
  - pattern: "*"
)";

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

Status status_of(const std::string& yaml,
                 const std::vector<std::string>& overrides = {}) {
  return parse_recipe(yaml, "my.yaml", overrides).status();
}

void add_node(Program& program, std::string op, std::string name, std::string input,
              std::map<std::string, std::string> parameters) {
  program.nodes.push_back({.op = std::move(op),
                           .name = name,
                           .block = 0,
                           .inputs = {std::move(input)},
                           .outputs = {name + "_out"},
                           .parameters = std::move(parameters),
                           .attributes = {}});
}

// embed -> two linears -> a head that shares the embedding.
Program language_model(bool tied) {
  Program program;
  program.architecture = "LlamaForCausalLM";
  program.vocabulary = 16;
  program.context_length = 8;
  program.inputs = {{"ids", DType::i64, {"batch", "sequence"}}};
  add_node(program, "embedding", "model.embed_tokens", "ids",
           {{"weight", "embed.weight"}});
  add_node(program, "linear", "model.layers.0.q_proj", "model.embed_tokens_out",
           {{"weight", "q.weight"}});
  add_node(program, "linear", "model.layers.0.o_proj", "model.layers.0.q_proj_out",
           {{"weight", "o.weight"}});
  add_node(program, "linear", "lm_head", "model.layers.0.o_proj_out",
           {{"weight", tied ? "embed.weight" : "head.weight"}});
  program.outputs = {{"lm_head_out", DType::f32, {"batch", "sequence", "16"}}};
  return program;
}

// conv1 -> relu -> conv2 -> relu -> pool -> linear.
Program convolutional_net() {
  Program program;
  program.architecture = "ResNetCIFAR";
  program.inputs = {{"image", DType::f32, {"batch", "3", "8", "8"}}};
  add_node(program, "conv2d", "conv1", "image",
           {{"weight", "conv1.weight"}, {"bias", "conv1.bias"}});
  add_node(program, "relu", "relu1", "conv1_out", {});
  add_node(program, "conv2d", "layer1.conv", "relu1_out",
           {{"weight", "layer1.weight"}, {"bias", "layer1.bias"}});
  add_node(program, "relu", "relu2", "layer1.conv_out", {});
  add_node(program, "global_average_pool", "pool", "relu2_out", {});
  add_node(program, "linear", "linear", "pool_out", {{"weight", "linear.weight"}});
  program.outputs = {{"linear_out", DType::f32, {"batch", "10"}}};
  return program;
}

TEST(Recipe, EveryBuiltInReadsAndPrintsBackEqual) {
  const std::vector<std::string> names = builtin_recipes();
  EXPECT_THAT(names, ::testing::UnorderedElementsAre(
                         "float", "w8a16", "w8a8-dynamic", "w4a16-rtn", "w4a16-gptq",
                         "w8a8-static", "w4a16-qat", "w4a4-qat", "w3a3-qat", "w2a2-qat",
                         "w4a16-awq", "w4a16-hqq", "w4a16-autoround", "mixed-gptq",
                         "w8a8-smoothquant", "w8a8-gptq", "lora", "qlora", "w2a16-qat",
                         "w4a8-qat", "w4a16-tuned", "w4a4-rotated", "w8a8-qat"));
  for (const std::string& name : names) {
    const Result<Recipe> recipe = load_recipe(name, {});
    ASSERT_TRUE(recipe.ok()) << name << ": " << recipe.status().message();
    EXPECT_EQ(recipe->name, name);
    EXPECT_FALSE(recipe->description.empty()) << name;
    const std::string printed = print_recipe(*recipe);
    const Result<Recipe> again = parse_recipe(printed, "printed", {});
    ASSERT_TRUE(again.ok()) << name << ": " << again.status().message() << "\n"
                            << printed;
    EXPECT_EQ(print_recipe(*again), printed);
  }
}

TEST(Recipe, ShortKeysSpellTheScheme) {
  const auto scheme = [](const std::vector<std::string>& overrides) {
    const Result<Recipe> recipe = parse_recipe(kGood, "my.yaml", overrides);
    EXPECT_TRUE(recipe.ok()) << recipe.status().message();
    return recipe.ok() ? recipe->weight_scheme() : "";
  };
  EXPECT_EQ(scheme({}), "int4/g32@f16");
  EXPECT_EQ(scheme({"group=128", "symmetric=false"}), "uint4/g128@f16+z/g128@uint4");
  EXPECT_EQ(scheme({"bits=8", "group=0", "scale=f32"}), "int8/r@f32");
  EXPECT_EQ(scheme({"weight=nf4/f64@f32"}), "nf4/f64@f32");
}

TEST(Recipe, OverridesReachEveryKind) {
  const Result<Recipe> recipe = load_recipe(
      "float",
      {"train.steps=60", "seed=3", "train.learning_rate=0.5", "data.per_line=true"});
  ASSERT_TRUE(recipe.ok()) << recipe.status().message();
  EXPECT_EQ(recipe->train.steps, 60);
  EXPECT_EQ(recipe->train.seed, 3u);
  EXPECT_EQ(recipe->train.learning_rate, 0.5);
  EXPECT_TRUE(recipe->data_per_line);
}

struct Wrong {
  const char* from;
  const char* to;
  const char* message;
};

class WrongRecipe : public ::testing::TestWithParam<Wrong> {};

TEST_P(WrongRecipe, IsNamedWithFileAndLine) {
  const Wrong& wrong = GetParam();
  const Status status = status_of(replaced(kGood, wrong.from, wrong.to));
  EXPECT_EQ(status.code(), StatusCode::invalid_argument);
  EXPECT_THAT(status.message(), HasSubstr(wrong.message));
}

INSTANTIATE_TEST_SUITE_P(
    Messages, WrongRecipe,
    ::testing::Values(
        Wrong{"method: rtn", "metod: rtn",
              "[recipe] my.yaml:5: unknown key; found 'metod' (did you mean 'method'?); "
              "allowed: name, "},
        Wrong{"method: rtn", "method: gptk",
              "[recipe] my.yaml:5: method takes rtn or gptq or imatrix or awq or hqq or "
              "autoround or adaround; found 'gptk' (did you mean "
              "'gptq'?)"},
        Wrong{
            "method: rtn", "method: rtn\nlow_rank:\n  error: both",
            "[recipe] my.yaml:7: low_rank.error takes outputs or weights; found 'both'"},
        Wrong{"weight: float", "weight: float\n    low_rank: 4",
              "[recipe] my.yaml:7: a float layer has nothing to make up for; found "
              "low_rank 4; allowed: leave it out"},
        Wrong{"pattern: \"*\"", "pattern: \"*\"\n    low_rank: -1",
              "[recipe] my.yaml:11: low_rank.rank takes an integer, 0 to 65536; found "
              "'-1'"},
        Wrong{"kind: ptq\nbits: 4", "kind: qat\nbits: 4\nlow_rank:\n  rank: 4",
              "low_rank.rank means nothing in a recipe of kind qat"},
        Wrong{"bits: 4", "bits: four",
              "[recipe] my.yaml:3: bits takes an integer, 2 to 8; found 'four'"},
        Wrong{"bits: 4", "bits: 9",
              "[recipe] my.yaml:3: bits takes an integer, 2 to 8; found '9'"},
        Wrong{"bits: 4", "bits: 4.5",
              "[recipe] my.yaml:3: bits takes an integer, 2 to 8; found '4.5'"},
        Wrong{"bits: 4", "bits: [4]",
              "[recipe] my.yaml:3: bits takes an integer, 2 to 8; found a list"},
        Wrong{"bits: 4", "symmetric: yes",
              "[recipe] my.yaml:3: symmetric takes true or false; found 'yes'"},
        Wrong{"bits: 4", "weight: int4/g32@f16\nbits: 4",
              "[recipe] my.yaml:4: bits and weight exclude each other; found weight "
              "'int4/g32@f16' at "
              "my.yaml:3"},
        Wrong{"bits: 4", "weight: int4/q32@f16",
              "[recipe] my.yaml:3: weight takes a scheme; found "
              "'int4/q32@f16' ("},
        Wrong{"bits: 4", "bits: 4\nbits: 5",
              "[recipe] my.yaml:4: a key stands once; found 'bits' again"},
        Wrong{
            "bits: 4", "gptq: true",
            "[recipe] my.yaml:3: gptq takes a map; found one value; allowed: damping, "},
        Wrong{"bits: 4", "gptq:\n  dampin: 1",
              "[recipe] my.yaml:4: unknown key; found 'gptq.dampin' (did you mean "
              "'damping'?)"},
        Wrong{
            "bits: 4", "bits: 4\nrotation:\n  parts: residual,head",
            "[recipe] my.yaml:5: rotation.parts takes what of a model is rotated; found "
            "'head'; allowed: residual, heads, down, cache, with commas between"},
        Wrong{"bits: 4", "train:\n  steps: 5",
              "[recipe] my.yaml:4: train.steps means nothing in a recipe of kind ptq"},
        Wrong{"bits: 4", "bits: {", "[recipe] my.yaml:"},
        Wrong{"    reason: close tokens\n", "",
              "[recipe] my.yaml:7: a layer that stays float needs a reason; found none"},
        Wrong{"reason: close tokens", "why: close tokens",
              "[recipe] my.yaml:9: unknown key of a rule; found 'why'"},
        Wrong{"weight: float", "weight: flot",
              "[recipe] my.yaml:8: weight takes a scheme or float; found 'flot' ("},
        Wrong{"- pattern: lm_head\n    weight: float", "- weight: float",
              "[recipe] my.yaml:7: a rule needs a pattern; found none"},
        Wrong{"name: mine", "", "[recipe] my.yaml: name is required; found none"},
        Wrong{"kind: ptq", "kind: float",
              "[recipe] my.yaml:3: bits means nothing in a recipe of kind "
              "float"}));

TEST(Recipe, WrongOverridesNameThemselves) {
  EXPECT_EQ(status_of(kGood, {"group"}).message(),
            "[recipe] --set group: takes KEY=VALUE; found 'group'; allowed: a key of the "
            "recipe, '=' "
            "and a value (train.steps=60)");
  EXPECT_EQ(status_of(kGood, {"group=x"}).message(),
            "[recipe] --set group=x: group takes an integer, 0 to 65536; found 'x'");
  EXPECT_THAT(
      status_of(kGood, {"grop=3"}).message(),
      HasSubstr(
          "[recipe] --set grop=3: unknown key; found 'grop' (did you mean 'group'?)"));
  EXPECT_THAT(
      status_of(kGood, {"train.steps=3"}).message(),
      HasSubstr(
          "[recipe] --set train.steps=3: train.steps means nothing in a recipe of kind "
          "ptq"));
  EXPECT_THAT(status_of(kGood, {"weight=nf4/f64@f32", "group=3"}).message(),
              HasSubstr("group and weight exclude each other"));
}

TEST(Recipe, AMissingRecipeSuggestsTheNearest) {
  const Status status = load_recipe("w4a16-gptk", {}).status();
  EXPECT_EQ(status.code(), StatusCode::not_found);
  EXPECT_THAT(status.message(),
              HasSubstr("[recipe] w4a16-gptk: a built-in recipe or a file is required; "
                        "found neither (did you mean 'w4a16-gptq'?)"));
}

TEST(Recipe, AFileIsReadAndNamed) {
  const TemporaryDirectory directory;
  const std::string path = (directory.path() / "mine.yaml").string();
  std::ofstream(path) << kGood;
  const Result<Recipe> recipe = load_recipe(path, {});
  ASSERT_TRUE(recipe.ok()) << recipe.status().message();
  EXPECT_EQ(recipe->source, path);
  EXPECT_EQ(recipe->layers.size(), 2u);
  EXPECT_EQ(recipe->layers[0].line, 7);
}

// --- plans

Recipe good(const std::vector<std::string>& overrides = {}) {
  return parse_recipe(kGood, "my.yaml", overrides).value();
}

TEST(MakePlan, EveryLayerHasARow) {
  const Result<Plan> plan = make_plan(good(), language_model(false));
  // The embedding matches "*" here: 4 bits are asked for it as well.
  ASSERT_TRUE(plan.ok()) << plan.status().message();
  ASSERT_EQ(plan->layers.size(), 4u);
  EXPECT_EQ(plan->layers[0].tensor, "embed.weight");
  EXPECT_EQ(to_string(plan->layers[1].scheme.weight), "int4/g32@f16");
  EXPECT_EQ(plan->layers[1].method, "rtn");
  EXPECT_EQ(plan->layers[3].method, "float");
  EXPECT_EQ(plan->layers[3].reason, "close tokens");
}

TEST(MakePlan, TheEndsOfALanguageModelHaveKeysOfTheirOwn) {
  const auto schemes = [](const std::string& recipe, bool tied,
                          const std::vector<std::string>& overrides) {
    const Result<Plan> plan =
        make_plan(*load_recipe(recipe, overrides), language_model(tied));
    std::string text;
    if (!plan.ok()) return plan.status().message();
    for (const LayerPlan& layer : plan->layers) {
      text += cat(text.empty() ? "" : ", ", layer.tensor, " ", layer.method);
      if (layer.method != "float") text += " " + to_string(layer.scheme.weight);
    }
    return text;
  };
  const std::string eight = "int8n/r@f32", four = "int4/g32@f16";
  // Every built-in says that they stay float, and why.
  EXPECT_EQ(schemes("w4a16-gptq", false, {}),
            "embed.weight float, q.weight gptq int4/g128@f16, o.weight gptq "
            "int4/g128@f16, head.weight float");
  // An embedding is gathered: rtn. A head of its own is solved as the recipe solves.
  EXPECT_EQ(schemes("w4a16-gptq", false, {"embedding=" + eight, "lm_head=" + four}),
            "embed.weight rtn int8n/r@f32, q.weight gptq int4/g128@f16, o.weight gptq "
            "int4/g128@f16, head.weight gptq int4/g32@f16");
  for (const char* recipe : {"w4a16-gptq", "w4a16-rtn", "w8a16", "w4a16-qat"}) {
    for (const char* key : {"embedding=", "lm_head="}) {
      EXPECT_THAT(schemes(recipe, true, {key + eight}),
                  ::testing::StartsWith("embed.weight rtn int8n/r@f32, q.weight "));
    }
  }
  EXPECT_EQ(
      schemes("w8a16", true, {"embedding=" + eight, "lm_head=" + four}),
      "[recipe] built-in w8a16: embedding and lm_head are one tensor, embed.weight; "
      "found int8n/r@f32 for one and int4/g32@f16 for the other; allowed: one of "
      "the two keys");
  EXPECT_EQ(schemes("w8a16", true, {"embedding=f32"}),
            "[recipe] built-in w8a16: embedding takes a scheme with a scale, or float; "
            "found f32; allowed: int8n/r@f32, int4/g128@f16 and so on");
  Recipe all = good({"lm_head=float"});
  EXPECT_EQ(make_plan(all, language_model(false))->layers[3].reason,
            "kept float by the recipe's key");
  EXPECT_THAT(make_plan(*load_recipe("w8a16", {"lm_head=" + eight}), convolutional_net())
                  .status()
                  .message(),
              HasSubstr("lm_head decides about a language model's; found ResNetCIFAR"));
}

TEST(MakePlan, ATiedWeightHasOneScheme) {
  const Status status = make_plan(good(), language_model(true)).status();
  EXPECT_EQ(status.code(), StatusCode::invalid_argument);
  EXPECT_THAT(status.message(),
              HasSubstr("[recipe] my.yaml:7: model.embed_tokens and lm_head share "
                        "embed.weight; found rtn for one and float for the other"));
  const Result<Plan> plan =
      make_plan(*load_recipe("w4a16-rtn", {}), language_model(true));
  ASSERT_TRUE(plan.ok()) << plan.status().message();
  EXPECT_EQ(plan->layers.size(), 3u);
  // Both quantized: the embedding's rule says how, the others keep GPTQ.
  const Result<Plan> mixed =
      make_plan(*load_recipe("mixed-gptq", {}), language_model(true));
  ASSERT_TRUE(mixed.ok()) << mixed.status().message();
  EXPECT_EQ(mixed->layers[0].method, "rtn");
  EXPECT_EQ(mixed->layers[1].method, "gptq");
}

TEST(MakePlan, APatternThatMatchesNothingIsAnError) {
  const std::string yaml = replaced(kGood, "pattern: lm_head", "pattern: lm_haed");
  const Recipe recipe = parse_recipe(yaml, "my.yaml", {}).value();
  const Status status = make_plan(recipe, language_model(false)).status();
  EXPECT_EQ(status.code(), StatusCode::invalid_argument);
  EXPECT_EQ(status.message(),
            "[recipe] my.yaml:7: a pattern must match a layer; found 'lm_haed', which "
            "matches none (did "
            "you mean 'lm_head'?); allowed: model.embed_tokens, model.layers.0.q_proj, "
            "model.layers.0.o_proj, lm_head");
}

TEST(MakePlan, FirstAndLastAreTheProgramsWhateverTheirNames) {
  const std::string yaml =
      "name: ends\nkind: ptq\nlayers:\n  - pattern: $first\n    weight: float\n"
      "    reason: first\n  - pattern: $last\n    weight: int8/r@f32\n"
      "  - pattern: \"*\"\n    weight: int4/r@f32\n";
  const Result<Plan> plan =
      make_plan(parse_recipe(yaml, "my.yaml", {}).value(), language_model(false));
  ASSERT_TRUE(plan.ok()) << plan.status().message();
  ASSERT_EQ(plan->layers.size(), 4u);
  EXPECT_EQ(plan->layers[0].method, "float");
  EXPECT_EQ(to_string(plan->layers[1].scheme.weight), "int4/r@f32");
  EXPECT_EQ(to_string(plan->layers[2].scheme.weight), "int4/r@f32");
  EXPECT_EQ(to_string(plan->layers[3].scheme.weight), "int8/r@f32");
}

TEST(MakePlan, ALayerThatNoPatternMatchesIsAnError) {
  const std::string yaml = replaced(kGood, "pattern: \"*\"", "pattern: \"*q_proj\"");
  const Recipe recipe = parse_recipe(yaml, "my.yaml", {}).value();
  EXPECT_THAT(make_plan(recipe, language_model(false)).status().message(),
              HasSubstr("[recipe] my.yaml: every layer is decided by a pattern; found "
                        "model.embed_tokens, which none matches"));
}

TEST(MakePlan, GptqIsForLinearLayersAndIntegerCodes) {
  EXPECT_THAT(
      make_plan(good({"method=gptq"}), language_model(false)).status().message(),
      HasSubstr(
          "[recipe] my.yaml:10: method gptq solves linear layers and convolutions of "
          "one group; found embedding "
          "model.embed_tokens"));
  const Recipe recipe = load_recipe("w4a16-gptq", {"weight=nf4/f64@f32"}).value();
  EXPECT_THAT(
      make_plan(recipe, language_model(false)).status().message(),
      HasSubstr("method gptq needs integer codes with a scale a row or a group; found "
                "nf4/f64@f32 for model.layers.0.q_proj"));
}

TEST(MakePlan, StaticActivationsFollowTheSignOfEachValue) {
  const Result<Plan> plan = make_plan(*load_recipe("w4a4-qat", {}), convolutional_net());
  ASSERT_TRUE(plan.ok()) << plan.status().message();
  std::map<std::string, std::string> values;
  for (const auto& [value, scheme] : plan->activations)
    values[value] = to_string(scheme.scheme);
  EXPECT_EQ(values, (std::map<std::string, std::string>{{"image", "int8/t@f32"},
                                                        {"relu1_out", "uint8/t@f32"},
                                                        {"relu2_out", "uint8/t@f32"},
                                                        {"pool_out", "uint8/t@f32"}}));
  ASSERT_EQ(plan->layers.size(), 3u);
  EXPECT_EQ(to_string(plan->layers[0].scheme.weight), "int8/r@f32");
  EXPECT_FALSE(plan->layers[0].scheme.input);
  EXPECT_EQ(to_string(plan->layers[1].scheme.weight), "int4/r@f32");
  ASSERT_TRUE(plan->layers[1].scheme.input);
  EXPECT_EQ(to_string(plan->layers[1].scheme.input->scheme), "uint4/t@f32");
  EXPECT_FALSE(plan->layers[1].scheme.input->dynamic);
  EXPECT_EQ(to_string(plan->layers[2].scheme.weight), "int8/r@f32");
}

TEST(MakePlan, StaticActivationsNeedAConvolutionalNetAndSymmetricWeights) {
  const Status language =
      make_plan(*load_recipe("w8a8-static", {}), language_model(true)).status();
  EXPECT_EQ(language.code(), StatusCode::unsupported);
  EXPECT_THAT(language.message(),
              HasSubstr("activations.static is the integer path of convolutional "
                        "nets; found LlamaForCausalLM, a language model"));
  const Recipe grouped =
      load_recipe("w8a8-static", {"weight=uint8/g32@f16+z/g32@uint8"}).value();
  EXPECT_THAT(make_plan(grouped, convolutional_net()).status().message(),
              HasSubstr("activations.static needs symmetric integer weights with a scale "
                        "a channel or a "
                        "tensor; found uint8/g32@f16+z/g32@uint8 for conv1"));
}

TEST(MakePlan, ARecipeThatQuantizesNothingIsAnError) {
  const std::string yaml =
      replaced(kGood, "  - pattern: \"*\"\n",
               "  - pattern: \"*\"\n    weight: float\n    reason: none\n");
  const Recipe recipe = parse_recipe(yaml, "my.yaml", {}).value();
  EXPECT_THAT(make_plan(recipe, language_model(false)).status().message(),
              HasSubstr("found every layer float"));
}

TEST(Glob, StarsAndQuestionMarks) {
  EXPECT_TRUE(glob_matches("*", ""));
  EXPECT_TRUE(glob_matches("model.layers.*.mlp.*", "model.layers.11.mlp.down_proj"));
  EXPECT_FALSE(glob_matches("model.layers.*.mlp.*", "model.layers.11.self_attn.q_proj"));
  EXPECT_TRUE(glob_matches("*a*b*", "xxaxxbxx"));
  EXPECT_TRUE(glob_matches("*ab", "abab"));
  EXPECT_FALSE(glob_matches("a?c", "ac"));
  EXPECT_TRUE(glob_matches("a?c", "abc"));
  EXPECT_FALSE(glob_matches("lm_head", "lm_head2"));
}

TEST(NearestName, CountsEditsAndSwaps) {
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3);
  EXPECT_EQ(edit_distance("lm_haed", "lm_head"), 1);
  EXPECT_EQ(edit_distance("", "abc"), 3);
  EXPECT_EQ(nearest_name("calibrte", {"evaluate", "calibrate"}), "calibrate");
  EXPECT_EQ(nearest_name("xyz", {"evaluate", "calibrate"}), "");
}

}  // namespace
}  // namespace nibble
