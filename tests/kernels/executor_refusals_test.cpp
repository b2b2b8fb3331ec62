// What the executor refuses, with its messages: nothing of an artifact is silently
// ignored.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/runtime/executor.h"
#include "kernels/runtime/kv_cache.h"
#include "kernels/runtime/sampler.h"
#include "tests/kernels/random_artifact.h"

namespace nibble {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int64_t kVocabulary = 7;

// embedding [7, 40] -> linear [7, 40]
Artifact chain(const std::string& scheme) {
  SplitMix64 random(3);
  Artifact artifact;
  Program& program = artifact.program;
  program.architecture = "Chain";
  program.vocabulary = kVocabulary;
  program.context_length = 8;
  program.inputs = {{"input_ids", DType::i64, {"batch", "sequence"}}};
  program.outputs = {{"logits", DType::f32, {"batch", "sequence", "7"}}};
  program.nodes = {
      {"embedding", "embed", 0, {"input_ids"}, {"x"}, {{"weight", "embed.weight"}}, {}},
      {"linear", "head", 0, {"x"}, {"logits"}, {{"weight", "head.weight"}}, {}}};
  artifact.tensors["embed.weight"] = random_tensor({kVocabulary, 40}, random);
  artifact.packed["head.weight"] =
      *pack_as(random_tensor({kVocabulary, 40}, random), scheme);
  artifact.layers["head.weight"].weight = artifact.packed["head.weight"].scheme;
  return artifact;
}

Result<Executor> open(Artifact artifact, ExecutorOptions options = {}) {
  return Executor::create(std::make_shared<const Artifact>(std::move(artifact)), options);
}

const Node& first_linear(const Artifact& artifact) {
  for (const Node& node : artifact.program.nodes) {
    if (node.op == "linear") return node;
  }
  return artifact.program.nodes[0];
}

// [1, 2, 4, 4] images -> conv 3x3 -> relu -> conv 1x1 -> pool -> linear, all of it in
// codes.
Artifact integer_net() {
  SplitMix64 random(5);
  Artifact artifact;
  Program& program = artifact.program;
  program.architecture = "Net";
  program.inputs = {{"image", DType::f32, {"batch", "2", "4", "4"}}};
  program.outputs = {{"logits", DType::f32, {"batch", "3"}}};
  const auto layer = [&](const std::string& op, const std::string& name,
                         const std::string& input, const std::string& output,
                         std::vector<int64_t> shape) {
    Node node;
    node.op = op;
    node.name = name;
    node.block = 0;
    node.inputs = {input};
    node.outputs = {output};
    node.parameters = {{"weight", name + ".weight"}, {"bias", name + ".bias"}};
    if (op == "conv2d") {
      node.attributes["padding"] = std::vector<int64_t>{shape[2] / 2, shape[3] / 2};
    }
    artifact.tensors[name + ".bias"] = random_tensor({shape[0]}, random);
    artifact.packed[name + ".weight"] =
        *pack_as(random_tensor(std::move(shape), random), "int8n/r@f32");
    artifact.layers[name + ".weight"].weight = artifact.packed[name + ".weight"].scheme;
    program.nodes.push_back(node);
  };
  const auto plain = [&](const std::string& op, const std::string& input,
                         const std::string& output) {
    program.nodes.push_back({op, op, 0, {input}, {output}, {}, {}});
  };
  layer("conv2d", "conv1", "image", "a", {4, 2, 3, 3});
  plain("relu", "a", "b");
  layer("conv2d", "conv2", "b", "c", {4, 4, 1, 1});
  plain("global_average_pool", "c", "d");
  layer("linear", "head", "d", "logits", {3, 4});
  const auto scheme = [&](const std::string& value, const char* text, float scale) {
    artifact.activations[value] = {.scheme = *parse_scheme(text), .scale = scale};
  };
  scheme("image", kSignedActivation, 0.01f);
  scheme("b", kUnsignedActivation, 0.02f);
  scheme("c", kSignedActivation, 0.03f);
  scheme("d", kSignedActivation, 0.02f);
  return artifact;
}

TEST(ExecutorRefusals, ExtrasThatTheRuntimeDoesNotApply) {
  Artifact artifact = chain("int4/g32@f16");
  const std::string tensor = first_linear(artifact).parameter("weight");
  artifact.layers[tensor].extras.low_rank_a = "a";
  const Result<Executor> result = open(artifact);
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.status().code(), StatusCode::unsupported);
  EXPECT_THAT(result.status().message(),
              AllOf(HasSubstr("[runtime] " + tensor), HasSubstr("without low-rank parts"),
                    HasSubstr("found a;")));
}

// Column c of the codes is column 39 - c of the weight: the same as that weight in floats.
TEST(ExecutorRefusals, APermutationIsApplied) {
  Artifact permuted = chain("int4/g8@f16"), plain = permuted;
  const std::string tensor = first_linear(permuted).parameter("weight");
  const PackedTensor& packed = permuted.packed.at(tensor);
  std::vector<float> sorted(7 * 40), own(7 * 40);
  ASSERT_TRUE(dequantize_rows(packed, 0, {sorted.data(), 7, 40}).ok());
  std::vector<int32_t> order;
  for (int c = 0; c < 40; ++c) {
    order.push_back(39 - c);
    for (int r = 0; r < 7; ++r) own[40 * r + 39 - c] = sorted[40 * r + c];
  }
  permuted.layers[tensor].extras.permutation = "order";
  permuted.tensors["order"] = make_tensor({40}, std::span<const int32_t>(order));
  plain.packed.erase(tensor);
  plain.layers.erase(tensor);
  plain.tensors[tensor] = make_tensor({7, 40}, std::span<const float>(own));
  std::vector<std::vector<float>> logits;
  for (const Artifact& artifact : {permuted, plain}) {
    Result<Executor> executor = open(artifact);
    ASSERT_TRUE(executor.ok()) << executor.status().message();
    auto cache = executor->make_cache(4);
    ASSERT_TRUE(cache.ok());
    logits.emplace_back(2 * kVocabulary);
    const std::vector<int32_t> tokens = {1, 5};
    ASSERT_TRUE(
        executor->forward(tokens, **cache, {logits.back().data(), 2, kVocabulary}).ok());
  }
  EXPECT_EQ(logits[0], logits[1]);
}

TEST(ExecutorRefusals, InputSchemesOfALanguageModelThatNoRowReads) {
  for (const ActivationScheme& input :
       {ActivationScheme{.scheme = *parse_scheme("uint8/t@f32"), .scale = 0.1f},
        ActivationScheme{.scheme = *parse_scheme(kSignedActivation), .scale = 0},
        ActivationScheme{.scheme = *parse_scheme(kSignedActivation), .scale = 0.1f,
                         .zero_point = 3},
        ActivationScheme{.scheme = *parse_scheme("int8/r@f32"), .dynamic = true}}) {
    Artifact artifact = chain("int8n/r@f32");
    const Node& node = first_linear(artifact);
    artifact.activations[node.inputs[0]] = input;
    const Result<Executor> result = open(artifact);
    ASSERT_FALSE(result.ok());
    EXPECT_THAT(result.status().message(),
                AllOf(HasSubstr(node.name), HasSubstr(to_string(input.scheme))));
  }
}

TEST(Executor, ReadsInputsUnderACalibratedScaleOrOnePerGroup) {
  for (const bool dynamic : {false, true}) {
    Artifact artifact = chain("int8n/r@f32");
    const Node& node = first_linear(artifact);
    artifact.activations[node.inputs[0]] = {
        .scheme = *parse_scheme(dynamic ? "int8n/g8@f32" : kSignedActivation),
        .dynamic = dynamic, .scale = dynamic ? 0 : 0.1f};
    const Result<Executor> served = open(artifact);
    ASSERT_TRUE(served.ok()) << served.status().message();
    EXPECT_THAT(served->kernels().at(node.parameter("weight")), HasSubstr("linear_s8_"));
  }
}

TEST(ExecutorRefusals, DynamicInt8ThatTheArtifactAsksForIsNoOption) {
  const ActivationScheme dynamic = {.scheme = *parse_scheme("int8n/r@f32"),
                                    .dynamic = true};
  Artifact table = chain("nf4/f64@f32");
  const std::string tensor = first_linear(table).parameter("weight");
  // The option alone falls back, and says so by the row's name.
  const Result<Executor> fallback = open(table, {.compute = Compute::dynamic_int8});
  ASSERT_TRUE(fallback.ok()) << fallback.status().message();
  EXPECT_THAT(fallback->kernels().at(tensor), HasSubstr("linear_f32_any"));
  table.layers[tensor].input = dynamic;
  const Result<Executor> result = open(table);
  ASSERT_FALSE(result.ok());
  EXPECT_THAT(
      result.status().message(),
      AllOf(HasSubstr("int8 inputs need integer weights"), HasSubstr("nf4/f64@f32")));
  // With an integer scheme the artifact's own wish picks the int8 row.
  Artifact integer = chain("int8n/r@f32");
  integer.layers[tensor].input = dynamic;
  const Result<Executor> served = open(integer);
  ASSERT_TRUE(served.ok()) << served.status().message();
  EXPECT_THAT(served->kernels().at(tensor), HasSubstr("linear_s8_"));
}

TEST(ExecutorRefusals, ForeignCachesIdsAndShapes) {
  Result<Executor> model = open(chain("int4/g32@f16"));
  ASSERT_TRUE(model.ok()) << model.status().message();
  const Program& program = model->artifact().program;
  std::vector<float> logits(static_cast<size_t>(8 * program.vocabulary));
  const MatrixView<float> two(logits.data(), 2, program.vocabulary);
  Result<std::unique_ptr<KvCache>> cache = model->make_cache(4);
  ASSERT_TRUE(cache.ok());
  const std::vector<int32_t> ids = {0, 1};
  EXPECT_TRUE(model->forward(ids, **cache, two).ok());

  Program other = program;
  other.states.push_back({"more", 1, 2});
  auto foreign = KvCache::create(other, std::vector<KvScheme>(other.states.size()), 4);
  ASSERT_TRUE(foreign.ok()) << foreign.status().message();
  EXPECT_THAT(model->forward(ids, **foreign, two).message(), HasSubstr("another model's"));
  const std::vector<int32_t> bad = {0, -1};
  EXPECT_THAT(model->forward(bad, **cache, two).message(), HasSubstr("found -1"));
  EXPECT_EQ((*cache)->length(), 2);
  const std::vector<int32_t> three = {0, 1, 2};
  EXPECT_EQ(model->forward(three, **cache, {logits.data(), 3, program.vocabulary}).code(),
            StatusCode::out_of_range);
  EXPECT_EQ(model->make_cache(program.context_length + 1).status().code(),
            StatusCode::out_of_range);
}

TEST(ExecutorRefusals, LogitsThatAreNotTheVocabulary) {
  Artifact artifact = chain("int4/g32@f16");
  artifact.program.nodes.pop_back();
  artifact.program.outputs = {{"x", DType::f32, {"batch", "sequence", "40"}}};
  const Result<Executor> result = open(artifact);
  ASSERT_FALSE(result.ok());
  EXPECT_THAT(result.status().message(),
              AllOf(HasSubstr("vocabulary of 7"), HasSubstr("makes 40")));
}

TEST(ExecutorRefusals, ImagesOfAnotherLayout) {
  Result<Executor> net = open(integer_net(), {.integer = false});
  ASSERT_TRUE(net.ok()) << net.status().message();
  const std::vector<float> images(64);
  std::vector<float> logits(6);
  const std::vector<int64_t> right = {2, 2, 4, 4}, turned = {2, 4, 4, 2};
  EXPECT_TRUE(net->forward_images(images, right, {logits.data(), 2, 3}).ok());
  EXPECT_THAT(net->forward_images(images, turned, {logits.data(), 2, 3}).message(),
              HasSubstr("[2, 4, 4, 2]"));
}

TEST(ExecutorRefusals, IntegerPath) {
  ASSERT_TRUE(open(integer_net()).ok()) << open(integer_net()).status().message();
  const auto message = [](Artifact artifact) {
    const Result<Executor> result = open(std::move(artifact));
    EXPECT_FALSE(result.ok());
    return result.ok() ? std::string() : result.status().message();
  };
  Artifact net = integer_net();
  net.activations.erase("c");
  EXPECT_THAT(message(net), AllOf(HasSubstr("[runtime] c"), HasSubstr("scheme")));
  net = integer_net();
  net.activations["c"].zero_point = 3;
  EXPECT_THAT(message(net), HasSubstr("zero point 3"));
  net = integer_net();
  net.activations["d"].scale = 0;
  EXPECT_THAT(message(net), HasSubstr("scale 0"));
  net = integer_net();
  net.activations["b"].scheme = *parse_scheme(kSignedActivation);
  EXPECT_THAT(message(net), HasSubstr("whose clamp at 0 is the ReLU"));
  net = integer_net();
  net.tensors["conv2.bias"] = make_tensor({4}, std::vector<float>{0, 0, 1e9f, 0});
  EXPECT_THAT(message(net), AllOf(HasSubstr("conv2"), HasSubstr("channel 2")));
  net = integer_net();
  net.tensors.erase("conv2.bias");
  EXPECT_THAT(message(net), HasSubstr("conv2.bias"));
}

TEST(Sampler, GreedyTakesTheFirstOfEqualsAndSeedsRepeat) {
  const std::vector<float> logits = {0.0f, 2.0f, 2.0f, 1.0f};
  Sampler greedy(1, 0, 1);
  EXPECT_EQ(greedy.next(logits), 1);
  Sampler a(7, 1, 1), b(7, 1, 1), c(8, 1, 1), narrow(7, 1, 0.5f);
  std::vector<int32_t> from_a, from_b, from_c;
  std::vector<int> counts(4);
  for (int i = 0; i < 4000; ++i) {
    from_a.push_back(a.next(logits));
    from_b.push_back(b.next(logits));
    from_c.push_back(c.next(logits));
    ++counts[static_cast<size_t>(from_a.back())];
    // The two likeliest hold 2 * 7.39 / 18.5 = 0.80 of the probability, so 0.5 needs
    // both.
    const int32_t id = narrow.next(logits);
    EXPECT_TRUE(id == 1 || id == 2);
  }
  EXPECT_EQ(from_a, from_b);
  EXPECT_NE(from_a, from_c);
  // p(1) = e^2 / (1 + 2 e^2 + e) = 0.3995; four standard deviations of 4,000 draws are
  // 0.031.
  EXPECT_NEAR(counts[1] / 4000.0, 0.3995, 0.031);
  EXPECT_NEAR(counts[0] / 4000.0, 0.0541, 0.015);
}

}  // namespace
}  // namespace nibble
