// Exported graphs in ONNX Runtime against our own runtime: checker, logits, greedy
// tokens.
//
// Python only runs the other side (tests/interop/onnx_run.py); without its packages the
// tests skip and say what is missing.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>

#include "export/exporter.h"
#include "kernels/program/edits/fold_batch_norm.h"
#include "kernels/runtime/executor.h"
#include "kernels/runtime/kv_cache.h"
#include "recipes/data/images.h"
#include "recipes/models/load_model.h"
#include "tests/export/sample_models.h"

namespace nibble {
namespace {

using sample::take;

constexpr int64_t kGreedyTokens = 64;
// Both sides sum in f32 in their own order; 1.2e-6 is what was measured.
constexpr double kLogits = 2e-5;

struct Ran {
  int status = 0;
  std::string output;
};

Ran run_python(const std::string& arguments) {
  const std::string command = std::string(NIBBLE_PYTHON) + " " + NIBBLE_SOURCE_DIR +
                              "/tests/interop/onnx_run.py " + arguments + " 2>&1";
  Ran ran;
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return {-1, "popen failed"};
  char buffer[4096];
  while (fgets(buffer, sizeof(buffer), pipe) != nullptr) ran.output += buffer;
  ran.status = WEXITSTATUS(pclose(pipe));
  return ran;
}

std::vector<float> read_floats(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string bytes(std::istreambuf_iterator<char>(file), {});
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
  return values;
}

int32_t argmax(std::span<const float> row) {
  return static_cast<int32_t>(std::max_element(row.begin(), row.end()) - row.begin());
}

// max |a - b| / max |b|: how far two sets of logits are apart, against their size.
double relative_difference(std::span<const float> a, std::span<const float> b) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    difference = std::max(difference, std::abs(static_cast<double>(a[i]) - b[i]));
    size = std::max(size, std::abs(static_cast<double>(b[i])));
  }
  return difference / size;
}

class OnnxRuntime : public ::testing::Test {
 protected:
  void SetUp() override {
    static const Ran ran = run_python("check /nonexistent");  // imports, then fails
    if (ran.status == 77)
      GTEST_SKIP() << "Python cannot import what it needs: " << ran.output;
    directory_ = sample::fresh_directory("ort");
  }
  void TearDown() override {
    std::filesystem::remove_all(directory_);
    std::filesystem::remove(file("in"));
    std::filesystem::remove(file("out"));
  }
  std::string file(const char* suffix) const {
    return directory_.string() + "." + suffix;
  }

  // Writes the model and has the checker look at it.
  void write(const Artifact& artifact, ExportOptions options = {}) {
    options.overwrite = true;
    const Status status =
        take(find_exporter("onnx"))->write(artifact, directory_, options);
    ASSERT_TRUE(status.ok()) << status.message();
    const Ran checked = run_python("check " + directory_.string());
    ASSERT_EQ(checked.status, 0) << checked.output;
  }

  // The same prompt and greedy continuation on both sides.
  void compare_decoder(const Artifact& artifact, const std::vector<int32_t>& prompt,
                       double tolerance) {
    ASSERT_NO_FATAL_FAILURE(write(artifact));
    std::string ids;
    for (const int32_t id : prompt) ids += cat(ids.empty() ? "" : ",", id);
    const Ran ran = run_python(cat("tokens ", directory_.string(), " ", ids, " ",
                                   kGreedyTokens, " ", file("out")));
    ASSERT_EQ(ran.status, 0) << ran.output;
    const std::vector<float> theirs = read_floats(file("out"));

    Executor executor = take(
        Executor::create(std::make_shared<const Artifact>(artifact), ExecutorOptions{}));
    const int64_t vocabulary = artifact.program.vocabulary;
    const int64_t positions = static_cast<int64_t>(prompt.size()) + kGreedyTokens;
    auto cache = take(executor.make_cache(positions));
    std::vector<float> ours(static_cast<size_t>(positions * vocabulary));
    std::vector<int32_t> feed = prompt;
    std::string chosen;
    int64_t done = 0;
    for (int64_t step = 0; step <= kGreedyTokens; ++step) {
      const auto count = static_cast<int64_t>(feed.size());
      float* logits = ours.data() + done * vocabulary;
      const Status status =
          executor.forward(feed, *cache, MatrixView<float>(logits, count, vocabulary));
      ASSERT_TRUE(status.ok()) << status.message();
      done += count;
      const std::span<const float> last(ours.data() + (done - 1) * vocabulary,
                                        static_cast<size_t>(vocabulary));
      if (step < kGreedyTokens) {
        feed = {argmax(last)};
        chosen += cat(chosen.empty() ? "" : ",", feed[0]);
      }
    }
    ASSERT_EQ(theirs.size(), ours.size());
    EXPECT_EQ(ran.output, chosen + "\n");
    const double difference = relative_difference(theirs, ours);
    EXPECT_LT(difference, tolerance);
    std::printf("logits differ by %.2g of their largest over %d positions\n", difference,
                static_cast<int>(positions));
  }

  std::vector<float> run_images(std::span<const float> images,
                                const std::vector<int64_t>& shape) {
    std::ofstream(file("in"), std::ios::binary)
        .write(reinterpret_cast<const char*>(images.data()),
               static_cast<std::streamsize>(images.size_bytes()));
    std::string dims;
    for (const int64_t dim : shape) dims += cat(dims.empty() ? "" : ",", dim);
    const Ran ran = run_python(cat("images ", directory_.string(), " ", file("in"), " ",
                                   dims, " ", file("out")));
    EXPECT_EQ(ran.status, 0) << ran.output;
    return read_floats(file("out"));
  }

  std::filesystem::path directory_;
};

// --- language models

std::vector<int32_t> some_prompt(const Artifact& artifact) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < 9; ++i) {
    ids.push_back(static_cast<int32_t>((7 * i + 3) % artifact.program.vocabulary));
  }
  return ids;
}

TEST_F(OnnxRuntime, TheFloatDecoderGivesTheSameLogitsAndTokens) {
  sample::LlamaSize size;
  size.tied = false;
  const Artifact artifact = sample::llama(size, 31);
  compare_decoder(artifact, some_prompt(artifact), kLogits);
}

TEST_F(OnnxRuntime, InterleavedRotationBiasesAndEqualHeadsToo) {
  sample::LlamaSize size;
  size.interleaved = true;
  size.bias = true;
  size.kv_heads = size.heads;
  const Artifact artifact = sample::llama(size, 32);
  compare_decoder(artifact, some_prompt(artifact), kLogits);
}

class QuantizedDecoder : public OnnxRuntime,
                         public ::testing::WithParamInterface<const char*> {};
TEST_P(QuantizedDecoder, GivesTheSameLogitsAndTokens) {
  for (const bool tied : {true, false}) {
    sample::LlamaSize size;
    size.tied = tied;
    const Artifact artifact = sample::quantized(sample::llama(size, 33), GetParam());
    compare_decoder(artifact, some_prompt(artifact), kLogits);
  }
}
INSTANTIATE_TEST_SUITE_P(Schemes, QuantizedDecoder,
                         ::testing::Values("int8n/r@f32", "int4/g32@f16",
                                           "uint4/g16@f16+z/g16@uint4", "int3/g20@f16",
                                           "int4/g16@e4m3/t@f32"));

TEST_F(OnnxRuntime, TensorsInASecondFileRunTheSame) {
  const Artifact artifact = sample::quantized(sample::llama({}, 34), "int4/g32@f16");
  ExportOptions options;
  ASSERT_NO_FATAL_FAILURE(write(artifact, options));
  const std::string tokens =
      cat("tokens ", directory_.string(), " 1,2,3 8 ", file("out"));
  const Ran one_file = run_python(tokens);
  const std::vector<float> logits = read_floats(file("out"));
  options.external_data_bytes = 0;
  ASSERT_NO_FATAL_FAILURE(write(artifact, options));
  const Ran two_files = run_python(tokens);
  EXPECT_EQ(two_files.status, 0) << two_files.output;
  EXPECT_EQ(one_file.output, two_files.output);
  EXPECT_EQ(logits, read_floats(file("out")));
}

std::filesystem::path shared_models() {
  return std::filesystem::path(NIBBLE_SOURCE_DIR).parent_path() / "shared/data/models";
}

class Stories : public OnnxRuntime, public ::testing::WithParamInterface<const char*> {};
TEST_P(Stories, GivesTheSameLogitsAndTokens) {
  const auto folder = shared_models() / "stories260K";
  if (!std::filesystem::exists(folder)) GTEST_SKIP() << folder << " is absent";
  LoadOptions options;
  options.tokenizer = folder / "tok512.bin";
  Artifact artifact = take(load_model(folder / "stories260K.bin", options));
  const std::string scheme = GetParam();
  if (scheme != "float") artifact = sample::quantized(std::move(artifact), scheme);
  compare_decoder(artifact, {1, 403, 407, 261, 378}, kLogits);
}
INSTANTIATE_TEST_SUITE_P(Schemes, Stories,
                         ::testing::Values("float", "int8n/r@f32", "int4/g32@f16"));

// --- convolutional nets

std::vector<float> random_images(int64_t values, uint64_t seed) {
  SplitMix64 random(seed);
  std::vector<float> images;
  for (int64_t i = 0; i < values; ++i) {
    images.push_back(static_cast<float>(4 * random.uniform() - 2));
  }
  return images;
}

std::vector<float> our_logits(const Artifact& artifact, std::span<const float> images,
                              const std::vector<int64_t>& shape) {
  Executor executor = take(
      Executor::create(std::make_shared<const Artifact>(artifact), ExecutorOptions{}));
  std::vector<float> logits(static_cast<size_t>(shape[0] * 10));
  const Status status = executor.forward_images(
      images, shape, MatrixView<float>(logits.data(), shape[0], 10));
  if (!status.ok()) throw std::runtime_error(status.message());
  return logits;
}

// The largest magnitude of every value, by the float net.
std::map<std::string, double> value_maxima(const Artifact& artifact,
                                           std::span<const float> images,
                                           const std::vector<int64_t>& shape) {
  std::map<std::string, double> maxima;
  const auto add = [&](const std::string& name, std::span<const float> values) {
    for (const float value : values) {
      maxima[name] = std::max(maxima[name], std::abs(static_cast<double>(value)));
    }
  };
  add(artifact.program.inputs.front().name, images);
  Executor executor = take(
      Executor::create(std::make_shared<const Artifact>(artifact), ExecutorOptions{}));
  executor.set_tap([&](const TapValue& value) { add(value.name, value.floats); });
  std::vector<float> logits(static_cast<size_t>(shape[0] * 10));
  const Status status = executor.forward_images(
      images, shape, MatrixView<float>(logits.data(), shape[0], 10));
  if (!status.ok()) throw std::runtime_error(status.message());
  return maxima;
}

TEST_F(OnnxRuntime, TheFloatNetGivesTheSameLogits) {
  const Artifact artifact = sample::residual_net(35);
  const std::vector<int64_t> shape = {16, 3, 8, 8};
  const std::vector<float> images = random_images(16 * 3 * 8 * 8, 1);
  ASSERT_NO_FATAL_FAILURE(write(artifact));
  const std::vector<float> theirs = run_images(images, shape);
  ASSERT_EQ(theirs.size(), 160u);
  EXPECT_LT(relative_difference(theirs, our_logits(artifact, images, shape)), 1e-5);
}

struct IntegerNet {
  const char* weight;
  const char* signed_activation;
  const char* unsigned_activation;
};
class IntegerNets : public OnnxRuntime,
                    public ::testing::WithParamInterface<IntegerNet> {};

// ONNX Runtime requantizes with other float operations than integer_node.h, so a sum that
// lands on the edge between two codes may round the other way: logits may differ by what
// a few such steps of one code are worth, and no more.
TEST_P(IntegerNets, GivesTheSameLogitsUpToRoundingAtTheEdgeOfACode) {
  const Artifact floats = sample::residual_net(36);
  const std::vector<int64_t> shape = {64, 3, 8, 8};
  const std::vector<float> images = random_images(64 * 3 * 8 * 8, 2);
  const auto maxima = value_maxima(floats, images, shape);
  Artifact artifact = sample::quantized(floats, GetParam().weight);
  sample::add_activations(
      artifact, [&](const std::string& value) { return maxima.at(value); },
      GetParam().signed_activation, GetParam().unsigned_activation);
  ASSERT_NO_FATAL_FAILURE(write(artifact));
  const std::vector<float> theirs = run_images(images, shape);
  const std::vector<float> ours = our_logits(artifact, images, shape);
  ASSERT_EQ(theirs.size(), ours.size());
  int equal = 0, agree = 0;
  for (size_t i = 0; i < 64; ++i) {
    const std::span<const float> a(theirs.data() + 10 * i, 10),
        b(ours.data() + 10 * i, 10);
    equal += relative_difference(a, b) < 1e-5;
    agree += argmax(a) == argmax(b);
  }
  std::printf(
      "%d of 64 images: equal logits; %d: equal argmax; largest difference %.2g\n", equal,
      agree, relative_difference(theirs, ours));
  EXPECT_GE(equal, 60);
  EXPECT_GE(agree, 63);
  // One code of the pooled value moves a logit by less than this.
  EXPECT_LT(relative_difference(theirs, ours),
            1.5 / code_highest(take(parse_scheme(GetParam().unsigned_activation))));
}
INSTANTIATE_TEST_SUITE_P(
    Schemes, IntegerNets,
    ::testing::Values(IntegerNet{"int8n/r@f32", kSignedActivation, kUnsignedActivation},
                      IntegerNet{"int4/r@f32", "int8/t@f32", "uint4/t@f32"},
                      IntegerNet{"int8/t@f32", "int8n/t@f32", "uint6/t@f32"}));

TEST_F(OnnxRuntime, ResNet20FloatAndW8A8GiveTheSameClasses) {
  const auto file = shared_models() / "cifar10_resnet/resnet20_cifar10.safetensors";
  const auto data = shared_models().parent_path() / "cifar10";
  if (!std::filesystem::exists(file)) GTEST_SKIP() << file << " is absent";
  Artifact artifact = take(load_model(file, {}));
  const ImageSet set = take(load_images(data, Split::test));
  constexpr int64_t kImages = 256;
  const std::vector<int64_t> shape = {kImages, 3, 32, 32};
  std::vector<float> images(static_cast<size_t>(kImages * 3 * 32 * 32));
  preprocess(set, 0, kImages, artifact.image_mean, artifact.image_std, images.data());
  ASSERT_NO_FATAL_FAILURE(write(artifact));
  std::vector<float> theirs = run_images(images, shape);
  EXPECT_LT(relative_difference(theirs, our_logits(artifact, images, shape)), kLogits);

  FoldedModel folded = take(fold_batch_norm(artifact.program, artifact.tensors));
  artifact.program = folded.program;
  artifact.tensors = folded.tensors;
  const auto maxima = value_maxima(artifact, images, shape);
  artifact = sample::quantized(std::move(artifact), "int8n/r@f32");
  sample::add_activations(artifact,
                          [&](const std::string& value) { return maxima.at(value); });
  ASSERT_NO_FATAL_FAILURE(write(artifact));
  theirs = run_images(images, shape);
  const std::vector<float> ours = our_logits(artifact, images, shape);
  int agree = 0, right = 0;
  for (int64_t i = 0; i < kImages; ++i) {
    const auto begin = static_cast<size_t>(10 * i);
    const int32_t mine = argmax({ours.data() + begin, 10});
    agree += argmax({theirs.data() + begin, 10}) == mine;
    right += mine == set.labels[static_cast<size_t>(i)];
  }
  std::printf("w8a8: %d of 256 images agree, %d right; logits differ by %.2g\n", agree,
              right, relative_difference(theirs, ours));
  EXPECT_GE(agree, 254);
  EXPECT_GE(right, 230);  // 91.7 % of 256 is 235
  EXPECT_LT(relative_difference(theirs, ours), 0.05);
}

}  // namespace
}  // namespace nibble
