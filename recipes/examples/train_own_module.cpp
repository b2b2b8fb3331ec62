// Trains a person's own torch::nn::Sequential with 4-bit weights in the loop, freezes it,
// and runs the artifact. The data: which way do the stripes of a noisy 16 x 16 image run?
//
//   train_own_module OUTPUT
#include <torch/nn/modules.h>

#include "kernels/runtime/executor.h"
#include "ptq/module/sequential.h"
#include "qat/prepare.h"
#include "qat/trainer.h"
#include "recipes/recipe/recipe.h"

using namespace nibble;
namespace nn = torch::nn;

TrainingBatch stripes(int64_t seed, int64_t count) {
  torch::manual_seed(seed);
  const torch::Tensor label = torch::randint(2, {count}, torch::kLong);
  const torch::Tensor phase = torch::rand({count, 1, 1, 1}) * 6.28;
  const torch::Tensor wave = torch::sin(torch::arange(16) * 1.2 + phase);
  const torch::Tensor clean =
      torch::where(label.view({-1, 1, 1, 1}) == 1, wave.mT(), wave);
  return {clean + torch::randn({count, 1, 16, 16}), label};
}

int main(int count, char** arguments) try {
  if (count != 2) return std::fprintf(stderr, "usage: train_own_module OUTPUT\n"), 2;
  torch::manual_seed(1);
  nn::Sequential net(nn::Conv2d(nn::Conv2dOptions(1, 8, 3).padding(1)), nn::ReLU(),
                     nn::Conv2d(nn::Conv2dOptions(8, 16, 3).stride(2)), nn::ReLU(),
                     nn::AdaptiveAvgPool2d(1), nn::Flatten(), nn::Linear(16, 2));

  // Its graph and weights; a plan for them: 8-bit values, 4-bit weights a channel.
  const auto model = std::make_shared<const Artifact>(artifact_of(net, {1, 16, 16}));
  const Recipe recipe = value_or_throw(load_recipe("w8a8-static", {"weight=int4/r@f32"}));
  const Plan plan = value_or_throw(make_plan(recipe, model->program));
  CalibrationData calibration;
  calibration.images = from_torch(stripes(2, plan.calibration_sequences).input);
  const Calibrated ready = calibrate(model, plan, calibration, {});

  ProgramModule module = prepare(ready, {});
  train(module, {100, [](int64_t, int64_t batch) { return stripes(100 + batch, 64); }},
        {.learning_rate = 0.01, .scale_learning_rate = 1e-4}, "", false, {});
  const Artifact artifact = freeze(finish(module, ready), {});
  throw_if_error(write_artifact(artifact, arguments[1], true));

  Executor runtime =
      value_or_throw(Executor::create(std::make_shared<const Artifact>(artifact), {}));
  const TrainingBatch test = stripes(9, 1000);
  torch::Tensor logits = torch::empty({1000, 2});
  throw_if_error(runtime.forward_images(
      {test.input.data_ptr<float>(), static_cast<size_t>(test.input.numel())},
      std::vector<int64_t>{1000, 1, 16, 16}, {logits.data_ptr<float>(), 1000, 2}));
  std::printf("the artifact, in integers, is right on %.1f %% of 1,000\n",
              (logits.argmax(1) == test.target).sum().item<double>() / 10);
  return 0;
} catch (const Error& problem) {
  return std::fprintf(stderr, "%s\n", problem.what()), 1;
}
