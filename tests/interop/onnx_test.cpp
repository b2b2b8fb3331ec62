// Exported graphs in ONNX Runtime against our own runtime: checker, logits, greedy
// tokens.
//
// Python only runs the other side (tests/interop/onnx_run.py); without its packages the
// tests skip and say what is missing.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <optional>

#include "export/exporter.h"
#include "kernels/program/edits/fold_batch_norm.h"
#include "kernels/runtime/executor.h"
#include "kernels/runtime/kv_cache.h"
#include "recipes/data/images.h"
#include "recipes/models/load_model.h"
#include "tests/interop/transformers.h"

namespace nibble {
namespace {

using sample::take;

constexpr int64_t kGreedyTokens = 64;
// Both sides sum in f32 in their own order; 1.2e-6 is what was measured.
constexpr double kLogits = 2e-5;

using transformers::Ran;
using transformers::relative_difference;

Ran run_python(const std::string& arguments) {
  return transformers::run_python("onnx_run.py", arguments);
}

std::vector<float> read_floats(const std::filesystem::path& path) {
  return transformers::read_values<float>(path);
}

int32_t argmax(std::span<const float> row) {
  return static_cast<int32_t>(std::max_element(row.begin(), row.end()) - row.begin());
}

std::string id_list(std::span<const int32_t> ids) {
  std::string text;
  for (const int32_t id : ids) text += cat(text.empty() ? "" : ",", id);
  return text;
}

// Our own runtime: logits of every position of the prompt and its greedy continuation.
struct Greedy {
  std::vector<int32_t> tokens;
  std::vector<float> logits;
};
Result<Greedy> continue_greedily(const Artifact& artifact, std::vector<int32_t> feed,
                                 int64_t steps) {
  NIBBLE_ASSIGN_OR_RETURN(
      Executor executor,
      Executor::create(std::make_shared<const Artifact>(artifact), ExecutorOptions{}));
  const int64_t vocabulary = artifact.program.vocabulary;
  const int64_t positions = static_cast<int64_t>(feed.size()) + steps;
  NIBBLE_ASSIGN_OR_RETURN(const auto cache, executor.make_cache(positions));
  Greedy greedy;
  greedy.logits.resize(static_cast<size_t>(positions * vocabulary));
  int64_t done = 0;
  for (int64_t step = 0; step <= steps; ++step) {
    const auto count = static_cast<int64_t>(feed.size());
    float* logits = greedy.logits.data() + done * vocabulary;
    NIBBLE_RETURN_IF_ERROR(
        executor.forward(feed, *cache, MatrixView<float>(logits, count, vocabulary)));
    done += count;
    const float* last = greedy.logits.data() + (done - 1) * vocabulary;
    if (step == steps) break;
    feed = {argmax({last, static_cast<size_t>(vocabulary)})};
    greedy.tokens.push_back(feed[0]);
  }
  return greedy;
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

  // The same prompt and greedy continuation on both sides: the prompt at once, then token
  // by token through the cache.
  void compare_decoder(const Artifact& artifact, const std::vector<int32_t>& prompt,
                       double tolerance, const ExportOptions& options = {}) {
    ASSERT_NO_FATAL_FAILURE(write(artifact, options));
    const Ran ran = run_python(cat("tokens ", directory_.string(), " ", id_list(prompt),
                                   " ", kGreedyTokens, " ", file("out")));
    ASSERT_EQ(ran.status, 0) << ran.output;
    const std::vector<float> theirs = read_floats(file("out"));

    const Greedy greedy = take(continue_greedily(artifact, prompt, kGreedyTokens));
    const std::vector<float>& ours = greedy.logits;
    ASSERT_EQ(theirs.size(), ours.size());
    EXPECT_EQ(ran.output, id_list(greedy.tokens) + "\n");
    const double difference = relative_difference(theirs, ours);
    EXPECT_LT(difference, tolerance);
    std::printf("logits differ by %.2g of their largest over %d positions\n", difference,
                static_cast<int>(static_cast<int64_t>(prompt.size()) + kGreedyTokens));
  }

  // The same greedy tokens in ONNX Runtime GenAI, which stops at the end token.
  void compare_genai(const Artifact& artifact, const std::vector<int32_t>& prompt) {
    const Ran ran = run_python(
        cat("genai ", directory_.string(), " ", id_list(prompt), " ", kGreedyTokens));
    if (ran.status == 77) GTEST_SKIP() << "Python cannot import it: " << ran.output;
    ASSERT_EQ(ran.status, 0) << ran.output;
    const Greedy greedy = take(continue_greedily(artifact, prompt, kGreedyTokens));
    const std::string ours = id_list(greedy.tokens) + ",";
    const std::string theirs = ran.output.substr(0, ran.output.find('\n')) + ",";
    EXPECT_EQ(theirs, ours.substr(0, theirs.size()));
    EXPECT_GT(std::count(theirs.begin(), theirs.end(), ','), 16);
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

// Real checkpoints that do not ship, quantized by rounding; "" where they are absent.
std::optional<Artifact> real_model(const std::string& name, const std::string& scheme) {
  const auto folder = shared_models() / name;
  if (!std::filesystem::exists(folder)) return {};
  LoadOptions options;
  if (name == "stories260K") options.tokenizer = folder / "tok512.bin";
  Artifact artifact = take(
      load_model(name == "stories260K" ? folder / "stories260K.bin" : folder, options));
  if (scheme == "float") return artifact;
  return sample::quantized(std::move(artifact), scheme,
                           [](const Node& node) { return node.op == "linear"; });
}
std::vector<int32_t> real_prompt(const std::string& name) {
  if (name == "stories260K") return {1, 403, 407, 261, 378};
  return {2870, 266, 598, 299, 266};  // "Returns the name of the"
}

struct Deployed {
  const char* model;
  const char* scheme;
  const char* quant_format;
};
void PrintTo(const Deployed& row, std::ostream* out) {
  *out << row.model << " " << row.scheme << " " << row.quant_format;
}
class RealDecoder : public OnnxRuntime, public ::testing::WithParamInterface<Deployed> {
 protected:
  ExportOptions options() const {
    ExportOptions options;
    options.quant_format = GetParam().quant_format;
    return options;
  }
};
TEST_P(RealDecoder, GivesTheSameLogitsAndTokens) {
  const auto artifact = real_model(GetParam().model, GetParam().scheme);
  if (!artifact) GTEST_SKIP() << shared_models() / GetParam().model << " is absent";
  compare_decoder(*artifact, real_prompt(GetParam().model), kLogits, options());
}
// The folder as it is, in ONNX Runtime GenAI.
TEST_P(RealDecoder, GeneratesTheSameTokensInGenai) {
  const auto artifact = real_model(GetParam().model, GetParam().scheme);
  if (!artifact) GTEST_SKIP() << shared_models() / GetParam().model << " is absent";
  ASSERT_NO_FATAL_FAILURE(write(*artifact, options()));
  compare_genai(*artifact, real_prompt(GetParam().model));
}
INSTANTIATE_TEST_SUITE_P(
    Models, RealDecoder,
    ::testing::Values(Deployed{"stories260K", "float", "qdq"},
                      Deployed{"stories260K", "int8n/r@f32", "qdq"},
                      Deployed{"stories260K", "int4/g32@f16", "qdq"},
                      Deployed{"stories260K", "int4/g32@f16", "matmulnbits"},
                      Deployed{"stories260K", "uint4/g32@f16+z/g32@uint4", "matmulnbits"},
                      Deployed{"stories260K", "int8n/r@f32", "matmulnbits"},
                      Deployed{"docs14m", "float", "qdq"},
                      Deployed{"docs14m", "int4/g128@f16", "qdq"},
                      Deployed{"docs14m", "int4/g128@f16", "matmulnbits"},
                      Deployed{"docs14m", "uint4/g128@f16+z/g128@uint4", "matmulnbits"},
                      Deployed{"docs14m", "int8/g64@f16", "matmulnbits"}));

// A text of the folder's own tokenizer, as a user of GenAI would give it.
TEST_F(OnnxRuntime, GenaiTokenizesAndGeneratesFromTheFolder) {
  const auto artifact = real_model("docs14m", "int4/g128@f16");
  if (!artifact)
    GTEST_SKIP() << shared_models() / "docs14m"
                 << " is absent";
  ExportOptions options;
  options.quant_format = "matmulnbits";
  ASSERT_NO_FATAL_FAILURE(write(*artifact, options));
  const Ran ran =
      run_python("genai-text " + directory_.string() + " 'Returns the name of the' 16");
  if (ran.status == 77) GTEST_SKIP() << "Python cannot import it: " << ran.output;
  ASSERT_EQ(ran.status, 0) << ran.output;
  const std::string prompt = id_list(real_prompt("docs14m"));
  EXPECT_EQ(ran.output.substr(0, prompt.size() + 1), prompt + "\n");
  const Greedy greedy = take(continue_greedily(*artifact, real_prompt("docs14m"), 16));
  EXPECT_EQ(ran.output.substr(prompt.size() + 1), id_list(greedy.tokens) + "\n");
}

// Prompts of different lengths in one batch, padded on the left as runtimes batch them:
// each gives what it gives alone, whatever stands in the padded places.
TEST_F(OnnxRuntime, PaddedPromptsOfABatchGiveWhatTheyGiveAlone) {
  Artifact artifact = sample::llama({}, 37);
  for (Node& node : artifact.program.nodes) {  // one layer with a window, one without
    if (node.op == "attention" && node.block == 1) node.attributes["window"] = int64_t{3};
  }
  ASSERT_NO_FATAL_FAILURE(write(artifact));
  const std::vector<std::vector<int32_t>> prompts = {{3, 10, 17, 24, 31, 38}, {9, 2}};
  const Ran ran = run_python(cat("padded ", directory_.string(), " ", id_list(prompts[0]),
                                 " ", id_list(prompts[1]), " ", file("out")));
  ASSERT_EQ(ran.status, 0) << ran.output;
  const std::vector<float> theirs = read_floats(file("out"));
  ASSERT_EQ(theirs.size(), 4u * 96u);
  for (size_t i = 0; i < 4; ++i) {
    std::vector<int32_t> alone = prompts[i % 2];
    if (i >= 2) alone.push_back(3);
    const Greedy greedy = take(continue_greedily(artifact, alone, 0));
    const std::span<const float> last(greedy.logits.data() + 96 * (alone.size() - 1), 96);
    EXPECT_LT(relative_difference({theirs.data() + 96 * i, 96}, last), kLogits) << i;
  }
}

// accuracy_level 4 rounds activations to int8: near, and not the same.
TEST_F(OnnxRuntime, AccuracyLevelFourIsNearAndOneIsEqual) {
  const auto artifact = real_model("docs14m", "int4/g128@f16");
  if (!artifact)
    GTEST_SKIP() << shared_models() / "docs14m"
                 << " is absent";
  const std::vector<int32_t> prompt = real_prompt("docs14m");
  const Greedy greedy = take(continue_greedily(*artifact, prompt, 0));
  std::map<int64_t, double> difference;
  for (const int64_t level : {0, 1, 4}) {
    ExportOptions options;
    options.quant_format = "matmulnbits";
    options.accuracy_level = level;
    ASSERT_NO_FATAL_FAILURE(write(*artifact, options));
    const Ran ran = run_python(
        cat("tokens ", directory_.string(), " ", id_list(prompt), " 0 ", file("out")));
    ASSERT_EQ(ran.status, 0) << ran.output;
    difference[level] = relative_difference(read_floats(file("out")), greedy.logits);
  }
  std::printf("difference of logits at accuracy level 0, 1, 4: %.2g %.2g %.2g\n",
              difference[0], difference[1], difference[4]);
  EXPECT_LT(difference[0], kLogits);
  EXPECT_LT(difference[1], kLogits);
  EXPECT_GT(difference[4], 1e-4);
  EXPECT_LT(difference[4], 0.05);
}

// FP8 weights and static FP8 inputs. Where the two sums before a code differ in their
// last bit it may round to its neighbour: 1/16 of one input of one layer.
TEST_F(OnnxRuntime, Fp8WeightsAndInputsGiveNearlyTheSameLogits) {
  Artifact artifact =
      sample::quantized(sample::llama({}, 39), "e4m3/r@f32",
                        [](const Node& node) { return node.op == "linear"; });
  for (auto& [tensor, layer] : artifact.layers) {
    layer.input =
        ActivationScheme{.scheme = take(parse_scheme("e4m3/t@f32")), .scale = 0.01f};
  }
  ExportOptions options;
  options.target = "tensorrt";  // which is not at hand; ONNX Runtime runs it unoptimized
  ASSERT_NO_FATAL_FAILURE(write(artifact, options));
  const std::vector<int32_t> prompt = some_prompt(artifact);
  setenv("NIBBLE_ORT_PLAIN", "1", 1);
  const Ran ran = run_python(
      cat("tokens ", directory_.string(), " ", id_list(prompt), " 0 ", file("out")));
  unsetenv("NIBBLE_ORT_PLAIN");
  ASSERT_EQ(ran.status, 0) << ran.output;
  const Greedy greedy = take(continue_greedily(artifact, prompt, 0));
  EXPECT_LT(relative_difference(read_floats(file("out")), greedy.logits), 0.01);
}

// Act-order: the input's columns are gathered into the codes' order.
TEST_F(OnnxRuntime, ActOrderGivesTheSameLogits) {
  Artifact artifact = sample::quantized(sample::llama({}, 38), "int4/g16@f16");
  for (auto& [tensor, layer] : artifact.layers) {
    if (tensor.find("layers") == std::string::npos) continue;
    const int64_t cols = artifact.packed.at(tensor).cols;
    std::vector<int32_t> order;
    for (int64_t c = 0; c < cols; ++c)
      order.push_back(static_cast<int32_t>(c * 7 % cols));
    layer.extras.permutation = tensor + ".permutation";
    artifact.tensors[layer.extras.permutation] = {
        DType::i32, {cols}, Bytes::copy_of(order.data(), order.size() * 4)};
  }
  for (const char* format : {"qdq", "matmulnbits"}) {
    ExportOptions options;
    options.quant_format = format;
    compare_decoder(artifact, some_prompt(artifact), kLogits, options);
  }
}

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

// ResNet-20 with integer activations of the first 256 test images, calibrated on them.
class ResNet20 : public OnnxRuntime {
 protected:
  static constexpr int64_t kImages = 256;
  void SetUp() override {
    OnnxRuntime::SetUp();
    if (IsSkipped()) return;
    const auto file = shared_models() / "cifar10_resnet/resnet20_cifar10.safetensors";
    if (!std::filesystem::exists(file)) GTEST_SKIP() << file << " is absent";
    floats_ = take(load_model(file, {}));
    set_ = take(load_images(shared_models().parent_path() / "cifar10", Split::test));
    images_.resize(static_cast<size_t>(kImages * 3 * 32 * 32));
    preprocess(set_, 0, kImages, floats_.image_mean, floats_.image_std, images_.data());
  }
  Artifact w8a8(const char* unsigned_activation) {
    Artifact artifact = floats_;
    FoldedModel folded = take(fold_batch_norm(artifact.program, artifact.tensors));
    artifact.program = folded.program;
    artifact.tensors = folded.tensors;
    const auto maxima = value_maxima(artifact, images_, shape_);
    artifact = sample::quantized(std::move(artifact), "int8n/r@f32");
    sample::add_activations(
        artifact, [&](const std::string& value) { return maxima.at(value); },
        kSignedActivation, unsigned_activation);
    return artifact;
  }
  void compare(const Artifact& artifact) {
    const std::vector<float> theirs = run_images(images_, shape_);
    const std::vector<float> ours = our_logits(artifact, images_, shape_);
    int agree = 0, right = 0;
    for (int64_t i = 0; i < kImages; ++i) {
      const auto begin = static_cast<size_t>(10 * i);
      const int32_t mine = argmax({ours.data() + begin, 10});
      agree += argmax({theirs.data() + begin, 10}) == mine;
      right += mine == set_.labels[static_cast<size_t>(i)];
    }
    std::printf("w8a8: %d of 256 images agree, %d right; logits differ by %.2g\n", agree,
                right, relative_difference(theirs, ours));
    EXPECT_GE(agree, 254);
    EXPECT_GE(right, 230);  // 91.7 % of 256 is 235
    EXPECT_LT(relative_difference(theirs, ours), 0.05);
  }

  Artifact floats_;
  ImageSet set_;
  std::vector<float> images_;
  const std::vector<int64_t> shape_ = {kImages, 3, 32, 32};
};

TEST_F(ResNet20, FloatGivesTheSameLogits) {
  ASSERT_NO_FATAL_FAILURE(write(floats_));
  const std::vector<float> theirs = run_images(images_, shape_);
  EXPECT_LT(relative_difference(theirs, our_logits(floats_, images_, shape_)), kLogits);
}

// Placement by ONNX Runtime's own judgement: nothing but padding and the head, whose
// logits are floats, is left between a DequantizeLinear and a QuantizeLinear.
TEST_F(ResNet20, W8A8GivesTheSameClassesAndRunsOnIntegers) {
  const Artifact artifact = w8a8(kUnsignedActivation);
  ASSERT_NO_FATAL_FAILURE(write(artifact));
  compare(artifact);
  const Ran ran = run_python("fused " + directory_.string());
  ASSERT_EQ(ran.status, 0) << ran.output;
  for (const char* line :
       {"19 QLinearConv\n", "9 QLinearAdd\n", "1 QLinearGlobalAveragePool\n"}) {
    EXPECT_NE(ran.output.find(line), std::string::npos) << line << ran.output;
  }
  for (const char* op : {" Conv\n", " Relu\n", " Add\n", " FusedConv\n"}) {
    EXPECT_EQ(ran.output.find(op), std::string::npos) << op << ran.output;
  }
}

// Signed codes alone, as TensorRT has them; it is not at hand, so ONNX Runtime runs them.
TEST_F(ResNet20, W8A8ForTensorRtGivesTheSameClasses) {
  const Artifact artifact = w8a8("uint7/t@f32");
  ExportOptions options;
  options.target = "tensorrt";
  ASSERT_NO_FATAL_FAILURE(write(artifact, options));
  compare(artifact);
}

}  // namespace
}  // namespace nibble
