#include "recipes/eval/evaluate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <limits>

#include "kernels/base/file.h"
#include "kernels/base/splitmix64.h"
#include "kernels/runtime/kv_cache.h"
#include "recipes/data/images.h"
#include "recipes/data/story_grammar.h"
#include "recipes/data/text.h"
#include "recipes/eval/noise_floor.h"
#include "recipes/eval/story_floor.h"
#include "recipes/models/load_model.h"

namespace nibble {
namespace {

using testing::HasSubstr;

const std::filesystem::path kData =
    std::filesystem::path(NIBBLE_SOURCE_DIR) / ".." / "shared" / "data";

#define SKIP_WITHOUT(path)                               \
  if (!std::filesystem::exists(path))                    \
  GTEST_SKIP() << "needs " << (path).filename().string() \
               << " of the shared data, which is absent"

TEST(Evaluate, ScoresOnePrediction) {
  // p = (1/2, 1/4, 1/4), r = (1/8, 1/8, 3/4), shifted by constants that must not matter.
  const float p[] = {std::log(0.5f) + 90, std::log(0.25f) + 90, std::log(0.25f) + 90};
  const float r[] = {std::log(0.125f) - 7, std::log(0.125f) - 7, std::log(0.75f) - 7};
  const Prediction both = score_prediction(p, r, 3, 1);
  const double kl = 0.125 * std::log(0.125 / 0.5) + 0.125 * std::log(0.125 / 0.25) +
                    0.75 * std::log(3.0);
  EXPECT_NEAR(both.nll, std::log(4.0), 1e-5);
  EXPECT_NEAR(both.kl, kl, 1e-5);
  EXPECT_FALSE(both.agrees);
  EXPECT_TRUE(both.finite);
  const Prediction same = score_prediction(p, p, 3, 0);
  EXPECT_EQ(same.kl, 0);
  EXPECT_TRUE(same.agrees);
  const float far[] = {-1e4f, 1e4f, 0};  // exp would overflow
  EXPECT_NEAR(score_prediction(far, nullptr, 3, 0).nll, 2e4, 1e-9);
  for (float bad : {std::numeric_limits<float>::quiet_NaN(),
                    std::numeric_limits<float>::infinity()}) {
    const float broken[] = {0, bad, 1};
    EXPECT_FALSE(score_prediction(broken, nullptr, 3, 0).finite);
    EXPECT_FALSE(score_prediction(p, broken, 3, 0).finite);
  }
}

struct Opened {
  std::shared_ptr<const Artifact> artifact;
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<Executor> executor;
};
Opened open(const std::filesystem::path& path, LoadOptions options = {}) {
  Opened out;
  auto artifact = load_model(path, options);
  EXPECT_TRUE(artifact.ok()) << artifact.status().message();
  if (!artifact.ok()) return out;
  out.artifact = std::make_shared<const Artifact>(std::move(artifact).value());
  if (!out.artifact->tokenizer.empty()) {
    auto tokenizer =
        make_tokenizer(out.artifact->tokenizer, out.artifact->program.vocabulary);
    EXPECT_TRUE(tokenizer.ok()) << tokenizer.status().message();
    if (tokenizer.ok()) out.tokenizer = std::move(tokenizer).value();
  }
  auto executor = Executor::create(out.artifact, {});
  EXPECT_TRUE(executor.ok()) << executor.status().message();
  if (executor.ok())
    out.executor = std::make_unique<Executor>(std::move(executor).value());
  return out;
}

Opened open_stories260k() {
  LoadOptions options;
  options.tokenizer = kData / "models/stories260K/tok512.bin";
  return open(kData / "models/stories260K/stories260K.bin", options);
}

TEST(Evaluate, Stories260KPerplexity) {
  SKIP_WITHOUT(kData / "models/stories260K");
  Opened model = open_stories260k();
  ASSERT_TRUE(model.executor && model.tokenizer);
  const auto text =
      load_text(kData / "text/tinystories_sample.txt", model.tokenizer.get(), 512,
                {.length = 512, .per_line = true, .min_chars = 200, .limit = 300});
  ASSERT_TRUE(text.ok()) << text.status().message();
  EXPECT_EQ(text->sequences.size(), 300u);
  int64_t reported = 0;
  const auto quality = evaluate_text(*model.executor, nullptr, text->sequences,
                                     [&](int64_t done, int64_t total) {
                                       EXPECT_EQ(done, ++reported);
                                       EXPECT_EQ(total, 300);
                                     });
  ASSERT_TRUE(quality.ok()) << quality.status().message();
  EXPECT_EQ(quality->tokens, 37278);
  EXPECT_NEAR(quality->nll, 1.76417, 1e-4);
  EXPECT_NEAR(quality->perplexity, 5.8367, 1e-3);
  EXPECT_LT(quality->perplexity_ci95.low, 5.8);
  EXPECT_GT(quality->perplexity_ci95.high, 5.87);
  EXPECT_GT(quality->perplexity_ci95.low, 5.4);
  EXPECT_LT(quality->perplexity_ci95.high, 6.3);
  EXPECT_FALSE(quality->kl.has_value());
}

TEST(Evaluate, AModelAgreesWithItself) {
  SKIP_WITHOUT(kData / "models/stories260K");
  Opened model = open_stories260k(), reference = open_stories260k();
  ASSERT_TRUE(model.executor && reference.executor);
  const std::vector<std::vector<int32_t>> sequences = {{1, 403, 407, 261, 378},
                                                       {1, 338, 300}};
  const auto quality =
      evaluate_text(*model.executor, reference.executor.get(), sequences, {});
  ASSERT_TRUE(quality.ok()) << quality.status().message();
  EXPECT_EQ(*quality->kl, 0);
  EXPECT_EQ(*quality->top1_agreement, 1);
  EXPECT_EQ(quality->tokens, 6);
  // The mean weighs tokens, not sequences.
  EXPECT_NEAR(quality->nll,
              (4 * quality->sequence_nll[0] + 2 * quality->sequence_nll[1]) / 6, 1e-12);

  EXPECT_EQ(evaluate_text(*model.executor, nullptr, {}, {}).status().code(),
            StatusCode::invalid_argument);
  EXPECT_THAT(evaluate_text(*model.executor, nullptr, {{1}}, {}).status().message(),
              HasSubstr("at least 2 tokens each were required; found one of 1"));
  EXPECT_EQ(evaluate_text(*model.executor, nullptr, {{1, 512, 3}}, {}).status().code(),
            StatusCode::out_of_range);
}

// 4 of the 64 evaluation sequences. Their figure is that of a run whose whole set gave
// the reference's mean NLL of 2.720417 (perplexity 15.18665).
TEST(Evaluate, Docs14mSubset) {
  SKIP_WITHOUT(kData / "models/docs14m");
  Opened model = open(kData / "models/docs14m");
  ASSERT_TRUE(model.executor);
  const auto text = load_text(kData / "models/docs14m/evaluation_tokens.safetensors",
                              nullptr, 4096, {.length = 1024, .limit = 4});
  ASSERT_TRUE(text.ok()) << text.status().message();
  const auto quality = evaluate_text(*model.executor, nullptr, text->sequences, {});
  ASSERT_TRUE(quality.ok()) << quality.status().message();
  EXPECT_EQ(quality->tokens, 4 * 511);
  EXPECT_NEAR(quality->perplexity, 9.96603, 1e-3);
}

// With a large vocabulary a sequence goes through in runs of rows (here 128 and 71),
// which must not show in the figures.
TEST(Evaluate, LargeVocabularyGoesInParts) {
  const auto folder =
      std::filesystem::temp_directory_path() / "nibble_evaluate_large_vocabulary";
  std::filesystem::create_directories(folder);
  std::ofstream(folder / "config.json") << R"({"architectures": ["LlamaForCausalLM"],
    "model_type": "llama", "vocab_size": 131072, "hidden_size": 16, "intermediate_size": 32,
    "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 256,
    "tie_word_embeddings": true, "dtype": "float32"})";
  LoadOptions options;
  options.initialise = true;
  Opened model = open(folder, options);
  std::filesystem::remove_all(folder);
  ASSERT_TRUE(model.executor);
  std::vector<int32_t> tokens;
  SplitMix64 random(4);
  for (int i = 0; i < 200; ++i)
    tokens.push_back(static_cast<int32_t>(random.below(131072)));
  const auto quality = evaluate_text(*model.executor, nullptr, {tokens}, {});
  ASSERT_TRUE(quality.ok()) << quality.status().message();

  auto cache = model.executor->make_cache(199);
  ASSERT_TRUE(cache.ok());
  std::vector<float> logits(size_t{199} * 131072);
  ASSERT_TRUE(
      model.executor->forward({tokens.data(), 199}, **cache, {logits.data(), 199, 131072})
          .ok());
  double nll = 0;
  for (int64_t i = 0; i < 199; ++i)
    nll += score_prediction(logits.data() + i * 131072, nullptr, 131072,
                            tokens[static_cast<size_t>(i) + 1])
               .nll;
  EXPECT_NEAR(quality->nll, nll / 199, 1e-6);
  EXPECT_NEAR(quality->nll, std::log(131072.0), 0.5);  // it knows nothing
}

// The model that ships, on stories of its own grammar.
Opened open_example() {
  return open(std::filesystem::path(NIBBLE_SOURCE_DIR) / "recipes/examples/stories");
}
std::vector<std::vector<int32_t>> stories(const Tokenizer& tokenizer, uint64_t count) {
  std::vector<std::vector<int32_t>> sequences;
  for (uint64_t i = 0; i < count; ++i)
    sequences.push_back(*tokenizer.encode(make_story(77, i).text));
  return sequences;
}

// Every weight a little off: a model that is near its reference and no further.
Executor disturbed(const Artifact& artifact, float relative) {
  Artifact changed = artifact;
  for (auto& [name, tensor] : changed.tensors) {
    std::vector<float> values = *to_float(tensor);
    SplitMix64 random(values.size());
    for (float& value : values)
      value *= 1 + relative * static_cast<float>(random.uniform() - 0.5);
    tensor = make_tensor(tensor.shape, values);
  }
  auto executor =
      Executor::create(std::make_shared<const Artifact>(std::move(changed)), {});
  EXPECT_TRUE(executor.ok()) << executor.status().message();
  return std::move(executor).value();
}

TEST(Evaluate, PositionsAddUpToTheWhole) {
  Opened model = open_example();
  ASSERT_TRUE(model.executor && model.tokenizer);
  Executor other = disturbed(*model.artifact, 0.05f);
  const auto sequences = stories(*model.tokenizer, 12);
  const auto quality = evaluate_text(other, model.executor.get(), sequences, {});
  ASSERT_TRUE(quality.ok()) << quality.status().message();
  ASSERT_GT(quality->positions.size(), 4u);
  ASSERT_LE(quality->positions.size(), 16u);
  double nll = 0, kl = 0;
  int64_t predictions = 0, end = 0;
  for (const PositionBucket& bucket : quality->positions) {
    EXPECT_EQ(bucket.begin, end);
    end = bucket.end;
    const double n = static_cast<double>(bucket.predictions);
    predictions += bucket.predictions;
    nll += n * std::log(bucket.perplexity);
    kl += n * *bucket.kl;
    EXPECT_LE(bucket.kl_ci95.low, *bucket.kl);
    EXPECT_GE(bucket.kl_ci95.high, *bucket.kl);
    EXPECT_LE(bucket.perplexity_ci95.low, bucket.perplexity * (1 + 1e-12));
  }
  EXPECT_EQ(predictions, quality->tokens);
  EXPECT_NEAR(nll / static_cast<double>(predictions), quality->nll, 1e-9);
  EXPECT_NEAR(kl / static_cast<double>(predictions), *quality->kl, 1e-9);
  // The tail of single predictions lies above their mean, and its interval around it.
  EXPECT_GT(*quality->kl_p99, *quality->kl_p90);
  EXPECT_GT(*quality->kl_p90, 0);
  EXPECT_LE(quality->kl_p99_ci95.low, *quality->kl_p99);
  EXPECT_GE(quality->kl_p99_ci95.high, *quality->kl_p99);
  EXPECT_LE(quality->top1_agreement_ci95.low, *quality->top1_agreement);
  // The reference's own figures come from the same pass.
  const auto alone = evaluate_text(*model.executor, nullptr, sequences, {});
  ASSERT_TRUE(alone.ok());
  const TextQuality reference = reference_quality(*quality);
  EXPECT_EQ(reference.nll, alone->nll);
  EXPECT_EQ(reference.perplexity_ci95.high, alone->perplexity_ci95.high);
  EXPECT_NEAR(*quality->perplexity_increase, quality->perplexity / alone->perplexity - 1,
              1e-9);
  EXPECT_LT(quality->perplexity_increase_ci95.low,
            quality->perplexity_increase_ci95.high);
}

// Windows that overlap: each token is predicted once, with more context than without.
TEST(Evaluate, OverlappingWindowsCountOnce) {
  Opened model = open_example();
  ASSERT_TRUE(model.executor && model.tokenizer);
  std::vector<int32_t> text;
  for (const auto& story : stories(*model.tokenizer, 3))
    text.insert(text.end(), story.begin(), story.end());
  // By hand: windows [0, 40), [10, 50) ...; of the later ones the last 10 count.
  std::vector<std::vector<int32_t>> windows;
  std::vector<int64_t> counted_from;
  for (size_t at = 0; at + 40 <= text.size(); at += 10) {
    windows.emplace_back(text.begin() + static_cast<std::ptrdiff_t>(at),
                         text.begin() + static_cast<std::ptrdiff_t>(at) + 40);
    counted_from.push_back(at == 0 ? 1 : 30);
  }
  const auto quality = evaluate_text(*model.executor, nullptr, windows, {}, counted_from);
  ASSERT_TRUE(quality.ok()) << quality.status().message();
  EXPECT_EQ(quality->tokens, 39 + 10 * (static_cast<int64_t>(windows.size()) - 1));
  double nll = 0;
  for (size_t w = 0; w < windows.size(); ++w) {
    auto cache = model.executor->make_cache(39);
    ASSERT_TRUE(cache.ok());
    std::vector<float> logits(size_t{39} * 896);
    ASSERT_TRUE(model.executor
                    ->forward({windows[w].data(), 39}, **cache, {logits.data(), 39, 896})
                    .ok());
    for (int64_t i = counted_from[w]; i < 40; ++i)
      nll += score_prediction(logits.data() + (i - 1) * 896, nullptr, 896,
                              windows[w][static_cast<size_t>(i)])
                 .nll;
  }
  EXPECT_NEAR(quality->nll, nll / static_cast<double>(quality->tokens), 1e-6);
  EXPECT_EQ(quality->positions.back().end, 39);
  EXPECT_THAT(
      evaluate_text(*model.executor, nullptr, {{1, 2, 3}}, {}, {3}).status().message(),
      HasSubstr("counting from token 1 to 2 was required; found 3"));
}

// The floor is above zero (the sums do round differently), far below a real change, and
// the same every time.
TEST(NoiseFloor, LiesBetweenNothingAndASmallChange) {
  Opened model = open_example();
  ASSERT_TRUE(model.executor && model.tokenizer);
  const auto sequences = stories(*model.tokenizer, 6);
  const auto noise = measure_text_noise(*model.executor, sequences, 0, {});
  ASSERT_TRUE(noise.ok()) << noise.status().message();
  EXPECT_GT(noise->kl_p99, 0);
  EXPECT_LT(noise->kl, 1e-8);
  EXPECT_LT(noise->perplexity_change, 1e-5);
  const auto again = measure_text_noise(*model.executor, sequences, 0, {});
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(again->kl, noise->kl);
  // A part of the data: whole sequences from the first on.
  const auto part = measure_text_noise(*model.executor, sequences, 1, {});
  ASSERT_TRUE(part.ok());
  EXPECT_EQ(part->tokens, static_cast<int64_t>(sequences[0].size()) - 1);

  Executor same = disturbed(*model.artifact, 0);
  const auto none = evaluate_text(same, model.executor.get(), sequences, {});
  ASSERT_TRUE(none.ok());
  EXPECT_TRUE(noise->covers(*none));
  Executor other = disturbed(*model.artifact, 0.001f);
  const auto small = evaluate_text(other, model.executor.get(), sequences, {});
  ASSERT_TRUE(small.ok());
  EXPECT_FALSE(noise->covers(*small));
  EXPECT_GT(*small->kl, 10 * noise->kl);
}

TEST(NoiseFloor, OfImages) {
  SKIP_WITHOUT(kData / "models/cifar10_resnet");
  Opened model = open(kData / "models/cifar10_resnet/resnet20_cifar10.safetensors");
  ASSERT_TRUE(model.executor);
  auto images = load_images(kData / "cifar10", Split::test);
  ASSERT_TRUE(images.ok()) << images.status().message();
  images->count = 60;
  const auto noise = measure_image_noise(*model.executor, *images, 50, {});
  ASSERT_TRUE(noise.ok()) << noise.status().message();
  EXPECT_EQ(noise->images, 50);
  EXPECT_EQ(noise->argmax_disagreement, 0);  // float noise does not change a class
  // The sums really ran in another order.
  auto reversed = Executor::create(model.artifact, {.reversed_sums = true});
  ASSERT_TRUE(reversed.ok()) << reversed.status().message();
  std::vector<float> pixels(3072), a(10), b(10);
  preprocess(*images, 0, 1, model.artifact->image_mean, model.artifact->image_std,
             pixels.data());
  const int64_t shape[] = {1, 3, 32, 32};
  ASSERT_TRUE(model.executor->forward_images(pixels, shape, {a.data(), 1, 10}).ok());
  ASSERT_TRUE(reversed->forward_images(pixels, shape, {b.data(), 1, 10}).ok());
  EXPECT_NE(a, b);
  for (size_t i = 0; i < 10; ++i) EXPECT_NEAR(a[i], b[i], 1e-4);
}

TEST(Evaluate, ResNet20Accuracy) {
  SKIP_WITHOUT(kData / "models/cifar10_resnet");
  Opened model = open(kData / "models/cifar10_resnet/resnet20_cifar10.safetensors");
  ASSERT_TRUE(model.executor);
  auto images = load_images(kData / "cifar10", Split::test);
  ASSERT_TRUE(images.ok()) << images.status().message();
  images->count = 500;
  const auto quality =
      evaluate_images(*model.executor, model.executor.get(), *images, {});
  ASSERT_TRUE(quality.ok()) << quality.status().message();
  EXPECT_EQ(quality->images, 500);
  EXPECT_EQ(*quality->argmax_agreement, 1);
  // 91.73 % of all 10,000; four deviations of a sample of 500 are 4.9 %.
  EXPECT_NEAR(quality->accuracy, 0.9173, 0.049);
  EXPECT_LT(quality->accuracy_ci95.low, quality->accuracy);
  EXPECT_GT(quality->accuracy_ci95.high, quality->accuracy);
}

// A text that a model knows by heart has the floor's perplexity; here the floor itself.
TEST(StoryFloor, IsTheMeanOfExactLogProbabilities) {
  const auto folder =
      std::filesystem::path(NIBBLE_SOURCE_DIR) / "recipes/examples/stories";
  std::map<std::string, Bytes> files;
  files["tokenizer.json"] = *map_file(folder / "tokenizer.json");
  const auto tokenizer = make_tokenizer(files, 896);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  std::vector<std::string> lines;
  double nats = 0;
  int64_t tokens = 0;
  for (uint64_t i = 0; i < 50; ++i) {
    const Story story = make_story(9, i);
    lines.push_back(story.text);
    nats -= story.log_probability;
    tokens += static_cast<int64_t>((*tokenizer)->encode(story.text)->size()) - 1;
  }
  lines.push_back("");
  const auto floor = story_floor(lines, **tokenizer, false, 0);
  ASSERT_TRUE(floor.ok()) << floor.status().message();
  EXPECT_EQ(floor->tokens, tokens);
  EXPECT_DOUBLE_EQ(floor->nll, nats / static_cast<double>(tokens));
  EXPECT_DOUBLE_EQ(floor->perplexity, std::exp(floor->nll));
  EXPECT_GT(floor->perplexity, 1.3);
  EXPECT_LT(floor->perplexity, 1.6);
  EXPECT_EQ(story_floor(lines, **tokenizer, true, 0)->tokens, tokens + 50);
  EXPECT_EQ(story_floor(lines, **tokenizer, false, 1)->nats_per_story,
            -make_story(9, 0).log_probability);
  lines[3] = "Not a story.";
  EXPECT_EQ(story_floor(lines, **tokenizer, false, 0).status().message(),
            "[story floor] line 4: a story of the grammar was required; the grammar "
            "cannot make \"Not a "
            "story.\"; the floor is known for stories only");
}

}  // namespace
}  // namespace nibble
