// The torch rows of nets over signals against the executor, in value; and what
// calibration says of a net that also reads a state.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/base/splitmix64.h"
#include "kernels/runtime/executor.h"
#include "ptq/module/program_module.h"

namespace nibble {
namespace {

using Integers = std::vector<int64_t>;

Tensor random_tensor(const Integers& shape, uint64_t seed) {
  SplitMix64 random(seed);
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  std::vector<float> values;
  for (int64_t i = 0; i < count; ++i)
    values.push_back(static_cast<float>(2 * random.uniform() - 1));
  return make_tensor(shape, values);
}

// x [n, 3, 10], mirrored, half of it squared and rooted, the rest through a sigmoid, both
// multiplied, turned, and through an LSTM that begins with its first two values.
Artifact signal_net() {
  Artifact artifact;
  Program& program = artifact.program;
  program.architecture = "Signals";
  program.inputs = {{"x", DType::f32, {"batch", "3", "10"}}};
  program.outputs = {{"y", DType::f32, {"batch", "8", "4"}}};
  const auto add = [&](const char* op, const char* name, std::vector<std::string> inputs,
                       std::map<std::string, Attribute> attributes) {
    program.nodes.push_back(
        {op, name, 0, std::move(inputs), {name}, {}, std::move(attributes)});
  };
  const auto range = [](int64_t axis, int64_t start, int64_t end, int64_t step) {
    return std::map<std::string, Attribute>{
        {"axis", axis}, {"start", start}, {"end", end}, {"step", step}};
  };
  add("reflect_pad", "padded", {"x"}, {{"before", int64_t{1}}, {"after", int64_t{3}}});
  add("slice", "even", {"padded"}, range(2, 0, 13, 2));
  add("slice", "odd", {"padded"}, range(2, 1, 14, 2));
  add("mul", "squares", {"even", "even"}, {});
  add("sqrt", "sizes", {"squares"}, {});
  add("sigmoid", "gate", {"odd"}, {});
  add("mul", "gated", {"sizes", "gate"}, {});
  add("transpose", "turned", {"gated"}, {{"perm", Integers{0, 2, 1}}});
  add("slice", "first", {"x"}, range(1, 0, 1, 1));
  add("slice", "h4", {"first"}, range(2, 0, 4, 1));
  add("slice", "c4", {"first"}, range(2, 4, 8, 1));
  add("reshape", "h", {"h4"}, {{"shape", Integers{4}}});
  add("reshape", "c", {"c4"}, {{"shape", Integers{4}}});
  add("lstm", "y", {"turned", "h", "c"}, {{"hidden_size", int64_t{4}}});
  program.nodes.back().parameters = {
      {"weight_ih", "ih"}, {"weight_hh", "hh"}, {"bias", "b"}};
  artifact.tensors = {{"ih", random_tensor({16, 3}, 1)},
                      {"hh", random_tensor({16, 4}, 2)},
                      {"b", random_tensor({16}, 3)}};
  return artifact;
}

TEST(SignalOps, TorchAndTheExecutorAgree) {
  const auto artifact = std::make_shared<const Artifact>(signal_net());
  const Tensor x = random_tensor({5, 3, 10}, 7);
  Result<Executor> net = Executor::create(artifact, {});
  ASSERT_TRUE(net.ok()) << net.status().message();
  const std::vector<float> values = *to_float(x);
  const auto made = net->forward_values(std::vector<NetInput>{{"x", x.shape, values}});
  ASSERT_TRUE(made.ok()) << made.status().message();
  ProgramModule module(*artifact);
  const torch::Tensor y = module->forward(to_torch(x)).detach().contiguous();
  ASSERT_EQ(made->at(0).shape, y.sizes().vec());
  for (size_t i = 0; i < made->at(0).values.size(); ++i) {
    EXPECT_NEAR(made->at(0).values[i], y.const_data_ptr<float>()[i], 2e-6);
  }
  // Gradients reach every parameter.
  module->forward(to_torch(x)).square().sum().backward();
  for (const auto& item : module->named_parameters())
    EXPECT_GT(item.value().grad().abs().max().item<double>(), 1e-3) << item.key();
}

TEST(SignalOps, ANetOfTwoInputsIsNotCalibrated) {
  Artifact artifact = signal_net();
  artifact.program.inputs.push_back({"state", DType::f32, {"batch", "4"}});
  ProgramModule module(artifact);
  try {
    module->forward(to_torch(random_tensor({1, 3, 10}, 7)));
    FAIL() << "a second input needs values";
  } catch (const Error& error) {
    EXPECT_EQ(error.status().code(), StatusCode::unsupported);
    EXPECT_THAT(
        error.status().message(),
        ::testing::HasSubstr("[program_module] input state: a net of one input was "
                             "required to calibrate or train on data; found 2 inputs; "
                             "round weights to nearest (w8a16)"));
  }
}

}  // namespace
}  // namespace nibble
