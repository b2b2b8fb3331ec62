// GGUF files that nibble writes, opened by others: every block type dequantized by the
// gguf package, logits by transformers, text by llama.cpp (as gpt4all carries it).
#include "export/exporter.h"
#include "export/gguf/gguf_model.h"
#include "kernels/tokenizer/tokenizer.h"
#include "tests/interop/transformers.h"

namespace nibble::transformers {
namespace {

namespace fs = std::filesystem;
using sample::take;

const fs::path kData = fs::path(NIBBLE_SOURCE_DIR) / ".." / "shared" / "data";

void write(const Artifact& artifact, const fs::path& path, ExportOptions options = {}) {
  const Status status = take(find_exporter("gguf"))->write(artifact, path, options);
  ASSERT_TRUE(status.ok()) << path << ": " << status.message();
}

TEST(GgufPackage, DequantizesEveryTypeToOurValues) {
  const fs::path directory = sample::fresh_directory("gguf");
  fs::create_directories(directory);
  sample::LlamaSize size;
  size.hidden = size.intermediate = 256;
  size.head_dim = 64;
  size.layers = 1;
  const Artifact artifact = sample::llama(size, 9);
  for (const GgmlType& type : all_ggml_types()) {
    const fs::path file = directory / cat(type.name, ".gguf");
    ExportOptions options;
    options.requantize = {cat("*=", type.name)};
    write(artifact, file, options);
    const fs::path out = directory / type.name;
    const Ran ran =
        run_python("gguf_run.py", cat("values ", file.string(), " ", out.string()));
    if (ran.status == 77) {
      fs::remove_all(directory);
      GTEST_SKIP() << "Python cannot import what it needs: " << ran.output;
    }
    ASSERT_EQ(ran.status, 0) << type.name << ": " << ran.output;
    GgufModel model = take(open_gguf_model(file));
    int quantized = 0;
    for (GgufParameter& parameter : model.parameters) {
      parameter.head_dim = 0;  // rows as the file has them
      std::vector<float> ours;
      if (parameter.is_float()) {
        ours = take(to_float(take(read_floats(parameter))));
      } else {
        const CodedMatrix q = take(read_codes(parameter));
        ours.resize(static_cast<size_t>(q.rows * q.cols));
        ASSERT_TRUE(dequantize(q, MatrixView<float>(ours.data(), q.rows, q.cols)).ok());
        ++quantized;
      }
      const auto theirs = read_values<float>(out / (parameter.tensor.name + ".f32"));
      EXPECT_TRUE(theirs == ours) << type.name << " " << parameter.tensor.name;
    }
    EXPECT_EQ(quantized, type.is_float() ? 0 : 8) << type.name;
  }
  fs::remove_all(directory);
}

// transformers' own random checkpoints, through a GGUF and back into our runtime; those
// that transformers reads from GGUF also there.
class GgufDecoders : public Checkpoints {};

TEST_F(GgufDecoders, KeepTheLogitsOfTheirCheckpoints) {
  constexpr double kLogits = 1e-4;  // f32 sums in another order, as decoders_test has it
  std::string files;
  std::vector<std::string> read;
  int written = 0;
  for (const std::string& name : cases_) {
    SCOPED_TRACE(name);
    const fs::path file = folder(name) / "model.gguf";
    const Artifact artifact = load(name);
    const Exporter& gguf = *take(find_exporter("gguf"));
    const Status can = gguf.can_express(artifact, {});
    if (name == "qwen2_window" || name == "moe_some") {
      EXPECT_EQ(can.code(), StatusCode::unsupported);  // layers that differ
      continue;
    }
    write(artifact, file);
    const Artifact loaded = take(load_model(file, {}));
    // mistral_null's window is none: nothing tells it from a Llama.
    if (name != "mistral_null") {
      EXPECT_EQ(loaded.program.architecture, artifact.program.architecture);
    }
    EXPECT_LT(relative_difference(runtime_logits(loaded, ids(name), 48), logits(name)),
              kLogits);
    ++written;
    // transformers takes neither rope_freqs nor scaling nor windows from a GGUF, and of
    // qwen2 and qwen3 not the size of a head.
    if (name != "llama" && name != "llama_tied") continue;
    files += " " + file.string();
    read.push_back(name);
  }
  EXPECT_GE(written, 12);
  const Ran ran = run_python(
      "gguf_run.py",
      cat("transformers ", (folder("llama") / "input_ids.i32").string(), files));
  if (ran.status == 77)
    GTEST_SKIP() << "Python cannot import what it needs: " << ran.output;
  ASSERT_EQ(ran.status, 0) << ran.output;
  for (const std::string& name : read) {
    const auto theirs = read_values<float>(folder(name) / "model.gguf.f32");
    EXPECT_LT(relative_difference(theirs, logits(name)), kLogits) << name;
  }
  EXPECT_EQ(read.size(), 2u);
}

// A real model of transformers' sizes: float, its 4-bit codes kept, ggml's own 4 bits.
TEST(GgufTransformers, GivesTheLogitsOfOurRuntime) {
  const fs::path docs = kData / "models/docs14m";
  if (!fs::exists(docs)) GTEST_SKIP() << "needs the shared data";
  const fs::path directory = sample::fresh_directory("gguf_transformers");
  fs::create_directories(directory);
  const std::vector<int32_t> ids = {539, 64,  1042, 64,  35,  1071, 2086, 418,
                                    200, 200, 690,  200, 200, 596,  678,  283};
  std::ofstream(directory / "ids", std::ios::binary)
      .write(reinterpret_cast<const char*>(ids.data()),
             static_cast<std::streamsize>(ids.size() * sizeof(int32_t)));
  const Artifact floats = take(load_model(docs, {}));
  const Artifact kept = sample::quantized(floats, "int4/g32@f16", [](const Node& node) {
    return node.op == "linear" && node.name != "lm_head";
  });
  write(floats, directory / "bf16.gguf");
  write(kept, directory / "q4_0.gguf");
  write(floats, directory / "q4_k.gguf", {.requantize = {"Q4_K", "*embed_tokens=Q6_K"}});
  std::string files;
  for (const char* name : {"bf16", "q4_0", "q4_k"})
    files += cat(" ", (directory / name).string(), ".gguf");
  const Ran ran = run_python("gguf_run.py",
                             cat("transformers ", (directory / "ids").string(), files));
  if (ran.status == 77) {
    fs::remove_all(directory);
    GTEST_SKIP() << "Python cannot import what it needs: " << ran.output;
  }
  ASSERT_EQ(ran.status, 0) << ran.output;
  std::map<std::string, std::vector<float>> theirs;
  for (const char* name : {"bf16", "q4_0", "q4_k"}) {
    theirs[name] = read_values<float>(directory / cat(name, ".gguf.f32"));
    const Artifact loaded = take(load_model(directory / cat(name, ".gguf"), {}));
    const double difference =
        relative_difference(runtime_logits(loaded, ids, ids.size()), theirs[name]);
    EXPECT_LT(difference, 1e-5) << name;  // f32 sums in another order
    std::printf("%s: logits differ by %.2g of their largest\n", name, difference);
  }
  EXPECT_GT(relative_difference(theirs["q4_0"], theirs["bf16"]), 1e-3);
  fs::remove_all(directory);
}

// The tokens that our runtime finds most probable, as text.
std::string greedy(const fs::path& model, const std::string& prompt, int count) {
  const auto artifact = std::make_shared<const Artifact>(take(load_model(model, {})));
  const auto tokenizer =
      take(make_tokenizer(artifact->tokenizer, artifact->program.vocabulary));
  Executor executor = take(Executor::create(artifact, ExecutorOptions{}));
  std::vector<int32_t> ids = take(tokenizer->encode(prompt));
  const size_t first = ids.size();
  std::vector<float> logits(static_cast<size_t>(artifact->program.vocabulary));
  auto cache = take(executor.make_cache(static_cast<int64_t>(first) + count));
  std::vector<int32_t> next = ids;
  for (int i = 0; i < count; ++i) {
    const Status status = executor.forward(
        next, *cache, MatrixView<float>(logits.data(), 1, artifact->program.vocabulary));
    EXPECT_TRUE(status.ok()) << status.message();
    const auto best = std::max_element(logits.begin(), logits.end()) - logits.begin();
    next = {static_cast<int32_t>(best)};
    ids.push_back(next[0]);
  }
  std::string text = tokenizer->decode(ids);
  return text.substr(text.find(prompt) + prompt.size());
}

TEST(LlamaCpp, WritesTheSameTextFromRealModels) {
  if (!fs::exists(kData / "models/docs14m")) GTEST_SKIP() << "needs the shared data";
  const fs::path directory = sample::fresh_directory("llama_cpp");
  fs::create_directories(directory);
  struct Case {
    fs::path model, tokenizer;
    const char* prompt;
    const char* name;
    std::vector<std::string> requantize;
    std::string scheme;  // of the linear layers, kept
  };
  const fs::path docs = kData / "models/docs14m", stories = kData / "models/stories260K";
  const char* const returns = "Returns the name of the";
  const Case cases[] = {{docs, "", returns, "bf16", {}, ""},
                        {docs, "", returns, "q4_0_kept", {}, "int4/g32@f16"},
                        {docs, "", returns, "q5_0_kept", {}, "uint4/g64@f16+z/g64@uint4"},
                        {docs, "", returns, "q4_k", {"Q4_K", "*embed_tokens=Q8_0"}, ""},
                        {stories / "stories260K.bin",
                         stories / "tok512.bin",
                         "Once upon a time",
                         "stories",
                         {},
                         ""},
                        {stories / "stories260K.bin",
                         stories / "tok512.bin",
                         "Once upon a time",
                         "stories8",
                         {"Q8_0"},
                         ""}};
  constexpr int kCount = 14;  // it rounds activations and caches: later, near ties part
  std::map<std::string, std::string> commands;  // a prompt's files
  for (const Case& c : cases) {
    Artifact artifact = take(load_model(c.model, {.tokenizer = c.tokenizer, .architecture = "", .sizes = {}}));
    if (!c.scheme.empty()) {
      artifact = sample::quantized(std::move(artifact), c.scheme, [](const Node& node) {
        return node.op == "linear" && node.name != "lm_head";
      });
    }
    const fs::path file = directory / cat(c.name, ".gguf");
    write(artifact, file, {.requantize = c.requantize});
    commands[c.prompt] += " " + file.string();
  }
  for (const auto& [prompt, files] : commands) {
    const Ran ran =
        run_python("gguf_run.py", cat("llama.cpp ", kCount, " '", prompt, "'", files));
    if (ran.status == 77) {
      fs::remove_all(directory);
      GTEST_SKIP() << "Python cannot import what it needs: " << ran.output;
    }
    ASSERT_EQ(ran.status, 0) << ran.output;
  }
  for (const Case& c : cases) {
    const fs::path file = directory / cat(c.name, ".gguf");
    std::ifstream in(file.string() + ".txt");
    const std::string theirs(std::istreambuf_iterator<char>(in), {});
    EXPECT_EQ(theirs, greedy(file, c.prompt, kCount)) << c.name;
    EXPECT_GT(theirs.size(), 20u) << c.name;
  }
  fs::remove_all(directory);
}

}  // namespace
}  // namespace nibble::transformers
