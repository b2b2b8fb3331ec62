// Exported decoders in ONNX Runtime against our own runtime: checker, logits, greedy
// tokens.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <optional>

#include "kernels/runtime/executor.h"
#include "kernels/runtime/kv_cache.h"
#include "recipes/models/load_model.h"
#include "tests/interop/onnx_runtime.h"

namespace nibble {
namespace {

using sample::take;
using namespace onnx_runtime;

constexpr int64_t kGreedyTokens = 64;

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

class OnnxRuntime : public onnx_runtime::Fixture {
 protected:
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

}  // namespace
}  // namespace nibble
