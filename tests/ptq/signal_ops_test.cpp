// The torch rows of nets over signals against the executor, in value; and calibration of
// a net that also reads a state.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/base/splitmix64.h"
#include "kernels/runtime/executor.h"
#include "ptq/calibrate.h"
#include "ptq/module/exact_module.h"
#include "ptq/module/program_module.h"
#include "recipes/recipe/recipe.h"
#include "tests/kernels/small_detector.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
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

std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.status().message();
  }
  return "";
}

CalibrationData detector_data(int64_t count, uint64_t seed) {
  CalibrationData data;
  data.values["input"] = make_tensor({count, 24}, testing::small_audio(count * 24, seed));
  data.values["state"] = testing::random_values({2, count, 4}, 0.6, seed + 1);
  data.description = "audio";
  return data;
}

Plan detector_plan(const Artifact& artifact, std::vector<std::string> set = {}) {
  set.push_back("calibration.sequences=40");
  const Result<Recipe> recipe = load_recipe("w8a8-static", set);
  EXPECT_TRUE(recipe.ok()) << recipe.status().message();
  const Result<Plan> plan = make_plan(*recipe, artifact.program);
  EXPECT_TRUE(plan.ok()) << plan.status().message();
  return *plan;
}

std::vector<NetOutput> run(const Artifact& artifact, const CalibrationData& data,
                           ExecutorOptions options = {}) {
  Executor net = value_or_throw(
      Executor::create(std::make_shared<const Artifact>(artifact), options));
  std::vector<NetInput> inputs;
  for (const auto& [name, tensor] : data.values) {
    inputs.push_back({name,
                      tensor.shape,
                      {reinterpret_cast<const float*>(tensor.bytes.data()),
                       static_cast<size_t>(tensor.numel())}});
  }
  return value_or_throw(net.forward_values(inputs));
}

// |a - b|^2 / |b|^2
double apart(const std::vector<float>& a, const std::vector<float>& b) {
  double error = 0, size = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    error += (a[i] - b[i]) * static_cast<double>(a[i] - b[i]);
    size += b[i] * static_cast<double>(b[i]);
  }
  return error / size;
}

TEST(SignalOps, SilenceHasAGradient) {
  ProgramModule module(testing::small_detector());
  const auto outputs = module->forward_values(
      {{"input", at::zeros({2, 24})}, {"state", at::zeros({2, 2, 4})}});
  outputs.at("speech").sum().backward();
  for (const auto& item : module->named_parameters()) {
    if (!item.value().grad().defined()) continue;
    EXPECT_TRUE(at::isfinite(item.value().grad()).all().item<bool>()) << item.key();
  }
}

TEST(NetsOfSeveralInputs, TorchAndTheExecutorAgree) {
  const Artifact artifact = testing::small_detector();
  const CalibrationData data = detector_data(5, 3);
  ProgramModule module(artifact);
  const auto outputs =
      module->forward_values({{"input", to_torch(data.values.at("input"))},
                              {"state", to_torch(data.values.at("state"))}});
  ASSERT_EQ(outputs.size(), 2u);
  for (const NetOutput& output : run(artifact, data)) {
    const torch::Tensor y = outputs.at(output.name).detach().contiguous();
    ASSERT_EQ(output.shape, y.sizes().vec());
    for (size_t i = 0; i < output.values.size(); ++i)
      EXPECT_NEAR(output.values[i], y.const_data_ptr<float>()[i], 2e-6);
  }
  EXPECT_THAT(message_of([&] { module->forward(to_torch(data.values.at("input"))); }),
              HasSubstr("[program_module] input state: a net of one input was required; "
                        "found 3 inputs; give them by name"));
}

TEST(NetsOfSeveralInputs, LayersReadCodesAndValuesStayFloats) {
  const auto artifact = std::make_shared<const Artifact>(testing::small_detector());
  const Plan plan = detector_plan(*artifact);
  EXPECT_TRUE(plan.activations.empty());
  std::map<std::string, std::string> inputs;
  for (const LayerPlan& layer : plan.layers)
    inputs[layer.node] =
        layer.scheme.input ? to_string(layer.scheme.input->scheme) : layer.input_reason;
  const std::map<std::string, std::string> expected = {
      {"stft", "int8/t@f32"},
      {"features", "uint8/t@f32"},
      {"cell.weight_ih", "uint8/t@f32"},
      {"cell.weight_hh", "h is made inside the lstm"},
      {"out", "uint8/t@f32"}};
  EXPECT_EQ(inputs, expected);

  const Calibrated ready = calibrate(artifact, plan, detector_data(40, 3), {});
  const Artifact frozen = freeze(ready, Provenance{});
  EXPECT_EQ(frozen.packed.size(), 5u);
  EXPECT_GT(frozen.layers.at("cell.ih").input->scale, 0);
  EXPECT_THAT(frozen.ledger.find("cell.hh")->note,
              HasSubstr("its input stays float: h is made inside the lstm"));
  // Quantized, and near: on other data than it was calibrated on.
  const CalibrationData other = detector_data(60, 77);
  const auto ours = run(frozen, other), floats = run(*artifact, other);
  const auto unrounded = run(frozen, other, {.integer = false});
  for (size_t o = 0; o < 2; ++o) {
    EXPECT_LT(apart(ours[o].values, floats[o].values), 2e-3) << ours[o].name;
    EXPECT_GT(apart(ours[o].values, floats[o].values), 1e-7) << ours[o].name;
    EXPECT_GT(apart(ours[o].values, unrounded[o].values), 1e-8) << ours[o].name;
  }
}

// Each layer that reads codes, on one input: the executor's and the exact mode's bits.
TEST(NetsOfSeveralInputs, IntegerLayersAreTheExactModes) {
  const auto artifact = std::make_shared<const Artifact>(testing::small_detector());
  const Artifact frozen =
      freeze(calibrate(artifact, detector_plan(*artifact), detector_data(40, 3), {}), {});
  Executor net =
      value_or_throw(Executor::create(std::make_shared<const Artifact>(frozen), {}));
  std::map<std::string, torch::Tensor> seen;
  net.set_tap([&](const TapValue& tap) {
    seen[tap.name] =
        torch::from_blob(const_cast<float*>(tap.floats.data()), tap.shape).clone();
  });
  const CalibrationData data = detector_data(9, 12);
  std::vector<NetInput> inputs;
  for (const auto& [name, tensor] : data.values) {
    inputs.push_back({name,
                      tensor.shape,
                      {reinterpret_cast<const float*>(tensor.bytes.data()),
                       static_cast<size_t>(tensor.numel())}});
  }
  value_or_throw(net.forward_values(inputs));
  for (const char* name : {"stft", "features", "out"}) {
    const Node& node = *frozen.program.find(name);
    const torch::Tensor expected = run_exact_layer(frozen, node, seen.at(node.inputs[0]));
    EXPECT_TRUE(torch::equal(expected, seen.at(name))) << name;
  }
  EXPECT_THAT(message_of([&] {
                run_exact_layer(*artifact, *artifact->program.find("stft"),
                                seen.at("signal"));
              }),
              HasSubstr("[exact_module] stft: a static input scheme was required"));
}

TEST(NetsOfSeveralInputs, GptqSolvesTheConvolutions) {
  const auto artifact = std::make_shared<const Artifact>(testing::small_detector());
  Plan plan = detector_plan(*artifact, {"weight=int4/r@f32"});
  for (LayerPlan& layer : plan.layers) {
    if (layer.node == "stft" || layer.node == "features") layer.method = "gptq";
  }
  const CalibrationData data = detector_data(40, 3);
  const Calibrated ready = calibrate(artifact, plan, data, {});
  EXPECT_GE(ready.accounts.at("features.weight").output_error, 0);
  EXPECT_GT(ready.accounts.at("features.weight").tokens, 40);
  const auto error = [&](const Calibrated& calibrated) {
    return apart(run(freeze(calibrated, {}), data)[1].values,
                 run(*artifact, data)[1].values);
  };
  EXPECT_LT(error(ready), 0.1);
}

TEST(NetsOfSeveralInputs, WrongDataIsRefused) {
  const auto artifact = std::make_shared<const Artifact>(testing::small_detector());
  const Plan plan = detector_plan(*artifact);
  const auto with = [&](const std::function<void(CalibrationData&)>& change) {
    CalibrationData data = detector_data(40, 3);
    change(data);
    return message_of([&] { calibrate(artifact, plan, data, {}); });
  };
  EXPECT_THAT(with([](CalibrationData& data) { data.values.clear(); }),
              HasSubstr("activations: static scales needs calibration data; found none"));
  EXPECT_THAT(with([](CalibrationData& data) { data.values.erase("state"); }),
              HasSubstr("[calibrate] data: input state needs values; found none"));
  EXPECT_THAT(with([](CalibrationData& data) {
                data.values["state"] = testing::random_values({2, 39, 4}, 1, 1);
              }),
              HasSubstr("[calibrate] data: input state is [2, 40, 4] here; found "
                        "[2, 39, 4]"));
  EXPECT_THAT(with([](CalibrationData& data) { data = detector_data(39, 3); }),
              HasSubstr("[calibrate] data: 40 samples are planned; found 39"));
}

TEST(NetsOfSeveralInputs, ARuleMayLeaveAnInputFloat) {
  const Artifact artifact = testing::small_detector();
  const Result<Recipe> recipe = parse_recipe(
      "name: mine\nkind: ptq\nweight: int8/r@f32\nmethod: rtn\nactivations:\n  static: "
      "true\nlayers:\n  - pattern: $first\n    input: float\n    reason: reads raw "
      "audio\n  - pattern: \"*\"\n",
      "mine", {});
  ASSERT_TRUE(recipe.ok()) << recipe.status().message();
  const Result<Plan> plan = make_plan(*recipe, artifact.program);
  ASSERT_TRUE(plan.ok()) << plan.status().message();
  EXPECT_FALSE(plan->find("stft.weight")->scheme.input);
  EXPECT_EQ(plan->find("stft.weight")->input_reason, "reads raw audio");
  EXPECT_TRUE(plan->find("features.weight")->scheme.input);
  EXPECT_EQ(parse_recipe(print_recipe(*recipe), "mine", {})->layers[0].input, "float");
  const auto refusal = [&](const std::vector<std::string>& overrides) {
    return make_plan(*load_recipe("w8a8-gptq", overrides), artifact.program).status();
  };
  EXPECT_THAT(
      refusal({"transforms="}).message(),
      HasSubstr(
          "batch_norm_reestimation needs a net whose values are all integers; found "
          "Detector"));
  EXPECT_THAT(
      refusal({"transforms=", "batch_norm_reestimation=0", "bias_correction=64"})
          .message(),
      HasSubstr("bias_correction needs a net whose values are all integers; found "
                "Detector"));
}

}  // namespace
}  // namespace nibble
