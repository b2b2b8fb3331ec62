// Nets of several inputs with a recurrent state, from the command: calibrated, quantized,
// trained, measured, validated and written as ONNX.
#include <gmock/gmock.h>

#include "command.h"
#include "tests/kernels/small_detector.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;
using Tensors = std::map<std::string, Tensor>;

Tensor audio(std::vector<int64_t> shape, uint64_t seed) {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  return make_tensor(shape, testing::small_audio(count, seed));
}

class CliSignals : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!built_with_torch(files.path())) GTEST_SKIP() << "this build has no LibTorch";
    const Status status = write_artifact(testing::small_detector(), at("net"), false);
    ASSERT_TRUE(status.ok()) << status.message();
    write("streams", {{"input", audio({60, 3, 24}, 1)}});
    write("others", {{"input", audio({50, 2, 24}, 2)}});
  }
  std::string at(const std::string& name) const { return (files.path() / name).string(); }
  std::string data(const std::string& name) const { return at(name + ".safetensors"); }
  void write(const std::string& name, const Tensors& tensors) {
    ASSERT_TRUE(write_safetensors(data(name), tensors, {}).ok());
  }
  Outcome run(std::vector<std::string> arguments) const {
    return nibble(arguments, files.path());
  }
  Json quantized(const std::string& output, std::vector<std::string> more = {}) {
    std::vector<std::string> arguments = {
        "quantize",      at("net"),       "--recipe", "w8a8-static",
        "--calibration", data("streams"), "--set",    "data.carry=next=state",
        "--output",      at(output),      "--json"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return parsed(run(arguments));
  }
  Json evaluated(const std::string& model) {
    return parsed(run({"evaluate", at(model), "--dataset", data("others"), "--carry",
                       "next=state", "--reference", at("net"), "--json"}));
  }
  TemporaryDirectory files;
};

double error_of(const Json& json, const char* output) {
  return json["signals"]["outputs"][output]["relative_error"].get<double>();
}

TEST_F(CliSignals, QuantizedOnStreamsMeasuredAndWrittenBack) {
  const Json made = quantized("w8a8", {"--evaluation", data("others")});
  EXPECT_THAT(made["notes"].dump(), HasSubstr("exact mode: 3 layers that read codes"));
  EXPECT_THAT(made["notes"].dump(),
              HasSubstr("calibration.sequences 512 planned, 180 there are"));
  for (const char* output : {"speech", "next"}) {
    EXPECT_GT(error_of(made["after"], output), 1e-5) << output;
    EXPECT_LT(error_of(made["after"], output), 0.05) << output;
  }
  const Json json = evaluated("w8a8");
  EXPECT_EQ(json["signals"], made["after"]["signals"]);
  EXPECT_EQ(json["signals"]["samples"], 100);
  EXPECT_EQ(json["signals"]["units"], 4);
  EXPECT_EQ(evaluated("net")["signals"]["outputs"]["next"]["largest_difference"], 0);
  const Outcome table = run({"evaluate", at("w8a8"), "--dataset", data("others"),
                             "--carry", "next=state", "--reference", at("net")});
  EXPECT_THAT(table.out, HasSubstr("speech error"));

  const Json inspected = parsed(run({"inspect", at("w8a8"), "--json"}));
  EXPECT_EQ(inspected["inputs"][1]["shape"], Json({"2", "batch", "4"}));
  std::map<std::string, std::string> notes, inputs;
  for (const Json& entry : inspected["ledger"])
    notes[entry["tensor"]] = entry["note"].get<std::string>();
  for (const Json& entry : inspected["parameters"]) {
    if (entry.contains("input"))
      inputs[entry["tensor"]] = entry["input"].get<std::string>();
  }
  EXPECT_EQ(inputs.size(), 4u);
  EXPECT_THAT(notes["cell.hh"], HasSubstr("its input stays float"));

  EXPECT_EQ(
      parsed(run({"validate", at("w8a8"), "--reference", at("net"), "--json"}))["passed"],
      true);
  ASSERT_EQ(run({"export", at("w8a8"), "--to", "onnx", "--output", at("onnx")}).code, 0);
  // What was written is read back, code by code and scale by scale.
  EXPECT_EQ(evaluated("onnx/model.onnx")["signals"], json["signals"]);
}

TEST_F(CliSignals, ThreadsChangeNothing) {
  quantized("one", {"--threads", "1"});
  quantized("two", {"--threads", "2"});
  const auto weights = [&](const std::string& name) {
    return *read_text_file(files.path() / name / "model.safetensors");
  };
  EXPECT_EQ(weights("one"), weights("two"));
  EXPECT_EQ(evaluated("one")["signals"], evaluated("two")["signals"]);
}

TEST_F(CliSignals, TrainingLowersTheArtifactsError) {
  std::vector<std::string> arguments = {"train",        at("net"),
                                        "--recipe",     "w8a8-qat",
                                        "--data",       data("streams"),
                                        "--set",        "data.carry=next=state",
                                        "--set",        "weight=int3/r@f32",
                                        "--set",        "data.window=4",
                                        "--set",        "train.steps=80",
                                        "--set",        "train.batch=8",
                                        "--set",        "train.learning_rate=0.003",
                                        "--set",        "train.scale_learning_rate=0.001",
                                        "--threads",    "1",
                                        "--evaluation", data("others"),
                                        "--json",       "--output",
                                        at("qat")};
  const Json trained = parsed(run(arguments));
  EXPECT_THAT(trained["notes"].dump(),
              HasSubstr("trained 80 steps of 8 windows of at most 4 steps on"));
  EXPECT_THAT(trained["notes"].dump(), HasSubstr("exact mode: 3 layers that read codes"));
  quantized("ptq", {"--set", "weight=int3/r@f32", "--evaluation", data("others")});
  const Json before = evaluated("ptq"), after = evaluated("qat");
  EXPECT_EQ(after["signals"], trained["after"]["signals"]);  // the artifact's own
  EXPECT_LT(error_of(after, "speech"), 0.7 * error_of(before, "speech"));
  EXPECT_LT(error_of(after, "next"), 0.7 * error_of(before, "next"));
  // The same bytes again.
  arguments.back() = at("again");
  parsed(run(arguments));
  EXPECT_EQ(*read_text_file(files.path() / "qat" / "model.safetensors"),
            *read_text_file(files.path() / "again" / "model.safetensors"));
}

TEST_F(CliSignals, TargetsOfTheFileAreLearned) {
  // Half of the probability, which the net does not give yet.
  const Tensor input = audio({80, 24}, 5),
               state = testing::random_values({2, 80, 4}, 0.5, 6);
  write("samples", {{"input", input}, {"state", state}});
  ASSERT_EQ(
      run({"run", at("net"), "--inputs", data("samples"), "--output", data("made")}).code,
      0);
  const auto made = read_safetensors(data("made"));
  ASSERT_TRUE(made.ok()) << made.status().message();
  std::vector<float> wanted = *to_float(made->tensors.at("speech"));
  for (float& value : wanted) value *= 0.5f;
  write("samples", {{"input", input},
                    {"state", state},
                    {"target.speech", make_tensor({80, 1}, wanted)}});
  const Json trained = parsed(run({"train",     at("net"),
                                   "--recipe",  "w8a8-qat",
                                   "--data",    data("samples"),
                                   "--set",     "train.steps=60",
                                   "--set",     "train.batch=16",
                                   "--set",     "train.learning_rate=0.01",
                                   "--set",     "distill.weight=0",
                                   "--set",     "train.evaluate_every=20",
                                   "--threads", "1",
                                   "--output",  at("qat"),
                                   "--json"}));
  const auto error = [&](const char* which) {
    return trained[which]["targets"]["outputs"]["speech"]["relative_error"].get<double>();
  };
  EXPECT_GT(error("before"), 0.9);
  EXPECT_LT(error("after"), 0.5 * error("before"));
}

TEST_F(CliSignals, WhatIsMissingOrWrongIsSaid) {
  const auto fails = [&](std::vector<std::string> arguments) {
    const Outcome outcome = run(std::move(arguments));
    EXPECT_NE(outcome.code, 0);
    return last_line(outcome, files.path());
  };
  const std::vector<std::string> quantize = {"quantize",    at("net"),  "--recipe",
                                             "w8a8-static", "--output", at("w8")};
  const auto with = [&](std::vector<std::string> more) {
    std::vector<std::string> all = quantize;
    all.insert(all.end(), more.begin(), more.end());
    return fails(all);
  };
  EXPECT_THAT(with({}), HasSubstr("calibration data is required; found none; give "
                                  "--calibration FILE.safetensors"));
  EXPECT_THAT(with({"--calibration", data("streams")}),
              HasSubstr("[data] input: [batch, 24] was required; found [60, 3, 24]"));
  write("bare", {{"input", audio({5, 24}, 1)}});
  EXPECT_THAT(with({"--calibration", data("bare")}),
              HasSubstr("give it, or carry it, next=state (data.carry, --carry)"));
  EXPECT_THAT(with({"--calibration", data("streams"), "--set", "data.carry=next"}),
              HasSubstr("data.carry next: OUTPUT=INPUT was required"));
  EXPECT_THAT(with({"--calibration", data("streams"), "--set", "data.carry=next=state",
                    "--set", "gate.min_accuracy=90"}),
              HasSubstr("gate: text or images to measure it on is required"));
  EXPECT_THAT(fails({"evaluate", at("net"), "--dataset", data("others"), "--carry",
                     "next=state"}),
              HasSubstr("a reference or target.<output> tensors are required"));
  EXPECT_THAT(
      fails({"train", at("net"), "--recipe", "w8a8-qat", "--data", data("streams"),
             "--set", "data.carry=next=state", "--set", "distill.hidden=1", "--output",
             at("qat")}),
      HasSubstr("[train] distill.hidden: 0 is required to train a net over values"));
  EXPECT_FALSE(std::filesystem::exists(at("w8")));
  EXPECT_FALSE(std::filesystem::exists(at("qat")));
}

}  // namespace
}  // namespace nibble
