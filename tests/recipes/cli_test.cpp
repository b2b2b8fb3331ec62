// The command as a contract: verbs, one JSON object on stdout, exit codes, determinism,
// interruption.
#include <gmock/gmock.h>

#include <chrono>
#include <cmath>
#include <thread>

#include "kernels/cuda/memory.h"
#include "tests/recipes/command.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;
using Json = nlohmann::json;

class Cli : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    shared_ = new TemporaryDirectory;
    write_small_llama(shared_->path() / "model");
    std::ofstream(shared_->path() / "train.txt") << story_text(1, 60);
    std::ofstream(shared_->path() / "heldout.txt") << story_text(2, 6);
  }
  static void TearDownTestSuite() { delete shared_; }

  std::string at(const std::string& name) const {
    return (shared_->path() / name).string();
  }
  std::string mine(const std::string& name) const {
    return (scratch_.path() / name).string();
  }
  Outcome run(const std::vector<std::string>& arguments) const {
    return nibble(arguments, scratch_.path());
  }
  std::vector<std::string> quantize(const std::string& recipe,
                                    const std::string& output) const {
    return {"quantize",      at("model"),
            "--recipe",      recipe,
            "--set",         "group=16",
            "--evaluation",  at("heldout.txt"),
            "--calibration", at("train.txt"),
            "--set",         "calibration.sequences=8",
            "--set",         "calibration.length=64",
            "--output",      output};
  }

  TemporaryDirectory scratch_;
  static TemporaryDirectory* shared_;
};
TemporaryDirectory* Cli::shared_ = nullptr;

std::vector<std::string> with(std::vector<std::string> arguments,
                              const std::vector<std::string>& more) {
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

#define SKIP_WITHOUT_TORCH() \
  if (!built_with_torch(scratch_.path())) GTEST_SKIP() << "this build has no LibTorch"

TEST_F(Cli, HelpAndVersion) {
  const Outcome help = run({"--help"});
  EXPECT_EQ(help.code, 0);
  for (const char* verb : {"inspect", "quantize", "train", "export", "validate",
                           "evaluate", "generate", "bench", "recipes", "stories"}) {
    EXPECT_THAT(help.out, HasSubstr(cat("  ", verb, " ")));
    const Outcome page = run({verb, "--help"});
    EXPECT_EQ(page.code, 0) << verb;
    EXPECT_THAT(page.out, HasSubstr(cat("nibble ", verb, " "))) << verb;
    EXPECT_THAT(page.out, HasSubstr("--threads")) << verb;
    EXPECT_EQ(page.error, "") << verb;
  }
  EXPECT_THAT(run({"--version"}).out, HasSubstr("nibble 0."));
}

TEST_F(Cli, WrongRequestsAreOneLineAndCode2) {
  const auto line = [this](const std::vector<std::string>& arguments, int code) {
    const Outcome outcome = run(arguments);
    EXPECT_EQ(outcome.code, code) << outcome.error;
    EXPECT_EQ(outcome.out, "");
    EXPECT_EQ(std::count(outcome.error.begin(), outcome.error.end(), '\n'), 1)
        << outcome.error;
    return last_line(outcome, shared_->path());
  };
  EXPECT_THAT(line({"evalute", "x"}, 2),
              HasSubstr("found 'evalute' (did you mean 'evaluate'?)"));
  EXPECT_EQ(line({"inspect"}, 2),
            "nibble: [inspect] command line: MODEL is required; found none; "
            "usage: nibble inspect MODEL");
  EXPECT_THAT(line({"inspect", "a", "b"}, 2),
              HasSubstr("1 argument(s) allowed; found more"));
  EXPECT_EQ(
      line({"generate", at("model"), "--prompt-ids", "1,-2"}, 2),
      "nibble: [generate] --prompt-ids: token ids from 0 to 299 with commas between "
      "are required; found \"-2\"; write them as 1,15,8");
  EXPECT_EQ(line({"generate", at("model"), "--prompt", "a", "--prompt-ids", "1"}, 2),
            "nibble: [generate] --prompt, --prompt-file, --prompt-ids: one of them is "
            "required; found 2; give --prompt \"\" to start from nothing");
  EXPECT_THAT(line({"generate", at("model"), "--prompt", "x", "--tok", "3"}, 2),
              HasSubstr("[generate] command line: unrecognised option '--tok'"));
  EXPECT_EQ(
      line({"generate", at("model"), "--prompt", "x", "--tokens", "0"}, 2),
      "nibble: [generate] --tokens: at least 1 required; found 0; give a larger number");
  EXPECT_EQ(line({"evaluate", at("model")}, 2),
            "nibble: [evaluate] command line: one of --text and --dataset is required; "
            "found none; "
            "give the data to measure on");
  EXPECT_EQ(line({"inspect", at("nothing")}, 4),
            "nibble: [models] nothing: no such file or directory");
  EXPECT_THAT(line({"inspect", at("model"), "--cpu", "sse9"}, 2), HasSubstr("sse9"));
  ::setenv("NIBBLE_CPU", "sse9", 1);
  EXPECT_THAT(line({"inspect", at("model")}, 2), HasSubstr("sse9"));
  ::unsetenv("NIBBLE_CPU");
  EXPECT_THAT(line({"export", at("model"), "--to", "gguff", "--output", mine("x")}, 4),
              HasSubstr("onnx"));
  EXPECT_THAT(
      line({"quantize", at("model"), "--recipe", "w4a16-rtn", "--set", "grup=3",
            "--output", mine("x")},
           2),
      HasSubstr(
          "[recipe] --set grup=3: unknown key; found 'grup' (did you mean 'group'?)"));
}

TEST_F(Cli, InspectsAFloatModel) {
  const Json json = parsed(run({"inspect", at("model"), "--json"}));
  EXPECT_EQ(json["architecture"], "LlamaForCausalLM");
  EXPECT_EQ(json["quantized"], false);
  EXPECT_EQ(json["bits_per_weight"], 32.0);
  EXPECT_EQ(json["vocabulary"], 300);
  EXPECT_EQ(json["blocks"], 2);
  EXPECT_EQ(json["provenance"]["sources"].size(), 4u);
  EXPECT_THAT(run({"inspect", at("model")}).out,
              HasSubstr("context 128 tokens, vocabulary 300"));
}

TEST_F(Cli, StoriesAreWrittenWithTheirFloor) {
  const Json json =
      parsed(run({"stories", "--seed", "2", "--count", "6", "--output", mine("s.txt"),
                  "--tokenizer", at("model/tokenizer.json"), "--json"}));
  EXPECT_EQ(*read_text_file(mine("s.txt")), story_text(2, 6));
  double nats = 0;
  for (uint64_t i = 0; i < 6; ++i) nats -= make_story(2, i).log_probability;
  EXPECT_NEAR(json["entropy_nats"].get<double>(), nats, 1e-9);
  EXPECT_NEAR(json["floor_perplexity"].get<double>(),
              std::exp(nats / json["tokens"].get<double>()), 1e-9);
  EXPECT_EQ(run({"stories", "--count", "1", "--output", mine("s.txt")}).code, 9);
}

TEST_F(Cli, EvaluatesAndGeneratesAFloatModel) {
  const Json json = parsed(run({"evaluate", at("model"), "--text", at("heldout.txt"),
                                "--per-line", "--reference", at("model"), "--json"}));
  for (const char* key : {"perplexity", "perplexity_ci95", "nll", "tokens", "kl",
                          "kl_ci95", "top1_agreement", "sequence_length"}) {
    EXPECT_TRUE(json.contains(key)) << key;
  }
  EXPECT_EQ(json["sequences"], 6);
  EXPECT_EQ(json["sequence_length"], 128);
  EXPECT_NEAR(json["perplexity"].get<double>(), std::exp(json["nll"].get<double>()),
              1e-9);
  EXPECT_NEAR(json["kl"].get<double>(), 0, 1e-9);  // a model against itself
  EXPECT_EQ(json["top1_agreement"], 1.0);
  EXPECT_LT(json["perplexity_ci95"][0], json["perplexity"]);
  EXPECT_GT(json["perplexity_ci95"][1], json["perplexity"]);

  const std::vector<std::string> generate = {"generate",  at("model"), "--prompt",
                                             "Once upon", "--tokens",  "20"};
  const Json greedy = parsed(run(with(generate, {"--greedy", "--json"})));
  EXPECT_EQ(greedy["ids"].size(), 20u);
  EXPECT_THAT(greedy["text"].get<std::string>(), ::testing::StartsWith("Once upon"));
  const Outcome streamed = run(with(generate, {"--greedy"}));
  EXPECT_EQ(streamed.out, greedy["text"].get<std::string>() + "\n");
  // The same prompt from a file and as ids.
  std::ofstream(at("prompt.txt")) << "Once upon";
  const std::vector<std::string> rest = {"--tokens", "20", "--greedy", "--json"};
  EXPECT_EQ(parsed(run(with({"generate", at("model"), "--prompt-file", at("prompt.txt")},
                            rest)))["ids"],
            greedy["ids"]);
  std::string ids;
  for (const Json& id : greedy["prompt_ids"]) ids += (ids.empty() ? "" : ",") + id.dump();
  const Json by_ids =
      parsed(run(with({"generate", at("model"), "--prompt-ids", ids}, rest)));
  EXPECT_EQ(by_ids["ids"], greedy["ids"]);
  EXPECT_EQ(by_ids["text"], greedy["text"]);
  const Json seed3 = parsed(run(with(generate, {"--seed", "3", "--json"})));
  EXPECT_EQ(parsed(run(with(generate, {"--seed", "3", "--json"})))["ids"], seed3["ids"]);
  EXPECT_NE(parsed(run(with(generate, {"--seed", "4", "--json"})))["ids"], seed3["ids"]);
}

TEST_F(Cli, AGpuIsAskedForByName) {
  const std::vector<std::string> generate = {"generate", at("model"), "--prompt",
                                             "Once",     "--tokens",  "2"};
  EXPECT_EQ(run(with(generate, {"--device", "cpu"})).code, 0);
  const Outcome unknown = run(with(generate, {"--device", "gpu"}));
  EXPECT_EQ(unknown.code, 2);
  EXPECT_THAT(unknown.error, HasSubstr("cuda:N"));
  EXPECT_EQ(run(with(generate, {"--device", "cuda", "--compute", "int8"})).code, 2);
  if (cuda::device_info().ok()) GTEST_SKIP() << "there is a GPU";
  for (const std::vector<std::string>& command :
       {generate, std::vector<std::string>{"bench", at("model")},
        std::vector<std::string>{"evaluate", at("model"), "--text", at("heldout.txt")}}) {
    const Outcome refused = run(with(command, {"--device", "cuda"}));
    EXPECT_EQ(refused.code, 5) << command[0];
    EXPECT_THAT(refused.error, HasSubstr("CUDA")) << command[0];
  }
}

TEST_F(Cli, BenchTimesTwoModelsInTurns) {
  const Json json =
      parsed(run({"bench", at("model"), "--reference", at("model"), "--repeats", "2",
                  "--tokens", "4", "--prefill", "16", "--json"}));
  EXPECT_GT(json["decode_tokens_per_second"], 0);
  EXPECT_GT(json["prefill_tokens_per_second"], 0);
  EXPECT_FALSE(json.contains("images_per_second"));
  EXPECT_EQ(json["repeats"], 2);
  EXPECT_GT(json["reference"]["decode_tokens_per_second"], 0);
  EXPECT_FALSE(json["kernels"].empty());
  EXPECT_FALSE(json["cpu"].get<std::string>().empty());
}

TEST_F(Cli, AdviseRanksSchemesAndMeasuresTheFirst) {
  const Json json = parsed(run({"advise", at("model"), "--context", "16", "--prompt", "8",
                                "--batch", "2", "--budget-mb", "1000", "--measure", "--json"}));
  ASSERT_GE(json["advice"].size(), 9u);
  int measured = 0;
  for (const Json& advice : json["advice"]) {
    EXPECT_GT(advice["decode_tokens_per_second"], 0);
    EXPECT_EQ(advice["pays"], advice["verdict"] == "");
    EXPECT_EQ(advice["fits"], true);
    EXPECT_FALSE(advice["layers"].empty());
    measured += advice.contains("measured_decode_tokens_per_second");
  }
  EXPECT_EQ(measured, 1);
  EXPECT_THAT(run({"advise", at("model"), "--batch", "1000000000"}).error,
              HasSubstr("--batch 1000000000: caches of "));
}

TEST_F(Cli, AdviseKeepsTimingsOfLayers) {
  const std::vector<std::string> asked = {"advise", at("model"), "--context", "16",
                                          "--prompt", "8", "--json"};
  const Json first = parsed(run(asked)), second = parsed(run(asked));
  EXPECT_EQ(first["known_timings"], 0);
  EXPECT_GT(second["known_timings"], 0);
  const auto seconds = [](const Json& json) {
    std::map<std::string, double> found;
    for (const Json& advice : json["advice"]) {
      found[advice["name"]] = advice["layers"][0]["decode_seconds"];
    }
    return found;
  };
  EXPECT_EQ(seconds(first), seconds(second));
  EXPECT_EQ(parsed(run(with(asked, {"--fresh"})))["known_timings"], 0);
  // Half a file is no reason to fail, nor to be believed.
  fs::path file;
  for (const auto& entry : fs::directory_iterator(scratch_.path() / "nibble")) file = entry;
  ASSERT_THAT(file.filename().string(), ::testing::StartsWith("timings-"));
  fs::resize_file(file, fs::file_size(file) / 2);
  EXPECT_EQ(parsed(run(asked))["known_timings"], 0);
  EXPECT_GT(parsed(run(asked))["known_timings"], 0);
}

TEST_F(Cli, BenchTimesEveryKindOfLayerAndPlotsThem) {
  const Json json = parsed(run({"bench", at("model"), "--layers", "--repeats", "2",
                                "--tokens", "2", "--prefill", "8", "--report",
                                at("speed.html"), "--json"}));
  int64_t layers = 0;
  for (const Json& kind : json["layers"]) {
    layers += kind["layers"].get<int64_t>();
    EXPECT_EQ(kind["shape"].size(), 2u);
    EXPECT_GT(kind["decode_bytes_per_second"]["median"], 0);
    EXPECT_LE(kind["prefill_flops"]["quartiles"][0], kind["prefill_flops"]["median"]);
    EXPECT_TRUE(json["kernels"].contains(kind["kernel"].get<std::string>())) << kind;
  }
  int64_t served = 0;
  for (const auto& [name, count] : json["kernels"].items()) {
    if (name.rfind("linear", 0) == 0) served += count.get<int64_t>();
  }
  EXPECT_EQ(layers, served);
  std::ifstream page(at("speed.html"));
  const std::string html{std::istreambuf_iterator<char>(page), {}};
  EXPECT_THAT(html, HasSubstr("layers_prefill"));
  EXPECT_THAT(html, HasSubstr(json["layers"][0]["kernel"].get<std::string>()));
}

TEST_F(Cli, BenchKernelsHoldsEachRowToItsLimits) {
  const Json json = parsed(run({"bench", "--kernels", "--shape", "40x256", "--working-set",
                                "65536", "--repeats", "1", "--filter", "int4/g128@f16",
                                "--threads", "1", "--report", mine("kernels.html"),
                                "--json"}));
  EXPECT_FALSE(json["cpu"].get<std::string>().empty());
  EXPECT_EQ(json["shape"], Json({40, 256}));
  EXPECT_EQ(json["working_set"], 65536);
  EXPECT_FALSE(json["caches"].empty());
  EXPECT_EQ(json["read"].back()["level"], "memory");
  EXPECT_GT(json["read"].back()["bytes_per_second"]["median"], 0);
  for (const Json& row : json["peaks"]) {
    EXPECT_NE(row.contains("refused"), row["operations_per_second"].is_object()) << row;
  }
  // 1, 8 and 512 tokens of f32 and s8 activations, and of bf16 where the CPU has a row.
  std::map<std::string, int> activations;
  for (const Json& row : json["cases"]) ++activations[row["activation"]];
  EXPECT_EQ(activations["f32"], 3);
  EXPECT_EQ(activations["s8"], 3);
  EXPECT_EQ(json["cases"].size(), 3 * activations.size());
  // 40 rows of 128 bytes of codes and two scales of two bytes.
  for (const Json& row : json["cases"]) {
    EXPECT_EQ(row["weight_bytes"], 40 * (128 + 4)) << row;
    const bool decode = row["tokens"] <= 8;
    EXPECT_EQ(row["weights"], decode ? 13 : 1) << row;  // 65536 bytes of 5280
    EXPECT_EQ(row["of_read"].is_object(), decode) << row;
    EXPECT_GT(row["operations_per_second"]["median"], 0) << row;
    EXPECT_LT(row["error"], row["activation"] == "f32" ? 1e-5 : 0.05) << row;
    EXPECT_EQ(row["threads"], 1);
  }
  std::ifstream page(mine("kernels.html"));
  const std::string html{std::istreambuf_iterator<char>(page), {}};
  EXPECT_THAT(html, HasSubstr("Decode, 1 thread"));
  EXPECT_THAT(html, HasSubstr(json["cases"][0]["kernel"].get<std::string>()));
}

TEST_F(Cli, BenchKernelsRefusesWhatItCannotDo) {
  const auto refused = [&](const std::vector<std::string>& arguments) {
    const Outcome outcome = run(with({"bench"}, arguments));
    EXPECT_EQ(outcome.code, 2) << outcome.out;
    EXPECT_EQ(outcome.out, "");
    return last_line(outcome, shared_->path());
  };
  EXPECT_EQ(refused({"--kernels", at("model")}),
            "nibble: [bench] --kernels: the kernels are timed without a model; found "
            "MODEL; leave one of them out");
  EXPECT_EQ(refused({"--kernels", "--layers"}),
            "nibble: [bench] --kernels: the kernels are timed without a model; found "
            "--layers; leave one of them out");
  EXPECT_EQ(refused({at("model"), "--shape", "8x8"}),
            "nibble: [bench] --shape: --kernels is required with it; found a model; add "
            "--kernels or leave it out");
  EXPECT_EQ(refused({"--kernels", "--shape", "4096"}),
            "nibble: [bench] --shape: ROWSxCOLS is required; found \"4096\"; give for "
            "example 4096x4096");
  EXPECT_EQ(refused({"--kernels", "--shape", "0x8"}),
            "nibble: [bench] --shape: 1 to 1048576 rows and columns are required; found "
            "0x8; give ROWSxCOLS, as 4096x4096");
  EXPECT_THAT(refused({"--kernels", "--filter", "int5"}),
              HasSubstr("found \"int5\"; the cases are bf16 f32 1, bf16 f32 8, "));
  EXPECT_THAT(refused({}), HasSubstr("MODEL is required; found none"));
}

TEST_F(Cli, WithoutLibTorchTheTwoVerbsSaySo) {
  if (built_with_torch(scratch_.path())) GTEST_SKIP() << "this build has LibTorch";
  const Outcome outcome = run(quantize("w4a16-rtn", mine("q")));
  EXPECT_EQ(outcome.code, 5);
  EXPECT_THAT(outcome.error, HasSubstr("[quantize] this build: LibTorch is required"));
}

TEST_F(Cli, TheWholePathOfAnArtifact) {
  SKIP_WITHOUT_TORCH();
  const std::string artifact = mine("w4");
  const Json made = parsed(run(with(quantize("w4a16-gptq", artifact), {"--json"})));
  EXPECT_EQ(made["recipe"], "w4a16-gptq");
  EXPECT_GT(made["after"]["kl"], 0);
  EXPECT_LT(made["after"]["bytes"], made["before"]["bytes"]);
  EXPECT_NEAR(made["after"]["quantized_bits_per_weight"].get<double>(), 5.0,
              0.05);  // 4 + 16/16
  EXPECT_GT(made["after"]["decode_tokens_per_second"]["median"], 0);
  EXPECT_THAT(made["settings"].get<std::string>(), HasSubstr("group: 16"));
  for (const char* file : {"manifest.json", "config.json", "tokenizer.json",
                           "model.safetensors", "report.html", "measurements.json"}) {
    EXPECT_TRUE(fs::exists(fs::path(artifact) / file)) << file;
  }

  const Json inspected = parsed(run({"inspect", artifact, "--json"}));
  EXPECT_EQ(inspected["quantized"], true);
  EXPECT_EQ(inspected["ledger"].size(), inspected["parameters"].size());
  int quantized = 0;
  for (const Json& entry : inspected["ledger"]) {
    if (entry["method"] == "gptq") {
      ++quantized;
      EXPECT_EQ(entry["scheme"], "int4/g16@f16");
      EXPECT_EQ(entry["tokens"], 8 * 64);
      EXPECT_FALSE(entry["kernel"].get<std::string>().empty());
    } else {
      EXPECT_FALSE(entry["reason"].get<std::string>().empty()) << entry;
    }
  }
  EXPECT_EQ(quantized, 14);

  const Json valid = parsed(
      run({"validate", artifact, "--reference", at("model"), "--text", at("heldout.txt"),
           "--max-kl", "5", "--min-agreement", "0.1", "--json"}));
  EXPECT_EQ(valid["passed"], true) << valid.dump(1);
  EXPECT_EQ(valid["checks"].back()["name"], "outputs");
  EXPECT_EQ(valid["checks"].back()["outcome"], "passed");
  const Outcome strict =
      run({"validate", artifact, "--reference", at("model"), "--max-kl", "0"});
  EXPECT_EQ(strict.code, 7);
  EXPECT_THAT(strict.error, HasSubstr("check outputs failed: KL "));

  const Json quality =
      parsed(run({"evaluate", artifact, "--text", at("heldout.txt"), "--sequence-length",
                  "64", "--reference", at("model"), "--json"}));
  EXPECT_NEAR(quality["kl"].get<double>(), made["after"]["kl"].get<double>(), 1e-9);
  EXPECT_NEAR(quality["perplexity"].get<double>(),
              made["after"]["perplexity"].get<double>(), 1e-9);
  const Json int8 = parsed(run({"evaluate", artifact, "--text", at("heldout.txt"),
                                "--compute", "int8", "--json"}));
  EXPECT_EQ(int8["compute"], "int8");
  EXPECT_EQ(parsed(run({"generate", artifact, "--prompt", "Once", "--tokens", "8",
                        "--greedy", "--json"}))["ids"]
                .size(),
            8u);
  EXPECT_GT(parsed(run({"bench", artifact, "--repeats", "1",
                        "--json"}))["decode_tokens_per_second"],
            0);

  const Outcome exported =
      run({"export", artifact, "--to", "onnx", "--output", mine("onnx"), "--json"});
  EXPECT_GT(parsed(exported)["bytes"], 0);
  EXPECT_EQ(run({"export", artifact, "--to", "onnx", "--output", mine("onnx")}).code, 9);
}

TEST_F(Cli, AnExistingOutputIsKept) {
  SKIP_WITHOUT_TORCH();
  fs::create_directory(mine("there"));
  std::ofstream(mine("there/precious.txt")) << "mine";
  const Outcome refused = run(quantize("w8a16", mine("there")));
  EXPECT_EQ(refused.code, 9);
  EXPECT_EQ(last_line(refused, scratch_.path()),
            "nibble: [quantize] there: a new directory is required; found one; choose "
            "another or give "
            "--overwrite");
  EXPECT_EQ(*read_text_file(mine("there/precious.txt")), "mine");
  EXPECT_EQ(run(with(quantize("w8a16", mine("there")), {"--overwrite"})).code, 0);
  EXPECT_TRUE(fs::exists(mine("there/manifest.json")));
  EXPECT_FALSE(fs::exists(mine("there/precious.txt")));
}

TEST_F(Cli, RequestsFailBeforeAnythingHeavy) {
  SKIP_WITHOUT_TORCH();
  const auto fails = [this](std::vector<std::string> arguments, int code) {
    const Outcome outcome = run(with(std::move(arguments), {"--output", mine("out")}));
    EXPECT_EQ(outcome.code, code) << outcome.error;
    EXPECT_FALSE(fs::exists(mine("out")));
    return last_line(outcome, shared_->path());
  };
  EXPECT_EQ(
      fails({"quantize", at("model"), "--recipe", "w4a16-gptq"}, 7),
      "nibble: [quantize] w4a16-gptq: calibration data is required; found none; give "
      "--calibration TEXT");
  EXPECT_THAT(
      fails({"quantize", at("model"), "--recipe", "w4a16-qat"}, 2),
      HasSubstr(
          "a recipe of kind ptq is required; found kind qat; use nibble train for it"));
  EXPECT_THAT(
      fails({"train", at("model"), "--recipe", "w8a16", "--data", at("train.txt")}, 2),
      HasSubstr("found kind ptq; use nibble quantize for it"));
  EXPECT_THAT(fails({"quantize", at("model"), "--recipe", "w8a8-static"}, 5),
              HasSubstr("found LlamaForCausalLM, a language model"));
  EXPECT_THAT(fails({"quantize", at("model"), "--recipe", "w8a17"}, 4),
              HasSubstr("(did you mean 'w8a16'?)"));
  std::ofstream(mine("bad.yaml"))
      << "name: bad\nkind: ptq\nlayers:\n  - pattern: lm_haed\n";
  EXPECT_THAT(
      fails({"quantize", at("model"), "--recipe", mine("bad.yaml")}, 2),
      HasSubstr(
          "bad.yaml:4: a pattern must match a layer; found 'lm_haed', which matches none "
          "(did you mean 'lm_head'?)"));
}

TEST_F(Cli, OneAndTwoThreadsWriteTheSameFiles) {
  SKIP_WITHOUT_TORCH();
  ASSERT_EQ(run(with(quantize("w4a16-gptq", mine("one")), {"--threads", "1"})).code, 0);
  fs::create_directory(mine("second"));
  ASSERT_EQ(
      run(with(quantize("w4a16-gptq", mine("second/one")), {"--threads", "2"})).code, 0);
  const auto one = files_of(mine("one")), two = files_of(mine("second/one"));
  ASSERT_EQ(one.size(), two.size());
  for (const auto& [name, contents] : one) {
    EXPECT_TRUE(two.count(name) > 0 && contents == two.at(name)) << name;
  }
}

TEST_F(Cli, TrainsFromNoiseAndThenWithQuantization) {
  SKIP_WITHOUT_TORCH();
  write_small_llama(mine("empty"), /*weights=*/false);
  const std::vector<std::string> settings = {
      "--set",  "data.per_line=true", "--set", "train.batch=8", "--threads", "1",
      "--data", at("train.txt")};
  const Json trained = parsed(
      run(with({"train", mine("empty"), "--recipe", "float", "--set", "seed=5", "--set",
                "train.steps=30", "--set", "train.warmup_steps=2", "--set",
                "train.learning_rate=0.01", "--output", mine("float"), "--json"},
               settings)));
  EXPECT_FALSE(trained.contains("before"));
  EXPECT_LT(trained["loss"].back()["loss"].get<double>(),
            trained["loss"].front()["loss"].get<double>() - 1);
  EXPECT_LT(trained["after"]["perplexity"], 150);  // of 300 tokens, from noise
  EXPECT_FALSE(fs::exists(mine("float.training")));
  EXPECT_EQ(parsed(run({"inspect", mine("float"), "--json"}))["quantized"], false);

  const Json tuned = parsed(
      run(with({"train", mine("float"), "--recipe", "w4a16-qat", "--set", "group=16",
                "--set", "train.steps=6", "--output", mine("qat"), "--json"},
               settings)));
  EXPECT_GT(tuned["after"]["kl"], 0);
  EXPECT_LT(tuned["after"]["bits_per_weight"], 32);
  EXPECT_EQ(parsed(run({"validate", mine("qat"), "--json"}))["passed"], true);
}

TEST_F(Cli, AnInterruptedRunResumesToTheSameBytes) {
  SKIP_WITHOUT_TORCH();
  const auto train = [this](const std::string& output,
                            const std::vector<std::string>& more) {
    return with({"train", at("model"), "--recipe", "float", "--set", "train.steps=24",
                 "--set", "train.log_every=1", "--set", "data.per_line=true", "--data",
                 at("train.txt"), "--threads", "1", "--output", output},
                more);
  };
  ASSERT_EQ(run(train(mine("whole"), {})).code, 0);

  Command interrupted(train(mine("parted"), {}), scratch_.path());
  for (int i = 0; i < 3000; ++i) {
    if (interrupted.error_so_far().find("train 1/24") != std::string::npos) break;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  kill(interrupted.process(), SIGINT);
  const Outcome stopped = interrupted.wait();
  ASSERT_EQ(stopped.code, 130) << stopped.error;
  EXPECT_FALSE(fs::exists(mine("parted")));
  EXPECT_TRUE(fs::exists(mine("parted.training")));
  EXPECT_THAT(stopped.error, HasSubstr("a checkpoint was written"));

  EXPECT_EQ(run(train(mine("parted"), {})).code, 9);  // a checkpoint is not thrown away
  const Outcome resumed = run(train(mine("parted"), {"--resume"}));
  ASSERT_EQ(resumed.code, 0) << resumed.error;
  EXPECT_FALSE(fs::exists(mine("parted.training")));
  const auto whole = files_of(mine("whole")), parted = files_of(mine("parted"));
  for (const auto& [name, contents] : whole) {
    EXPECT_TRUE(parted.count(name) > 0 && contents == parted.at(name)) << name;
  }
}

TEST_F(Cli, CtrlCLeavesNothingOfAnArtifact) {
  SKIP_WITHOUT_TORCH();
  Command command(quantize("w4a16-gptq", mine("q")), scratch_.path());
  for (int i = 0; i < 3000; ++i) {
    if (command.error_so_far().find("quantize") != std::string::npos) break;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  kill(command.process(), SIGINT);
  EXPECT_EQ(command.wait().code, 130);
  for (const auto& entry : fs::directory_iterator(scratch_.path())) {
    EXPECT_THAT(entry.path().filename().string(),
                ::testing::AnyOf("stdout.txt", "stderr.txt"));
  }
}

}  // namespace
}  // namespace nibble
