// The runtime on real checkpoints: logits and greedy text of an independent
// implementation (float32 PyTorch), equal bytes at any thread count, and every kernel
// level close to the reference.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/base/cpu.h"
#include "kernels/base/parallel.h"
#include "kernels/program/layers.h"
#include "kernels/runtime/executor.h"
#include "kernels/runtime/kv_cache.h"
#include "kernels/runtime/sampler.h"
#include "kernels/tokenizer/tokenizer.h"
#include "recipes/data/images.h"
#include "recipes/eval/layer_cost.h"
#include "recipes/models/load_model.h"

namespace nibble {
namespace {

using Ids = std::vector<int32_t>;

const std::filesystem::path kData =
    std::filesystem::path(NIBBLE_SOURCE_DIR) / ".." / "shared" / "data";
const std::filesystem::path kShipped =
    std::filesystem::path(NIBBLE_SOURCE_DIR) / "recipes" / "examples" / "stories";

#define SKIP_WITHOUT(path)                               \
  if (!std::filesystem::exists(path))                    \
  GTEST_SKIP() << "needs " << (path).filename().string() \
               << " of the shared data, which is absent"

struct Model {
  std::shared_ptr<const Artifact> artifact;
  std::unique_ptr<Tokenizer> tokenizer;

  // Chooses the kernels of the CPU level and the thread count that are set when called.
  Executor executor(Compute compute = Compute::float_activations) const {
    auto made = Executor::create(artifact, {.compute = compute});
    EXPECT_TRUE(made.ok()) << made.status().message();
    return std::move(made).value();
  }
};

Model open(const std::filesystem::path& path, const LoadOptions& options = {}) {
  Model model;
  auto artifact = load_model(path, options);
  EXPECT_TRUE(artifact.ok()) << artifact.status().message();
  if (!artifact.ok()) return model;
  model.artifact = std::make_shared<const Artifact>(std::move(artifact).value());
  auto tokenizer =
      make_tokenizer(model.artifact->tokenizer, model.artifact->program.vocabulary);
  if (tokenizer.ok()) model.tokenizer = std::move(tokenizer).value();
  return model;
}

Model stories260k() {
  LoadOptions options;
  options.tokenizer = kData / "models/stories260K/tok512.bin";
  return open(kData / "models/stories260K/stories260K.bin", options);
}

// The logits of every position (`all`) or of the last.
std::vector<float> logits_of(Executor& model, const Ids& ids, bool all = false) {
  const int64_t rows = all ? static_cast<int64_t>(ids.size()) : 1;
  const int64_t vocabulary = model.artifact().program.vocabulary;
  std::vector<float> logits(static_cast<size_t>(rows * vocabulary));
  auto cache = model.make_cache(static_cast<int64_t>(ids.size()));
  EXPECT_TRUE(cache.ok()) << cache.status().message();
  const Status status = model.forward(ids, **cache, {logits.data(), rows, vocabulary});
  EXPECT_TRUE(status.ok()) << status.message();
  return logits;
}

Ids greedy(Executor& model, Ids ids, int count) {
  const size_t prompt = ids.size();
  const int64_t vocabulary = model.artifact().program.vocabulary;
  auto cache = model.make_cache(static_cast<int64_t>(prompt) + count);
  EXPECT_TRUE(cache.ok()) << cache.status().message();
  Sampler sampler(1, 0, 1);
  std::vector<float> logits(static_cast<size_t>(vocabulary));
  for (size_t done = 0; ids.size() < prompt + static_cast<size_t>(count);) {
    const std::span<const int32_t> fresh = std::span<const int32_t>(ids).subspan(done);
    EXPECT_TRUE(model.forward(fresh, **cache, {logits.data(), 1, vocabulary}).ok());
    done = ids.size();
    ids.push_back(sampler.next(logits));
  }
  return Ids(ids.begin() + static_cast<std::ptrdiff_t>(prompt), ids.end());
}

void expect_first_logits(const std::vector<float>& logits,
                         const std::vector<float>& golden, int64_t largest) {
  for (size_t i = 0; i < golden.size(); ++i) EXPECT_NEAR(logits[i], golden[i], 1e-3) << i;
  EXPECT_EQ(std::max_element(logits.begin(), logits.end()) - logits.begin(), largest);
}

TEST(RuntimeGolden, Stories260KLogits) {
  SKIP_WITHOUT(kData / "models/stories260K");
  const Model model = stories260k();
  ASSERT_TRUE(model.tokenizer);
  const auto ids =
      model.tokenizer->encode("Once upon a time, there was a little girl named Lily.");
  ASSERT_TRUE(ids.ok()) << ids.status().message();
  EXPECT_EQ(*ids, (Ids{1, 403, 407, 261, 378, 432, 383, 286, 261, 376, 298, 315, 421, 395,
                       317, 426}));
  Executor executor = model.executor();
  expect_first_logits(logits_of(executor, *ids),
                      {-3.85166f, 4.98118f, -3.85259f, -3.85196f, -3.85160f, -3.85282f,
                       -3.85253f, -3.85300f},
                      338);
}

TEST(RuntimeGolden, Stories260KGreedyText) {
  SKIP_WITHOUT(kData / "models/stories260K");
  const Model model = stories260k();
  ASSERT_TRUE(model.tokenizer);
  Executor executor = model.executor();
  Ids ids = greedy(executor, {1}, 80);
  ids.insert(ids.begin(), 1);
  EXPECT_THAT(model.tokenizer->decode(ids),
              testing::StartsWith("Once upon a time, there was a little girl named Lily. "
                                  "She loved to play outside in the park. One day, she "
                                  "saw a big, red ball."));
}

TEST(RuntimeGolden, Docs14mLogitsAndGreedyIds) {
  SKIP_WITHOUT(kData / "models/docs14m");
  const Model model = open(kData / "models/docs14m");
  ASSERT_TRUE(model.tokenizer);
  Executor executor = model.executor();
  expect_first_logits(logits_of(executor, {539, 64, 1042, 64, 35, 1071, 2086, 418, 200,
                                           200, 690, 200, 200, 596, 678, 283}),
                      {-6.75918f, -7.06672f, -0.70849f, -0.42062f, -0.73737f, 1.77042f,
                       0.19963f, -0.30221f},
                      797);
  const auto ids = model.tokenizer->encode("Returns the name of the");
  ASSERT_TRUE(ids.ok()) << ids.status().message();
  EXPECT_EQ(*ids, (Ids{2870, 266, 598, 299, 266}));
  EXPECT_EQ(greedy(executor, *ids, 17), (Ids{200, 656, 89, 65, 327, 656, 89, 65, 313, 266,
                                             1143, 423, 266, 656, 89, 65, 15}));
}

// A prompt in one call, and the same prompt token by token on the cache.
TEST(RuntimeGolden, ACachedStepIsTheLastRowOfAWholePass) {
  const Model model = open(kShipped);
  ASSERT_TRUE(model.tokenizer);
  const auto ids = model.tokenizer->encode("One day, Tom and Mia found three red balls.");
  ASSERT_TRUE(ids.ok()) << ids.status().message();
  Executor executor = model.executor();
  const int64_t vocabulary = model.artifact->program.vocabulary;
  const std::vector<float> whole = logits_of(executor, *ids, true);
  auto cache = executor.make_cache(static_cast<int64_t>(ids->size()));
  ASSERT_TRUE(cache.ok());
  std::vector<float> step(static_cast<size_t>(vocabulary));
  for (size_t i = 0; i < ids->size(); ++i) {
    const Ids one = {(*ids)[i]};
    ASSERT_TRUE(executor.forward(one, **cache, {step.data(), 1, vocabulary}).ok());
    double most = 0;
    for (size_t v = 0; v < step.size(); ++v) {
      const float expected = whole[i * static_cast<size_t>(vocabulary) + v];
      most = std::max(most, std::abs(static_cast<double>(step[v]) - expected));
    }
    EXPECT_LT(most, 2e-4) << "position " << i;  // float sums of up to a thousand terms
  }
}

// The model with its linear layers in INT8, which s8 rows serve.
std::shared_ptr<const Artifact> in_int8(const Artifact& model) {
  Artifact quantized = model;
  for (const Layer& layer : layers_of(model.program)) {
    const auto tensor = quantized.tensors.find(layer.tensor);
    if (layer.node->op != "linear" || tensor == quantized.tensors.end()) continue;
    const auto weight = rounded_weight(tensor->second, "int8/r@f16");
    EXPECT_TRUE(weight.ok()) << weight.status().message();
    quantized.packed[layer.tensor] = weight->packed;
    quantized.layers[layer.tensor].weight = weight->scheme;
    quantized.tensors.erase(layer.tensor);
  }
  return std::make_shared<const Artifact>(std::move(quantized));
}

// Sequences of different lengths, a token of each at a time, and each one alone.
TEST(RuntimeGolden, SequencesDecodedTogetherSayWhatEachSaysAlone) {
  const Model model = open(kShipped);
  ASSERT_TRUE(model.tokenizer);
  const std::vector<Ids> prompts = {*model.tokenizer->encode("One day, Tom and Mia"),
                                    *model.tokenizer->encode("The cat"),
                                    *model.tokenizer->encode("Once upon a time there were two")};
  const int64_t vocabulary = model.artifact->program.vocabulary;
  for (const char* kv : {"", "int8"}) {
    for (const bool exact : {false, true}) {
      SCOPED_TRACE(testing::Message() << "kv " << kv << ", exact " << exact);
      auto made = Executor::create(
          exact ? in_int8(*model.artifact) : model.artifact,
          {.compute = exact ? Compute::dynamic_int8 : Compute::float_activations, .kv = kv});
      ASSERT_TRUE(made.ok()) << made.status().message();
      Executor& executor = *made;
      std::vector<std::unique_ptr<KvCache>> alone, owned;
      std::vector<KvCache*> together;
      const auto run = [&](const Ids& ids, KvCache& cache) {
        std::vector<float> logits(static_cast<size_t>(vocabulary));
        EXPECT_TRUE(executor.forward(ids, cache, {logits.data(), 1, vocabulary}).ok());
        return logits;
      };
      for (const Ids& prompt : prompts) {
        alone.push_back(std::move(executor.make_cache(40)).value());
        owned.push_back(std::move(executor.make_cache(40)).value());
        together.push_back(owned.back().get());
        run(prompt, *alone.back());
        run(prompt, *owned.back());
      }
      Ids next = {5, 60, 7};
      for (int step = 0; step < 4; ++step) {
        std::vector<float> logits(static_cast<size_t>(3 * vocabulary));
        ASSERT_TRUE(
            executor.decode(next, together, {logits.data(), 3, vocabulary}).ok());
        for (size_t i = 0; i < 3; ++i) {
          const std::vector<float> expected = run({next[i]}, *alone[i]);
          for (size_t v = 0; v < expected.size(); ++v) {
            const float found = logits[i * static_cast<size_t>(vocabulary) + v];
            if (exact) {
              ASSERT_EQ(found, expected[v]) << i << " " << v;
            } else {
              ASSERT_NEAR(found, expected[v], 2e-4) << i << " " << v;
            }
          }
          EXPECT_EQ(together[i]->length(), alone[i]->length());
          next[i] = (next[i] * 13 + 1) % static_cast<int32_t>(vocabulary);
        }
      }
      together[2] = together[0];
      std::vector<float> logits(static_cast<size_t>(3 * vocabulary));
      EXPECT_THAT(executor.decode(next, together, {logits.data(), 3, vocabulary}).message(),
                  testing::HasSubstr("number 2 twice"));
      together.pop_back();
      EXPECT_EQ(executor.decode(next, together, {logits.data(), 3, vocabulary}).code(),
                StatusCode::invalid_argument);
    }
  }
}

class ThreadCount : public testing::Test {
 protected:
  void TearDown() override {
    set_thread_count(threads_);
    EXPECT_TRUE(force_cpu("").ok());
  }
  const int threads_ = thread_count();
};

TEST_F(ThreadCount, DoesNotChangeALogit) {
  const Model model = open(kShipped);
  ASSERT_TRUE(model.tokenizer);
  const auto ids = model.tokenizer->encode("Once upon a time there were two small dogs.");
  ASSERT_TRUE(ids.ok()) << ids.status().message();
  for (const Compute compute : {Compute::float_activations, Compute::dynamic_int8}) {
    std::vector<float> expected;
    for (const int threads : {1, 2, 3, 7}) {
      set_thread_count(threads);
      Executor executor = model.executor(compute);
      const std::vector<float> found = logits_of(executor, *ids, true);
      if (threads == 1) expected = found;
      ASSERT_EQ(found.size(), expected.size());
      EXPECT_EQ(std::memcmp(found.data(), expected.data(), found.size() * sizeof(float)),
                0)
          << threads << " threads";
    }
  }
}

TEST_F(ThreadCount, DoesNotChangeAnImagesLogits) {
  SKIP_WITHOUT(kData / "models/cifar10_resnet");
  const Model model = open(kData / "models/cifar10_resnet/resnet20_cifar10.safetensors");
  ASSERT_TRUE(model.artifact);
  std::vector<float> images(5 * 3 * 32 * 32);
  for (size_t i = 0; i < images.size(); ++i)
    images[i] = static_cast<float>((i * 2654435761u >> 8) % 255) / 127.0f - 1;
  std::vector<float> expected;
  for (const int threads : {1, 2, 5}) {
    set_thread_count(threads);
    Executor executor = model.executor();
    std::vector<float> found(50);
    ASSERT_TRUE(executor
                    .forward_images(images, std::vector<int64_t>{5, 3, 32, 32},
                                    {found.data(), 5, 10})
                    .ok());
    if (threads == 1) expected = found;
    EXPECT_EQ(std::memcmp(found.data(), expected.data(), found.size() * sizeof(float)), 0)
        << threads << " threads";
  }
}

TEST_F(ThreadCount, EveryCpuLevelComputesTheSameModel) {
  const Model model = open(kShipped);
  ASSERT_TRUE(model.tokenizer);
  const auto ids = model.tokenizer->encode("Once upon a time there were two small dogs.");
  ASSERT_TRUE(ids.ok()) << ids.status().message();
  std::vector<float> expected;
  std::vector<std::string> levels = cpu_levels();
  std::reverse(levels.begin(), levels.end());
  ASSERT_EQ(levels.front(), "reference");
  for (const std::string& level : levels) {
    ASSERT_TRUE(force_cpu(level).ok());
    Executor executor = model.executor();
    const std::vector<float> found = logits_of(executor, *ids, true);
    if (level == "reference") expected = found;
    double most = 0;
    for (size_t i = 0; i < found.size(); ++i)
      most = std::max(most, std::abs(static_cast<double>(found[i]) - expected[i]));
    EXPECT_LT(most, 2e-4) << level;  // float sums of up to a thousand terms
    const auto kernels = executor.kernels();
    ASSERT_FALSE(kernels.empty());
    for (const auto& [layer, kernel] : kernels) {
      if (level != "reference") continue;
      EXPECT_THAT(kernel, testing::HasSubstr("reference")) << layer;
    }
  }
}

}  // namespace
}  // namespace nibble
