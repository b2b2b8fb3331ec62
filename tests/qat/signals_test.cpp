// Training of nets of several inputs: what it simulates, its loss through a state, and
// exact resume.
#include <ATen/Parallel.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/base/cancel.h"
#include "kernels/runtime/executor.h"
#include "qat/prepare.h"
#include "qat/trainer.h"
#include "recipes/recipe/recipe.h"
#include "tests/kernels/small_detector.h"
#include "tests/kernels/temporary_directory.h"
#include "tests/qat/training_cases.h"

namespace nibble {
namespace {

using testing::bytes_of;
using ::testing::HasSubstr;
using testing::status_of;

torch::Tensor audio(int64_t rows, uint64_t seed) {
  return to_torch(make_tensor({rows, 24}, testing::small_audio(rows * 24, seed)));
}

torch::Tensor state(int64_t rows, uint64_t seed) {
  return to_torch(testing::random_values({2, rows, 4}, 0.6, seed));
}

Calibrated calibrated(const std::vector<std::string>& set) {
  std::vector<std::string> all = set;
  all.push_back("calibration.sequences=40");
  const Recipe recipe = value_or_throw(load_recipe("w8a8-static", all));
  const auto model = std::make_shared<const Artifact>(testing::small_detector());
  CalibrationData data;
  data.values["input"] = make_tensor({40, 24}, testing::small_audio(40 * 24, 1));
  data.values["state"] = testing::random_values({2, 40, 4}, 0.6, 2);
  return calibrate(model, value_or_throw(make_plan(recipe, model->program)), data, {});
}

// Batches of windows of `steps` steps whose targets are the float net's own course.
TrainingData course(int64_t steps) {
  TrainingData data;
  data.batches_per_epoch = 3;
  data.batch = [steps](int64_t epoch, int64_t index) {
    ProgramModule teacher(testing::small_detector());
    teacher->eval();
    const torch::NoGradGuard no_gradients;
    const auto seed = static_cast<uint64_t>(100 * epoch + 10 * index);
    SignalBatch batch;
    batch.carries = {{"next", "state"}};
    batch.squares = {{"speech", 0.25}, {"next", 0.1}};
    batch.samples = 6 * steps;
    SignalBatch::Values values = {{"state", state(6, seed)}};
    for (int64_t step = 0; step < steps; ++step) {
      values["input"] = audio(6, seed + static_cast<uint64_t>(step) + 1);
      batch.inputs.push_back({{"input", values["input"]}});
      if (step == 0) batch.inputs[0]["state"] = values["state"];
      batch.targets.push_back(teacher->forward_values(values));
      values["state"] = batch.targets.back().at("next");
    }
    return TrainingBatch{.input = {}, .target = {}, .signals = std::move(batch)};
  };
  return data;
}

TEST(SignalLoss, IsTheSumWrittenDownAndGoesBackThroughTheState) {
  const TrainingBatch batch = course(2).batch(0, 0);
  ProgramModule module(testing::small_detector());
  module->set_parameter("cell.bias", module->parameter("cell.bias") + 0.1);
  const torch::Tensor loss = signal_loss(module, *batch.signals);
  const auto& given = batch.signals->inputs;
  const auto& wanted = batch.signals->targets;
  const auto first = module->forward_values(given[0]);
  const auto second = module->forward_values(
      {{"input", given[1].at("input")}, {"state", first.at("next")}});
  double expected = 0;
  for (const auto& [name, square] : batch.signals->squares) {
    expected +=
        (first.at(name) - wanted[0].at(name)).square().mean().item<double>() / square / 4;
    expected += (second.at(name) - wanted[1].at(name)).square().mean().item<double>() /
                square / 4;
  }
  EXPECT_NEAR(loss.item<double>(), expected, 1e-6);
  EXPECT_GT(expected, 1e-5);
  // The second step's error reaches the first's state: a numerical derivative agrees.
  loss.backward();
  const double slope = module->parameter("cell.bias").grad()[2].item<double>();
  const auto at = [&](double by) {
    ProgramModule moved(testing::small_detector());
    torch::Tensor bias = moved->parameter("cell.bias").detach() + 0.1;
    bias[2] += by;
    moved->set_parameter("cell.bias", bias);
    return signal_loss(moved, *batch.signals).item<double>();
  };
  EXPECT_NEAR(slope, (at(0.01) - at(-0.01)) / 0.02, 0.02 * std::abs(slope) + 1e-5);

  SignalBatch wrong = *batch.signals;
  wrong.carries = {{"after", "state"}};
  EXPECT_THAT(status_of([&] { signal_loss(module, wrong); }).message(),
              HasSubstr("after=state: an output to carry was required"));
  wrong.targets.pop_back();
  EXPECT_THAT(status_of([&] { signal_loss(module, wrong); }).message(),
              HasSubstr("a step with targets or more were required"));
}

// What training simulates is what runs, up to the order of float sums: a code may fall on
// the other side of a rounding.
TEST(SignalTraining, SimulatesWhatRuns) {
  const Calibrated ready = calibrated({});
  ProgramModule module = prepare(ready, {});
  module->eval();
  EXPECT_EQ(module->input_quantizers().count("cell"), 1u);
  const torch::NoGradGuard no_gradients;
  const torch::Tensor x = audio(50, 9), s = state(50, 8);
  const auto simulated = module->forward_values({{"input", x}, {"state", s}});
  const Artifact frozen = freeze(finish(module, ready), Provenance{});
  Executor net =
      value_or_throw(Executor::create(std::make_shared<const Artifact>(frozen), {}));
  const auto values = [](const torch::Tensor& t) {
    return std::span<const float>(t.const_data_ptr<float>(),
                                  static_cast<size_t>(t.numel()));
  };
  const auto outputs = value_or_throw(net.forward_values(std::vector<NetInput>{
      {"input", {50, 24}, values(x)}, {"state", {2, 50, 4}, values(s)}}));
  for (const NetOutput& output : outputs) {
    const torch::Tensor y = simulated.at(output.name).contiguous();
    double error = 0, size = 0;
    for (size_t i = 0; i < output.values.size(); ++i) {
      const double r = y.const_data_ptr<float>()[i];
      error += (output.values[i] - r) * (output.values[i] - r);
      size += r * r;
    }
    EXPECT_LT(error, 1e-6 * size) << output.name;
  }
}

TEST(SignalTraining, LowersTheLossAndResumesExactly) {
  at::set_num_threads(1);  // tensors this small wait for threads longer than they compute
  const Calibrated ready = calibrated({"weight=int3/r@f32"});
  TrainOptions options;
  options.steps = 40;
  options.learning_rate = 3e-3;
  options.scale_learning_rate = 1e-3;
  options.checkpoint_every = 10;
  options.log_every = 1;
  const TrainingData data = course(2);
  const auto loss_of = [&](ProgramModule module) {
    const torch::NoGradGuard no_gradients;
    module->eval();
    return signal_loss(module, *data.batch(0, 0).signals).item<double>();
  };
  ProgramModule whole = prepare(ready, {});
  const double before = loss_of(whole);
  train(whole, data, options, {}, false, {});
  EXPECT_LT(loss_of(whole), 0.8 * before);

  TemporaryDirectory files;
  ProgramModule part = prepare(ready, {});
  const auto stop = [](const std::string&, const std::string&, int64_t done, int64_t) {
    if (done == 17) request_cancel();
  };
  EXPECT_EQ(
      status_of([&] { train(part, data, options, files.path(), false, stop); }).code(),
      StatusCode::cancelled);
  clear_cancel();
  ProgramModule rest = prepare(ready, {});
  train(rest, data, options, files.path(), true, {});
  EXPECT_EQ(bytes_of(rest), bytes_of(whole));
  // The trained scale of the cell's input is the artifact's.
  const Calibrated done = finish(whole, ready);
  EXPECT_NE(done.layer_inputs.at("cell.weight_ih").scale,
            ready.layer_inputs.at("cell.weight_ih").scale);
  EXPECT_EQ(freeze(done, {}).layers.at("cell.ih").input->scale,
            done.layer_inputs.at("cell.weight_ih").scale);
}

}  // namespace
}  // namespace nibble
