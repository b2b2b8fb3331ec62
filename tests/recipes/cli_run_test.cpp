// nibble run: a recurrent net over a stream, carried by hand and by the command.
#include <gmock/gmock.h>

#include "command.h"
#include "kernels/artifact/artifact.h"
#include "recipes/eval/net_run.h"
#include "recipes/recipe/recipe.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Json = nlohmann::json;

// next = sigmoid(x) * state + x, y = next * next
Artifact counter() {
  Artifact artifact;
  Program& program = artifact.program;
  program.architecture = "Counter";
  program.inputs = {{"x", DType::f32, {"batch", "2"}},
                    {"state", DType::f32, {"batch", "2"}}};
  program.outputs = {{"y", DType::f32, {"batch", "2"}},
                     {"next", DType::f32, {"batch", "2"}}};
  program.nodes = {{"sigmoid", "gate", 0, {"x"}, {"gate"}, {}, {}},
                   {"mul", "kept", 0, {"gate", "state"}, {"kept"}, {}, {}},
                   {"add", "next", 0, {"kept", "x"}, {"next"}, {}, {}},
                   {"mul", "y", 0, {"next", "next"}, {"y"}, {}, {}}};
  artifact.config_json = "{}\n";
  return artifact;
}

Tensor row(float a, float b) { return make_tensor({1, 2}, std::vector<float>{a, b}); }

class CliRun : public ::testing::Test {
 protected:
  Outcome run(std::vector<std::string> more) {
    std::vector<std::string> arguments = {"run", (files.path() / "net").string(),
                                          "--inputs",
                                          (files.path() / "in.safetensors").string()};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return Command(arguments, files.path()).wait();
  }
  void write(const std::map<std::string, Tensor>& tensors) {
    ASSERT_TRUE(write_safetensors(files.path() / "in.safetensors", tensors, {}).ok());
  }
  void SetUp() override {
    ASSERT_TRUE(write_artifact(counter(), files.path() / "net", false).ok());
  }
  TemporaryDirectory files;
};

TEST_F(CliRun, AStreamIsItsStepsWithTheStateCarried) {
  const std::vector<float> x = {0.5f, -1, 2, 0.25f, -3, 1, 0.1f, 0.2f, 4, -4, 0, 1};
  write({{"x", make_tensor({3, 2, 2}, x)}});
  const std::string out = (files.path() / "out.safetensors").string();
  const Outcome outcome = run({"--carry", "next=state", "--output", out, "--json",
                               "--reference", (files.path() / "net").string()});
  ASSERT_EQ(outcome.code, 0) << outcome.error;
  const Json json = Json::parse(outcome.out);
  EXPECT_EQ(json["outputs"]["y"]["shape"], Json({3, 2, 2}));
  EXPECT_EQ(json["outputs"]["y"]["largest_difference"], 0);
  const auto made = read_safetensors(out);
  ASSERT_TRUE(made.ok()) << made.status().message();
  EXPECT_THAT(made->tensors.at("next").shape, ElementsAre(3, 2, 2));
  const std::vector<float> next = *to_float(made->tensors.at("next"));
  std::vector<double> state(4, 0);
  for (size_t step = 0; step < 3; ++step) {
    for (size_t i = 0; i < 4; ++i) {
      const double v = x[step * 4 + i];
      state[i] = state[i] / (1 + std::exp(-v)) + v;
      EXPECT_NEAR(next[step * 4 + i], state[i], 1e-6);
    }
  }
  EXPECT_EQ(run({"--carry", "next=state", "--output", out}).code, 9);  // it is there
}

TEST_F(CliRun, WithoutACarryItRunsOnce) {
  write({{"x", row(1, 2)}, {"state", row(0, 0)}});
  const Outcome outcome = run({});
  ASSERT_EQ(outcome.code, 0) << outcome.error;
  EXPECT_THAT(outcome.out, HasSubstr("[1, 2]"));
}

TEST_F(CliRun, WhatDoesNotFitIsRefused) {
  write({{"x", row(1, 2)}});
  EXPECT_THAT(run({}).error,
              HasSubstr("[run] state: a tensor of this name was required"));
  EXPECT_THAT(run({"--carry", "next"}).error,
              HasSubstr("[run] --carry next: OUTPUT=INPUT"));
  EXPECT_THAT(
      run({"--carry", "y=z"}).error,
      HasSubstr("[run] y=z: an output and an input of one shape were required; found no "
                "input z"));
  EXPECT_THAT(run({"--carry", "next=state"}).error,
              HasSubstr("[run] x: [steps, ..] with 2 sizes behind the steps"));
  const Tensor step = make_tensor({1, 1, 2}, std::vector<float>{1, 2});
  write({{"x", step}, {"z", row(1, 1)}});
  EXPECT_THAT(run({"--carry", "next=state"}).error,
              HasSubstr("[run] z: an input of the net was required; found none of this name"));
}

// Before any work; the executor says it as well, of an artifact made elsewhere.
TEST(PlanOfAnLstm, ItsMatricesAreQuantizedAndItsInputsAreNot) {
  Program program;
  program.architecture = "Recurrent";
  program.inputs = {{"x", DType::f32, {"batch", "3", "5"}}};
  program.outputs = {{"y", DType::f32, {"batch", "4", "2"}}};
  program.nodes = {{"lstm",
                    "cell",
                    0,
                    {"x"},
                    {"y"},
                    {{"weight_ih", "ih"}, {"weight_hh", "hh"}},
                    {{"hidden_size", int64_t{2}}}}};
  const auto plan = [&](const char* recipe) {
    const Result<Recipe> read = load_recipe(recipe, {});
    EXPECT_TRUE(read.ok()) << read.status().message();
    return make_plan(*read, program);
  };
  const Result<Plan> weights = plan("w8a16");
  ASSERT_TRUE(weights.ok()) << weights.status().message();
  ASSERT_EQ(weights->layers.size(), 2u);
  EXPECT_EQ(weights->layers[0].node, "cell.weight_ih");
  EXPECT_EQ(weights->layers[1].tensor, "hh");
  EXPECT_THAT(plan("w8a8-dynamic").status().message(),
              HasSubstr("an lstm reads floats; found input int8n/r@f32 for cell"));
  EXPECT_THAT(plan("w4a16-gptq").status().message(),
              HasSubstr("found lstm cell.weight_ih"));
}

}  // namespace
}  // namespace nibble
