// An artifact through other tools' formats and back, as a person would do it: export,
// validate, inspect, evaluate and generate on directories without a manifest.
#include <gmock/gmock.h>

#include "export/exporter.h"
#include "tests/export/sample_models.h"
#include "tests/recipes/command.h"

namespace nibble {
namespace {

using sample::take;
using ::testing::HasSubstr;
namespace fs = std::filesystem;

class CliFormats : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = sample::fresh_directory("formats");
    fs::create_directories(directory_);
    write_small_llama(directory_ / "float");
    put("w4", "int4/g16@f16");
  }
  void TearDown() override { fs::remove_all(directory_); }

  void put(const char* name, const char* scheme) {
    Artifact artifact = sample::quantized(
        take(load_model(directory_ / "float", {})), scheme,
        [](const Node& node) { return node.op == "linear" && node.name != "lm_head"; });
    std::sort(
        artifact.ledger.entries.begin(), artifact.ledger.entries.end(),
        [](const LedgerEntry& a, const LedgerEntry& b) { return a.tensor < b.tensor; });
    const Status status = write_artifact(artifact, directory_ / name, false);
    ASSERT_TRUE(status.ok()) << status.message();
  }
  std::string path(const std::string& name) const { return (directory_ / name).string(); }
  Outcome run(const std::vector<std::string>& arguments) {
    return nibble(arguments, directory_);
  }
  Outcome convert(const std::string& from, const std::string& format,
                  const std::string& to, const std::vector<std::string>& more = {}) {
    std::vector<std::string> all = {"export", path(from), "--to",
                                    format,   "--output", path(to)};
    all.insert(all.end(), more.begin(), more.end());
    return run(all);
  }
  std::string text_of(const std::string& model) {
    const Outcome outcome =
        run({"generate", path(model), "--prompt", "Once", "--tokens", "12", "--greedy"});
    EXPECT_EQ(outcome.code, 0) << outcome.error;
    return outcome.out;
  }

  fs::path directory_;
};

// Without the float model: each conversion keeps every code and scale.
TEST_F(CliFormats, ConversionsAreLossless) {
  const std::vector<std::pair<std::string, std::string>> way = {
      {"compressed-tensors", "1"}, {"gptq", "2"}, {"awq", "3"}, {"nibble", "4"}};
  std::string from = "w4";
  for (const auto& [format, to] : way) {
    const Outcome outcome = convert(from, format, to);
    ASSERT_EQ(outcome.code, 0) << format << ": " << outcome.error;
    from = to;
  }
  const Artifact first = take(read_artifact(directory_ / "w4"));
  const Artifact last = take(read_artifact(directory_ / "4"));
  ASSERT_EQ(first.packed.size(), last.packed.size());
  for (const auto& [name, packed] : first.packed) {
    EXPECT_EQ(take(unpack(packed)), take(unpack(last.packed.at(name)))) << name;
  }
  const LedgerEntry* entry = last.ledger.find("model.layers.0.mlp.up_proj.weight");
  EXPECT_EQ(entry->method, kImported);
  EXPECT_EQ(entry->note, "from awq");
  const std::string expected = text_of("w4");
  for (const char* model : {"1", "2", "3", "4"})
    EXPECT_EQ(text_of(model), expected) << model;
}

TEST_F(CliFormats, DoubleQuantizedTablesGoThroughBitsandbytes) {
  put("nf4", "nf4/f64@dyn8+o/f16384@f32");
  ASSERT_EQ(convert("nf4", "bitsandbytes", "bnb").code, 0);
  EXPECT_EQ(text_of("bnb"), text_of("nf4"));
  const Outcome back = convert("bnb", "nibble", "again");
  ASSERT_EQ(back.code, 0) << back.error;
  const std::string name = "model.layers.1.self_attn.o_proj.weight";
  EXPECT_EQ(take(unpack(take(read_artifact(directory_ / "again")).packed.at(name))),
            take(unpack(take(read_artifact(directory_ / "nf4")).packed.at(name))));
  const Outcome refused = convert("bnb", "awq", "never");
  EXPECT_EQ(refused.code, 5);
  EXPECT_EQ(
      last_line(refused, directory_),
      "nibble: [awq] model.layers.0.mlp.down_proj.weight: uses "
      "nf4/f64@dyn8+o/f16384@f32; AWQ holds 4-bit integers; quantize with these, or "
      "export to compressed-tensors");
  EXPECT_FALSE(fs::exists(directory_ / "never"));
}

TEST_F(CliFormats, ValidateSaysWhatItProvedAndWhatItCouldNot) {
  ASSERT_EQ(convert("w4", "gptq", "gptq").code, 0);
  const auto checks = [&](const std::vector<std::string>& more, int code = 0) {
    std::vector<std::string> all = {"validate", path("gptq"), "--json"};
    all.insert(all.end(), more.begin(), more.end());
    const Outcome outcome = run(all);
    EXPECT_EQ(outcome.code, code) << outcome.error;
    std::map<std::string, std::pair<std::string, std::string>> found;
    const auto json = parse_json_or_throw(outcome.out);
    for (const auto& check : json.at("checks")) {
      found[check.at("name")] = {check.at("outcome"), check.at("detail")};
    }
    return found;
  };
  auto found = checks({"--reference", path("w4")});
  EXPECT_EQ(found.at("files").first, "skipped");
  EXPECT_THAT(found.at("files").second, HasSubstr("gptq keeps no checksums"));
  EXPECT_EQ(found.at("decode").first, "passed");
  EXPECT_EQ(found.at("codes").first, "passed");
  EXPECT_THAT(found.at("codes").second, HasSubstr("14 quantized tensors"));
  EXPECT_EQ(found.at("ledger").first, "passed");
  EXPECT_EQ(found.at("runtime").first, "skipped");
  EXPECT_EQ(found.at("outputs").first, "passed");
  EXPECT_EQ(checks({}).at("codes").first, "skipped");

  // Another model's codes.
  put("other", "int4/g16@f16");
  Artifact other = take(read_artifact(directory_ / "other"));
  const std::string name = "model.layers.0.mlp.up_proj.weight";
  CodedMatrix q = take(unpack(other.packed.at(name)));
  q.codes[5] = static_cast<uint8_t>(q.codes[5] ^ 1);
  other.packed[name] = take(pack(q, {q.rows, q.cols}));
  ASSERT_TRUE(write_artifact(other, directory_ / "other", true).ok());
  found = checks({"--reference", path("other")}, 7);
  EXPECT_EQ(found.at("codes").first, "failed");
  EXPECT_THAT(found.at("codes").second,
              HasSubstr(name + ": row 0, column 5: the code must be"));
}

TEST_F(CliFormats, InspectAndEvaluateReadThem) {
  ASSERT_EQ(convert("w4", "compressed-tensors", "ct").code, 0);
  const nlohmann::json json = parsed(run({"inspect", path("ct"), "--json"}));
  EXPECT_EQ(json.at("quantized"), true);
  for (const auto& parameter : json.at("parameters")) {
    if (parameter.at("tensor") != "model.layers.0.self_attn.q_proj.weight") continue;
    EXPECT_EQ(parameter.at("scheme"), "int4/g16@f16");
    EXPECT_EQ(parameter.at("method"), kImported);
  }
  ASSERT_TRUE(write_file_atomically(directory_ / "text", story_text(3, 4)).ok());
  const nlohmann::json figures =
      parsed(run({"evaluate", path("ct"), "--text", path("text"), "--reference",
                  path("w4"), "--sequence-length", "32", "--limit", "2", "--json"}));
  EXPECT_THAT(figures.dump(), HasSubstr("\"kl\""));
}

TEST_F(CliFormats, AnotherToolsMethodIsRefusedByName) {
  ASSERT_EQ(convert("w4", "gptq", "gptq").code, 0);
  const std::string text = take(read_text_file(directory_ / "gptq/config.json"));
  auto config = parse_json_or_throw(text);
  config["quantization_config"]["quant_method"] = "hqq";
  ASSERT_TRUE(write_file_atomically(directory_ / "gptq/config.json", config.dump()).ok());
  for (const char* verb : {"inspect", "validate"}) {
    const Outcome outcome = run({verb, path("gptq")});
    EXPECT_EQ(outcome.code, 5) << verb;
    EXPECT_EQ(
        last_line(outcome, directory_),
        "nibble: [models] config.json: quant_method must be one of compressed-tensors, "
        "gptq, awq, bitsandbytes, fp8, modelopt; found `hqq`; give the float checkpoint");
  }
}

TEST_F(CliFormats, TargetsAreCheckedBeforeAnyWork) {
  const Outcome outcome =
      run({"quantize", path("float"), "--recipe", "w4a16-rtn", "--target", "vllm",
           "--tensor-parallel", "2", "--output", path("never")});
  EXPECT_EQ(outcome.code, 5);
  EXPECT_EQ(
      last_line(outcome, directory_),
      "nibble: [vllm] model.layers.0.self_attn.q_proj: q_proj has 32 columns; that is "
      "0.25 groups of 128; use group 32");
  EXPECT_FALSE(fs::exists(directory_ / "never"));
  const Outcome alone = run({"quantize", path("float"), "--recipe", "w4a16-rtn",
                             "--tensor-parallel", "2", "--output", path("never")});
  EXPECT_EQ(alone.code, 2);
  EXPECT_THAT(last_line(alone, directory_),
              HasSubstr("--tensor-parallel: needs --target"));
}

// A convolutional net's ONNX file is a model for the verbs.
TEST_F(CliFormats, AnOnnxFileIsInspectedAndWrittenBack) {
  const Artifact net = sample::residual_net(5);
  ASSERT_TRUE(take(find_exporter("onnx"))->write(net, directory_ / "net", {}).ok());
  Outcome outcome = run({"inspect", path("net/model.onnx"), "--json"});
  EXPECT_EQ(outcome.code, 0) << outcome.error;
  EXPECT_THAT(outcome.out, HasSubstr("conv1"));
  outcome = convert("net/model.onnx", "onnx", "again");
  EXPECT_EQ(outcome.code, 0) << outcome.error;
  outcome = convert("net/model.onnx", "nibble", "artifact");
  EXPECT_EQ(outcome.code, 0) << outcome.error;
  const Artifact back = take(load_model(directory_ / "artifact", {}));
  EXPECT_EQ(back.image_mean, net.image_mean);
  EXPECT_EQ(back.program.architecture, net.program.architecture);  // what it was
  // A decoder's graph too.
  outcome = convert("float", "onnx", "decoder");
  EXPECT_EQ(outcome.code, 0) << outcome.error;
  outcome = run({"inspect", path("decoder/model.onnx")});
  EXPECT_EQ(outcome.code, 0) << outcome.error;
}

TEST_F(CliFormats, OnnxTakesMatMulNBitsAndItsAccuracyLevel) {
  Outcome outcome = convert("w4", "onnx", "nbits",
                            {"--quant-format", "matmulnbits", "--accuracy-level", "4"});
  EXPECT_EQ(outcome.code, 0) << outcome.error;
  EXPECT_TRUE(fs::exists(directory_ / "nbits" / "genai_config.json"));
  outcome = convert("w4", "onnx", "other", {"--accuracy-level", "4"});
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(outcome.error,
              HasSubstr("[export] --accuracy-level: is for onnx with --quant-format "
                        "matmulnbits; found --to onnx; leave it out"));
  outcome = convert("w4", "gptq", "other", {"--quant-format", "qdq"});
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(
      outcome.error,
      HasSubstr("[export] --quant-format: is for onnx; found --to gptq; leave it out"));
  EXPECT_FALSE(fs::exists(directory_ / "other"));
  outcome = convert("w4", "onnx", "other", {"--quant-format", "qoperator"});
  EXPECT_EQ(outcome.code, 5);
  EXPECT_THAT(outcome.error,
              HasSubstr("QOperator reads static integer codes; found inputs in "
                        "floats"));
}

// Written and read back; what could not be run is said.
TEST_F(CliFormats, OnnxOfFourBitFloatsSaysThatNothingRanIt) {
  put("mx", "e2m1/g32@e8m0");
  const Outcome outcome = convert("mx", "onnx", "fp4", {"--opset", "24"});
  EXPECT_EQ(outcome.code, 0) << outcome.error;
  EXPECT_THAT(outcome.error,
              HasSubstr("weights of FLOAT4E2M1: no kernel of ONNX Runtime's "
                        "CPU provider (1.31) reads them"));
}

}  // namespace
}  // namespace nibble
