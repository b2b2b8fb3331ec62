// Distillation, oscillation damping and freezing, moving averages, the artifact's own
// figure: what the trainer may be asked for besides its loss.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "kernels/base/cancel.h"
#include "ptq/calibrate.h"
#include "qat/blockwise.h"
#include "qat/distillation.h"
#include "qat/oscillation.h"
#include "qat/prepare.h"
#include "qat/trainer.h"
#include "tests/ptq/small_models.h"
#include "tests/qat/training_cases.h"

namespace nibble {
namespace {

using testing::bytes_of;
using ::testing::HasSubstr;
using testing::random;
using testing::small_cnn;
using testing::small_llama;
using testing::status_of;
using testing::token_data;

// small_llama at `scheme`, calibrated by rounding to nearest.
Calibrated calibrated_llama(const char* scheme) {
  auto model = std::make_shared<const Artifact>(small_llama(3));
  Plan plan;
  for (const Node& n : model->program.nodes) {
    if (n.op != "linear" && n.op != "embedding") continue;
    LayerPlan layer;
    layer.node = n.name;
    layer.tensor = n.parameter("weight");
    const bool inside = n.block >= 0;
    layer.method = inside ? "rtn" : "float";
    if (inside) layer.scheme.weight = *parse_scheme(scheme);
    if (!inside) layer.reason = "test";
    if (plan.find(layer.tensor) == nullptr) plan.layers.push_back(layer);
  }
  return calibrate(model, plan, {}, nullptr);
}

// --- distillation

TEST(Distillation, IsTheKlOfTheDefinitionOverRowsWithATarget) {
  const torch::Tensor s = random({2, 3, 5}, 1), t = random({2, 3, 5}, 2) * 2;
  const torch::Tensor target =
      at::tensor({1, -100, 4, -100, 0, 2}, at::kLong).view({2, 3});
  for (const double temperature : {1.0, 2.5}) {
    double sum = 0;
    for (const auto& [b, i] : {std::pair{0, 0}, {0, 2}, {1, 1}, {1, 2}}) {
      auto row = [&](const torch::Tensor& x) {
        return at::softmax((x[b][i] / temperature).to(at::kDouble), -1);
      };
      const torch::Tensor p = row(t), q = row(s);
      sum += (p * (p.log() - q.log())).sum().item<double>();
    }
    EXPECT_NEAR(distillation_loss(s, t, target, temperature).item<double>(),
                temperature * temperature * sum / 4, 1e-6);
  }
  EXPECT_NEAR(distillation_loss(s, s, target, 1).item<double>(), 0, 1e-7);
  const Status status = status_of([&] {
    distillation_loss(s, random({2, 3, 6}, 1), target, 1);
  });
  EXPECT_EQ(status.code(), StatusCode::invalid_argument);
  EXPECT_THAT(status.message(),
              HasSubstr("5 classes, as the student has, were required"));
}

TEST(Distillation, AStudentComesNearItsTeacherAndTheTeacherStays) {
  const Calibrated before = calibrated_llama("int2/g8@f32");
  const Artifact& model = *before.model;
  ProgramModule student = prepare(before, QatOptions{}), teacher(model);
  const torch::Tensor ids = token_data(16).batch(99, 0).input;
  auto distance = [&] {
    torch::NoGradGuard no_grad;
    return distillation_loss(student->forward(ids), ProgramModule(model)->forward(ids),
                             at::zeros_like(ids), 1)
        .item<double>();
  };
  const double start = distance();
  TrainOptions options;
  options.learning_rate = 0.01;
  options.scale_learning_rate = 0.003;
  options.steps = 120;
  options.distill_weight = 1;
  options.distill_hidden = 0.1;
  train(student, token_data(16), options, {}, false, nullptr,
        {.teacher = teacher, .evaluate = {}, .log = {}});
  EXPECT_LT(distance(), 0.3 * start);
  for (const auto& [name, tensor] : teacher->tensors())
    EXPECT_EQ(tensor.bytes.text(),
              from_torch(to_torch(model.tensors.at(name))).bytes.text());
}

TEST(Distillation, HiddenStatesNeedTheSameBlocks) {
  TrainOptions options;
  options.steps = 1;
  options.distill_hidden = 1;
  const Status status = status_of([&] {
    train(ProgramModule(small_llama(1)), token_data(), options, {}, false, nullptr,
          {.teacher = ProgramModule(small_cnn(1)), .evaluate = {}, .log = {}});
  });
  EXPECT_EQ(status.code(), StatusCode::invalid_argument);
  EXPECT_THAT(status.message(), HasSubstr("hidden states: a teacher with the value"));
  EXPECT_THAT(status_of([&] {
                train(ProgramModule(small_llama(1)), token_data(), options, {}, false,
                      nullptr);
              }).message(),
              HasSubstr("distill: a teacher was required; found none"));
}

// --- oscillations

// One weight of one row that a gradient of alternating sign pushes over a border.
TEST(Oscillation, WeightsThatJumpAreFrozenWhereTheyAreMostOfTheTime) {
  Calibrated before = calibrated_llama("int4/g8@f32");
  ProgramModule module =
      prepare(before, {.learn_weight_scale = false, .learn_zero_point = false});
  TrainOptions options;
  options.freeze_oscillations = 0.1;
  Oscillations watch(module, options);
  const std::string name = "model.layers.0.mlp.up_proj.weight";
  torch::Tensor weight = module->parameter(name);
  FakeQuantize quantizer = module->weight_quantizers().at(name);
  const float s = quantizer->levels(weight).scales[0].values[0];
  EXPECT_EQ(watch.frozen(), 0);
  EXPECT_GT(watch.watched(), 1000);
  torch::NoGradGuard no_grad;
  auto put = [&](float codes) { weight[0][0] = codes * s; };
  for (int i = 0; i < 300; ++i) {  // the mean forgets where the weight began
    put(3.4f);
    watch.after_step();
  }
  EXPECT_EQ(watch.frozen(), 0);
  // Two steps of three at 3, one at 4.
  int64_t steps = 0;
  while (watch.frozen() == 0 && steps < 100) {
    put(steps % 3 == 2 ? 3.6f : 3.4f);
    watch.after_step();
    ++steps;
  }
  EXPECT_EQ(watch.frozen(), 1);
  EXPECT_GT(steps, 5);
  for (int i = 0; i < 5; ++i) {
    put(3.7f);
    weight[0][1] = weight[0][1] + 0.001f;
    const float other = weight[0][1].item<float>();
    watch.after_step();
    EXPECT_EQ(weight[0][0].item<float>(), 3 * s);  // held
    EXPECT_EQ(weight[0][1].item<float>(), other);  // free
  }
  // A weight that walks one way does not oscillate.
  Oscillations again(module, options);
  for (int i = 0; i < 60; ++i) {
    put(-7.0f + 0.2f * static_cast<float>(i));
    again.after_step();
  }
  EXPECT_EQ(again.frozen(), 0);
}

TEST(Oscillation, DampingPullsWeightsToTheirCodes) {
  auto distance_after = [](double dampen) {
    ProgramModule module =
        prepare(calibrated_llama("int4/g8@f32"), {.learn_weight_scale = false});
    TrainOptions options;
    options.learning_rate = 0.003;
    options.steps = 60;
    options.clip_norm = 0;
    options.dampen = dampen;
    train(module, token_data(), options, {}, false, nullptr);
    torch::NoGradGuard no_grad;
    double sum = 0;
    for (const auto& [name, quantizer] : module->weight_quantizers()) {
      const torch::Tensor w = module->parameter(name);
      sum += (w - FakeQuantize(quantizer)->forward(w)).square().sum().item<double>();
    }
    return sum;
  };
  EXPECT_LT(distance_after(10), 0.5 * distance_after(0));
}

// --- where training starts, and what is trained

TEST(Prepare, StartsAsTheCalibratedArtifact) {
  Calibrated before = calibrated_llama("uint2/g8@f32+z/g8@uint2");
  // A method that chose other codes than the nearest, as GPTQ does.
  CodedMatrix& codes = before.weights.at("model.layers.0.mlp.up_proj.weight");
  for (size_t i = 0; i < codes.codes.size(); i += 3) codes.codes[i] ^= 1;
  const Artifact shipped = freeze(before, Provenance{});
  ProgramModule module = prepare(before, QatOptions{});
  const Artifact again = freeze(finish(module, before), Provenance{});
  ASSERT_EQ(shipped.packed.size(), again.packed.size());
  ProgramModule a(shipped), b(again);
  torch::NoGradGuard no_grad;
  for (const auto& [name, packed] : shipped.packed)
    EXPECT_TRUE(at::equal(a->parameter(name), b->parameter(name))) << name;
  const torch::Tensor ids = token_data().batch(0, 0).input;
  module->eval();
  EXPECT_TRUE(at::equal(a->forward(ids), module->forward(ids)));
}

TEST(Prepare, TrainsWhatIsAskedFor) {
  const Calibrated before = calibrated_llama("uint4/g8@f32+z/g8@uint4");
  auto moved = [&](Trained trained) {
    ProgramModule module = prepare(before, {.trained = trained});
    TrainOptions options;
    options.steps = 8;
    options.learning_rate = 0.02;
    options.scale_learning_rate = 0.01;
    train(module, token_data(), options, {}, false, nullptr);
    const Calibrated after = finish(module, before);
    const std::string name = "model.layers.1.mlp.down_proj.weight";
    const CodedMatrix &was = before.weights.at(name), &is = after.weights.at(name);
    std::string result;
    if (was.codes != is.codes) result += "codes ";
    if (!(was.scales == is.scales)) result += "scales ";
    if (!(was.offsets == is.offsets)) result += "zeros ";
    if (before.model->tensors.at("model.norm.weight").bytes.text() !=
        after.model->tensors.at("model.norm.weight").bytes.text())
      result += "norm";
    return result;
  };
  EXPECT_EQ(moved(Trained::all), "codes scales zeros norm");
  EXPECT_EQ(moved(Trained::layers), "codes scales zeros ");
  // The weights stay, but a weight near a border may take another code under a new scale.
  EXPECT_THAT(moved(Trained::scales), HasSubstr("scales zeros "));
  EXPECT_THAT(moved(Trained::scales), ::testing::Not(HasSubstr("norm")));
}

// --- the trainer's other ways

TrainOptions everything() {
  TrainOptions options;
  options.learning_rate = 0.01;
  options.scale_learning_rate = 0.002;
  options.steps = 20;
  options.warmup_steps = 3;
  options.log_every = 3;
  options.accumulate = 2;
  options.average = 0.9;
  options.evaluate_every = 4;
  options.distill_weight = 0.7;
  options.distill_hidden = 0.1;
  options.dampen = 0.01;
  options.freeze_oscillations = 0.05;
  return options;
}

TEST(Trainer, AllOfItResumesByteForByte) {
  const std::filesystem::path folder =
      std::filesystem::path(::testing::TempDir()) / "nibble_methods_resume";
  std::filesystem::remove_all(folder);
  const Calibrated before = calibrated_llama("uint4/g8@f32+z/g8@uint4");
  const TrainOptions options = everything();
  auto run = [&](ProgramModule module, bool resume, int64_t stop) {
    TrainHooks hooks;
    hooks.teacher = ProgramModule(*before.model);
    // Best at step 8, so that what stays is not what is there at the end.
    int64_t looks = resume ? stop / 4 : 0;
    hooks.evaluate = [looks]() mutable {
      ++looks;
      return std::abs(static_cast<double>(looks) - 2.0);
    };
    return train(
        module, token_data(), options, folder, resume,
        [stop, resume](const std::string&, const std::string& what, int64_t done,
                       int64_t) {
          EXPECT_THAT(what, HasSubstr("tokens/s"));
          if (!resume && done == stop) request_cancel();
        },
        hooks);
  };
  ProgramModule whole = prepare(before, QatOptions{});
  const TrainResult one = run(whole, false, -1);
  EXPECT_EQ(one.best_step, 8);
  EXPECT_EQ(one.evaluations.size(), 5u);
  std::filesystem::remove_all(folder);

  ProgramModule first = prepare(before, QatOptions{});
  EXPECT_EQ(status_of([&] { run(first, false, 12); }).code(), StatusCode::cancelled);
  clear_cancel();
  ProgramModule second = prepare(before, QatOptions{});
  const TrainResult two = run(second, true, 12);
  EXPECT_EQ(two.best_step, 8);
  ASSERT_EQ(two.history.size(), one.history.size());
  for (size_t i = 0; i < one.history.size(); ++i)
    EXPECT_EQ(one.history[i].loss, two.history[i].loss);
  EXPECT_EQ(bytes_of(second), bytes_of(whole));
  EXPECT_NE(bytes_of(first), bytes_of(whole));
  std::filesystem::remove_all(folder);
}

TEST(Trainer, TwoBatchesOfFourAreOneOfEight) {
  // Without padding the mean of the halves' means is the whole's mean.
  const Artifact model = small_llama(5);
  TrainOptions options;
  options.optimizer = "sgd";
  options.learning_rate = 0.05;
  options.steps = 3;
  options.clip_norm = 0;
  ProgramModule halves(model), whole(model);
  TrainingData eight = token_data();
  eight.batch = [small = token_data()](int64_t, int64_t batch) {
    const TrainingBatch a = small.batch(0, 2 * batch), b = small.batch(0, 2 * batch + 1);
    return TrainingBatch{at::cat({a.input, b.input}), at::cat({a.target, b.target})};
  };
  train(whole, eight, options, {}, false, nullptr);
  options.accumulate = 2;
  train(halves, token_data(), options, {}, false, nullptr);
  for (const auto& item : whole->named_parameters()) {
    EXPECT_TRUE(at::allclose(item.value(), halves->parameter(item.key()), 1e-4, 1e-6))
        << item.key();
    EXPECT_FALSE(
        at::allclose(item.value(), to_torch(model.tensors.at(item.key())), 1e-4, 1e-6))
        << item.key();
  }
}

TEST(Trainer, ImpatienceEndsARunAndTheBestStays) {
  TrainOptions options;
  options.steps = 100;
  options.learning_rate = 0.01;
  options.evaluate_every = 5;
  options.patience = 3;
  ProgramModule module(small_llama(5)), until(small_llama(5));
  int looks = 0;
  const TrainResult result =
      train(module, token_data(), options, {}, false, nullptr,
            {.teacher = ProgramModule(nullptr),
             .evaluate = [&] { return ++looks <= 2 ? 1.0 / looks : 2.0; },
             .log = {}});
  EXPECT_EQ(result.steps, 25);
  EXPECT_EQ(result.best_step, 10);
  // The same schedule, stopped by hand at the best step.
  try {
    train(until, token_data(), options, std::filesystem::path(), false,
          [](const std::string&, const std::string&, int64_t done, int64_t) {
            if (done == 10) request_cancel();
          });
  } catch (const Error& error) {
    EXPECT_EQ(error.status().code(), StatusCode::cancelled);
  }
  clear_cancel();
  EXPECT_EQ(bytes_of(module), bytes_of(until));
}

TEST(Trainer, AveragesLieBetweenStartAndEnd) {
  TrainOptions options;
  options.optimizer = "sgd";
  options.learning_rate = 0.01;
  options.steps = 1;
  options.average = 0.5;
  const Artifact model = small_llama(5);
  ProgramModule averaged(model), plain(model);
  train(averaged, token_data(), options, {}, false, nullptr);
  options.average = 0;
  train(plain, token_data(), options, {}, false, nullptr);
  // After one step a = min(0.5, 2 / 11).
  for (const auto& item : averaged->named_parameters()) {
    const torch::Tensor start = to_torch(model.tensors.at(item.key()));
    const torch::Tensor expected =
        start * (2.0 / 11) + plain->parameter(item.key()) * (9.0 / 11);
    EXPECT_TRUE(at::allclose(item.value(), expected, 1e-5, 1e-7)) << item.key();
  }
}

TEST(Trainer, Bf16ProductsAreNearFloatOnes) {
  const Artifact model = small_llama(5);
  ProgramModule exact(model), rough(model);
  rough->set_bf16_products(true);
  const torch::Tensor ids = token_data().batch(0, 0).input;
  const torch::Tensor a = exact->forward(ids), b = rough->forward(ids);
  const double error = (a - b).norm().item<double>() / a.norm().item<double>();
  EXPECT_LT(error, 0.02);
  EXPECT_GT(error, 1e-5);
  EXPECT_EQ(b.scalar_type(), at::kFloat);
  b.sum().backward();
  for (const auto& item : rough->named_parameters())
    EXPECT_TRUE(item.value().grad().defined()) << item.key();
}

// --- blocks alone

std::vector<torch::Tensor> block_inputs() {
  std::vector<torch::Tensor> inputs;
  for (int i = 0; i < 6; ++i) inputs.push_back(token_data(8).batch(0, i).input);
  return inputs;
}

TrainOptions block_options() {
  TrainOptions options;
  options.epochs = 15;
  options.learning_rate = 0.01;
  options.scale_learning_rate = 0.003;
  return options;
}

TEST(Blockwise, EachBlockComesNearTheFloatOneAndSoDoesTheWhole) {
  const Calibrated before = calibrated_llama("int2/g8@f32");
  ProgramModule module = prepare(before, QatOptions{}), teacher(*before.model);
  const torch::Tensor ids = token_data(32).batch(99, 0).input;
  auto distance = [&] {
    torch::NoGradGuard no_grad;
    return distillation_loss(module->forward(ids), teacher->forward(ids),
                             at::zeros_like(ids), 1)
        .item<double>();
  };
  const double start = distance();
  const torch::Tensor embedding = module->parameter("model.embed_tokens.weight").clone();
  const std::vector<BlockFit> fits =
      train_blocks(module, teacher, block_inputs(), block_options(), {}, false, nullptr);
  ASSERT_EQ(fits.size(), 2u);
  for (const BlockFit& fit : fits) EXPECT_LT(fit.after, 0.6 * fit.before) << fit.block;
  EXPECT_LT(distance(), 0.5 * start);
  EXPECT_TRUE(at::equal(embedding, module->parameter("model.embed_tokens.weight")));
  EXPECT_FALSE(module->is_training());
}

TEST(Blockwise, ResumesAfterAFinishedBlock) {
  const std::filesystem::path folder =
      std::filesystem::path(::testing::TempDir()) / "nibble_blockwise_resume";
  std::filesystem::remove_all(folder);
  const Calibrated before = calibrated_llama("uint4/g8@f32+z/g8@uint4");
  TrainOptions options = block_options();
  options.epochs = 2;
  ProgramModule teacher(*before.model);
  ProgramModule whole = prepare(before, QatOptions{});
  const auto one =
      train_blocks(whole, teacher, block_inputs(), options, {}, false, nullptr);
  ProgramModule first = prepare(before, QatOptions{});
  const Status stopped = status_of([&] {
    train_blocks(first, teacher, block_inputs(), options, folder, false,
                 [](const std::string&, const std::string&, int64_t done, int64_t) {
                   if (done == 15) request_cancel();  // in the second block
                 });
  });
  clear_cancel();
  EXPECT_EQ(stopped.code(), StatusCode::cancelled);
  EXPECT_THAT(stopped.message(),
              HasSubstr("block 1 of 2: interrupted; blocks before it"));
  ProgramModule second = prepare(before, QatOptions{});
  const auto two =
      train_blocks(second, teacher, block_inputs(), options, folder, true, nullptr);
  EXPECT_EQ(bytes_of(second), bytes_of(whole));
  ASSERT_EQ(two.size(), one.size());
  for (size_t i = 0; i < one.size(); ++i) {
    EXPECT_EQ(one[i].before, two[i].before);
    EXPECT_EQ(one[i].after, two[i].after);
  }
  std::filesystem::remove_all(folder);
}

TEST(Blockwise, SaysWhatIsMissing) {
  ProgramModule module(small_llama(1));
  EXPECT_THAT(status_of([&] {
                train_blocks(module, module, {}, block_options(), {}, false, nullptr);
              }).message(),
              HasSubstr("[train blocks] at least one batch was required"));
}

// --- packed bases

TEST(PackedLinear, IsTheLinearOfItsFloatsForwardAndBackward) {
  const Calibrated calibrated = calibrated_llama("nf4/f64@f32");
  const Artifact frozen = freeze(calibrated, Provenance{});
  ProgramModule floats(frozen), packed(frozen, PackedWeights::stay);
  const torch::Tensor ids = token_data().batch(0, 0).input;
  const torch::Tensor a = floats->forward(ids), b = packed->forward(ids);
  EXPECT_TRUE(at::equal(a, b));
  a.square().sum().backward();
  b.square().sum().backward();
  size_t compared = 0;
  for (const auto& item : packed->named_parameters()) {
    if (!item.value().grad().defined()) continue;
    EXPECT_TRUE(at::allclose(item.value().grad(), floats->parameter(item.key()).grad(),
                             1e-4, 1e-5))
        << item.key();
    ++compared;
  }
  EXPECT_EQ(compared, 6u);  // the embedding and five norms
  for (const auto& [name, weight] : frozen.packed)
    EXPECT_THROW(packed->parameter(name), Error) << "stays packed";
}

}  // namespace
}  // namespace nibble
