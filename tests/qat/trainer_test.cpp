#include "qat/trainer.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <numbers>

#include "kernels/base/cancel.h"
#include "qat/schedule.h"
#include "tests/ptq/small_models.h"
#include "tests/qat/training_cases.h"

namespace nibble {
namespace {

using testing::bytes_of;
using ::testing::HasSubstr;
using testing::node;
using testing::small_cnn;
using testing::small_llama;
using testing::status_of;
using testing::token_data;

// A folder of this test alone, gone afterwards.
struct Folder {
  std::filesystem::path path;
  Folder() {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    path = std::filesystem::path(::testing::TempDir()) /
           cat("nibble_", info->test_suite_name(), "_", info->name());
    std::filesystem::remove_all(path);
  }
  ~Folder() { std::filesystem::remove_all(path); }
};

torch::Tensor wave(std::vector<int64_t> shape, double frequency, double size) {
  torch::Tensor values = at::empty(shape);
  float* out = values.mutable_data_ptr<float>();
  for (int64_t i = 0; i < values.numel(); ++i) {
    out[i] = static_cast<float>(size * std::sin(frequency * static_cast<double>(i + 1)));
  }
  return values;
}

// --- ten steps beside PyTorch's own: figures by tests/qat/golden_steps.py (torch 2.13.0)

Artifact two_layers() {
  Artifact artifact;
  Program& p = artifact.program;
  p.architecture = "MLP";
  p.inputs = {{"x", DType::f32, {"batch", "4"}}};
  p.outputs = {{"b", DType::f32, {"batch", "3"}}};
  p.nodes.push_back(
      node("linear", "a", 0, {"x"}, {{"weight", "a.weight"}, {"bias", "a.bias"}}));
  p.nodes.push_back(node("relu", "r", 0, {"a"}));
  p.nodes.push_back(
      node("linear", "b", 0, {"r"}, {{"weight", "b.weight"}, {"bias", "b.bias"}}));
  artifact.tensors["a.weight"] = from_torch(wave({8, 4}, 1.3, 0.7));
  artifact.tensors["a.bias"] = from_torch(wave({8}, 0.9, 0.2));
  artifact.tensors["b.weight"] = from_torch(wave({3, 8}, 2.1, 0.7));
  artifact.tensors["b.bias"] = from_torch(wave({3}, 1.7, 0.2));
  return artifact;
}

TrainingData golden_data() {
  TrainingData data;
  data.batches_per_epoch = 4;  // ten steps cross two epochs
  data.batch = [](int64_t epoch, int64_t batch) {
    const int64_t step = epoch * 4 + batch;
    torch::Tensor target = at::empty({6}, at::kLong);
    for (int64_t i = 0; i < 6; ++i) target[i] = (i + step) % 3;
    return TrainingBatch{wave({6, 4}, 0.37 * static_cast<double>(step + 1), 1.0), target};
  };
  return data;
}

struct Golden {
  const char* optimizer;
  std::vector<TrainStep> steps;
  std::vector<float> weight, bias;
};

TEST(Trainer, TenStepsAreThoseOfPyTorch) {
  const Golden cases[] = {{"adamw",
                           {{1, 1.2824180, 0.016666667, 0.6471151},
                            {2, 1.0750608, 0.033333333, 0.4639517},
                            {3, 1.7197213, 0.050000000, 1.4150211},
                            {4, 1.1517243, 0.050000000, 0.7463782},
                            {5, 1.2155384, 0.047771800, 0.5482876},
                            {6, 1.2044187, 0.041528521, 0.7037935},
                            {7, 1.0179427, 0.032506721, 0.7279955},
                            {8, 1.0917580, 0.022493279, 0.3131117},
                            {9, 1.1437209, 0.013471479, 0.3858486},
                            {10, 1.0950856, 0.007228200, 0.7636726}},
                           {0.6169942f, 0.355898f, -0.2774457f, -0.3369611f},
                           {0.0413088f, -0.1982367f, -0.0119772f}},
                          {"sgd",
                           {{1, 1.2824180, 0.016666667, 0.6471151},
                            {2, 1.0594383, 0.033333333, 0.4780436},
                            {3, 1.9108973, 0.050000000, 1.5026354},
                            {4, 1.3667119, 0.050000000, 1.0515044},
                            {5, 1.2476485, 0.047771800, 0.5851141},
                            {6, 1.1896849, 0.041528521, 0.7461845},
                            {7, 1.0244725, 0.032506721, 0.8586451},
                            {8, 1.1055570, 0.022493279, 0.3668699},
                            {9, 1.0851471, 0.013471479, 0.3409634},
                            {10, 1.0446920, 0.007228200, 0.8240976}},
                           {0.6146924f, 0.3358812f, -0.4080324f, -0.5383338f},
                           {0.168764f, -0.0869487f, -0.1197535f}}};
  for (const Golden& golden : cases) {
    ProgramModule module(two_layers());
    TrainOptions options;
    options.optimizer = golden.optimizer;
    options.learning_rate = 0.05;
    options.weight_decay = 0.05;
    options.epochs = 2.5;
    options.warmup_steps = 3;
    options.final_learning_rate = 0.1;
    options.clip_norm = 0.4;
    options.label_smoothing = 0.1;
    options.log_every = 1;
    const TrainResult result = train(module, golden_data(), options, {}, false, nullptr);
    ASSERT_EQ(result.history.size(), 10u);
    EXPECT_EQ(result.steps, 10);
    for (size_t i = 0; i < 10; ++i) {
      const TrainStep& found = result.history[i];
      const TrainStep& expected = golden.steps[i];
      EXPECT_EQ(found.step, expected.step);
      EXPECT_NEAR(found.loss, expected.loss, 2e-5) << golden.optimizer << " " << i;
      EXPECT_NEAR(found.learning_rate, expected.learning_rate, 1e-9);
      EXPECT_NEAR(found.gradient_norm, expected.gradient_norm, 5e-5)
          << golden.optimizer << " " << i;
    }
    const torch::Tensor w = module->parameter("a.weight")[0],
                        b = module->parameter("b.bias");
    for (int64_t i = 0; i < 4; ++i)
      EXPECT_NEAR(w[i].item<float>(), golden.weight[i], 2e-5);
    for (int64_t i = 0; i < 3; ++i) EXPECT_NEAR(b[i].item<float>(), golden.bias[i], 2e-5);
    EXPECT_FALSE(module->is_training());
  }
}

TEST(Trainer, LossOfALanguageModelIgnoresWhatHasNoTarget) {
  const torch::Tensor logits = wave({2, 3, 5}, 0.7, 2.0);
  const torch::Tensor target =
      at::tensor({1, -100, 4, -100, 0, 2}, at::kLong).view({2, 3});
  double sum = 0;
  for (const auto& [b, t, id] : {std::tuple{0, 0, 1}, {0, 2, 4}, {1, 1, 0}, {1, 2, 2}}) {
    double total = 0;
    for (int v = 0; v < 5; ++v) total += std::exp(logits[b][t][v].item<double>());
    sum += std::log(total) - logits[b][t][id].item<double>();
  }
  EXPECT_NEAR(training_loss(logits, target, 0).item<double>(), sum / 4, 1e-6);
}

TEST(Schedule, WarmsUpInALineAndFallsAlongACosine) {
  TrainOptions options;
  options.learning_rate = 2.0;
  options.warmup_steps = 4;
  options.final_learning_rate = 0.25;
  EXPECT_DOUBLE_EQ(learning_rate_at(options, 0, 104), 0.5);
  EXPECT_DOUBLE_EQ(learning_rate_at(options, 3, 104), 2.0);
  EXPECT_DOUBLE_EQ(learning_rate_at(options, 4, 104), 2.0);
  EXPECT_NEAR(learning_rate_at(options, 54, 104), 2.0 * (0.25 + 0.75 / 2), 1e-12);
  EXPECT_NEAR(learning_rate_at(options, 104, 104), 0.5, 1e-12);
  const double p = 20.0 / 100.0;
  EXPECT_NEAR(learning_rate_at(options, 24, 104),
              2.0 * (0.25 + 0.75 * (1 + std::cos(std::numbers::pi * p)) / 2), 1e-12);
  options.warmup_steps = 1000;  // more than there are steps
  EXPECT_DOUBLE_EQ(learning_rate_at(options, 9, 10), 2.0);
}

// --- resume

// A decoder with learned weight scales: every kind of state that a checkpoint must hold.
ProgramModule quantized_llama() {
  ProgramModule module(small_llama(1));
  for (const Node& n : module->program().nodes) {
    if (n.op != "linear" || n.name == "lm_head") continue;
    const std::string name = n.parameter("weight");
    const torch::Tensor w = module->parameter(name).detach();
    FakeQuantize quantizer(*parse_scheme("int4/g8@f16"), ScaleRule{});
    quantizer->set_levels(
        *choose_scales({w.const_data_ptr<float>(), w.size(0), w.size(1)},
                       quantizer->scheme(), ScaleRule{}));
    quantizer->learn_scale();
    module->quantize_weight(name, quantizer);
  }
  return module;
}

TrainOptions twenty_steps() {
  TrainOptions options;
  options.learning_rate = 0.01;
  options.scale_learning_rate = 0.001;
  options.weight_decay = 0.1;
  options.steps = 20;
  options.batch = 4;
  options.warmup_steps = 3;
  options.log_every = 3;
  return options;
}

void expect_equal(const TrainResult& a, const TrainResult& b) {
  ASSERT_EQ(a.history.size(), b.history.size());
  for (size_t i = 0; i < a.history.size(); ++i) {
    EXPECT_EQ(a.history[i].step, b.history[i].step);
    EXPECT_EQ(a.history[i].loss, b.history[i].loss);
    EXPECT_EQ(a.history[i].learning_rate, b.history[i].learning_rate);
    EXPECT_EQ(a.history[i].gradient_norm, b.history[i].gradient_norm);
  }
}

TEST(Trainer, TwentyStepsAreTenAndTenMoreByteForByte) {
  for (const char* optimizer : {"adamw", "sgd"}) {
    const Folder folder;
    TrainOptions options = twenty_steps();
    options.optimizer = optimizer;
    ProgramModule whole = quantized_llama();
    const TrainResult one = train(whole, token_data(), options, {}, false, nullptr);

    ProgramModule first = quantized_llama();
    const Status stopped = status_of([&] {
      train(first, token_data(), options, folder.path, false,
            [](const std::string&, const std::string&, int64_t done, int64_t) {
              if (done == 10) request_cancel();
            });
    });
    clear_cancel();
    EXPECT_EQ(stopped.code(), StatusCode::cancelled);
    EXPECT_THAT(stopped.message(),
                HasSubstr("step 10 of 20: interrupted; a checkpoint was written"));
    EXPECT_NE(bytes_of(first), bytes_of(whole));

    ProgramModule second = quantized_llama();
    const TrainResult two =
        train(second, token_data(), options, folder.path, true, nullptr);
    EXPECT_EQ(bytes_of(second), bytes_of(whole)) << optimizer;
    expect_equal(one, two);
    // What is finished resumes to itself.
    ProgramModule third = quantized_llama();
    expect_equal(one, train(third, token_data(), options, folder.path, true, nullptr));
    EXPECT_EQ(bytes_of(third), bytes_of(whole)) << optimizer;
  }
}

TEST(Trainer, BlocksThatRunAgainTrainTheSameBytes) {
  TrainOptions options = twenty_steps();
  ProgramModule kept = quantized_llama(), again = quantized_llama();
  train(kept, token_data(), options, {}, false, nullptr);
  options.recompute = true;
  train(again, token_data(), options, {}, false, nullptr);
  EXPECT_EQ(bytes_of(kept), bytes_of(again));
}

TEST(Trainer, ABatchNormsStatisticsResumeToo) {
  const Folder folder;
  TrainOptions options;
  options.optimizer = "sgd";
  options.learning_rate = 0.05;
  options.steps = 6;
  options.checkpoint_every = 4;
  TrainingData data;
  data.batches_per_epoch = 100;
  data.batch = [](int64_t, int64_t batch) {
    return TrainingBatch{wave({4, 3, 8, 8}, 0.1 * static_cast<double>(batch + 1), 1.0),
                         at::tensor({0, 1, 2, 3}, at::kLong)};
  };
  ProgramModule whole(small_cnn(2)), killed(small_cnn(2)), resumed(small_cnn(2));
  train(whole, data, options, {}, false, nullptr);
  TrainingData dies = data;  // after the checkpoint of step 4, as a killed process would
  dies.batch = [&](int64_t epoch, int64_t batch) {
    if (batch == 5) throw Error(Status(StatusCode::io_error, "gone"));
    return data.batch(epoch, batch);
  };
  EXPECT_EQ(status_of([&] {
              train(killed, dies, options, folder.path, false, nullptr);
            }).code(),
            StatusCode::io_error);
  train(resumed, data, options, folder.path, true, nullptr);
  EXPECT_EQ(bytes_of(resumed), bytes_of(whole));
}

TEST(Trainer, ACheckpointOfAnotherRunIsRefused) {
  const Folder folder;
  TrainOptions options = twenty_steps();
  options.steps = 2;
  train(quantized_llama(), token_data(), options, folder.path, false, nullptr);

  options.learning_rate = 0.02;
  Status status = status_of([&] {
    train(quantized_llama(), token_data(), options, folder.path, true, nullptr);
  });
  EXPECT_EQ(status.code(), StatusCode::data_loss);
  EXPECT_THAT(status.message(), HasSubstr("a checkpoint of these settings was required"));
  EXPECT_THAT(status.message(), HasSubstr("learning_rate 0.02"));

  options.learning_rate = 0.01;
  status = status_of([&] {
    train(ProgramModule(small_llama(1)), token_data(), options, folder.path, true,
          nullptr);
  });
  EXPECT_EQ(status.code(), StatusCode::data_loss);
  EXPECT_THAT(status.message(), HasSubstr("a checkpoint of this model was required"));

  const auto file = folder.path / "checkpoint.pt";
  std::filesystem::resize_file(file, std::filesystem::file_size(file) / 2);
  status = status_of([&] {
    train(quantized_llama(), token_data(), options, folder.path, true, nullptr);
  });
  EXPECT_EQ(status.code(), StatusCode::data_loss);
  EXPECT_THAT(status.message(), HasSubstr("a whole checkpoint was required"));

  // Without --resume it is no one's business.
  train(quantized_llama(), token_data(), options, folder.path, false, nullptr);
}

TEST(Trainer, ErrorsNameTheOptionOrTheStep) {
  auto refused = [](auto change) {
    TrainOptions options = twenty_steps();
    change(options);
    return status_of([&] {
      train(ProgramModule(small_llama(3)), token_data(), options, {}, false, nullptr);
    });
  };
  Status status = refused([](TrainOptions& o) { o.optimizer = "adagrad"; });
  EXPECT_EQ(status.code(), StatusCode::invalid_argument);
  EXPECT_EQ(
      status.message(),
      "[train] optimizer: adamw or sgd was required; found adagrad; change the recipe");
  EXPECT_THAT(refused([](TrainOptions& o) { o.learning_rate = 0; }).message(),
              HasSubstr("learning_rate: a positive number was required; found 0"));
  EXPECT_THAT(refused([](TrainOptions& o) { o.label_smoothing = 1; }).message(),
              HasSubstr("label_smoothing: a number in [0, 1) was required; found 1"));
  EXPECT_THAT(refused([](TrainOptions& o) {
                o.recompute = true;
                o.distill_hidden = 1;
              }).message(),
              HasSubstr("recompute: distill.hidden 0, since it needs the blocks'"));

  Artifact broken = small_llama(3);
  torch::Tensor norm = to_torch(broken.tensors.at("model.norm.weight"));
  norm[0] = NAN;
  broken.tensors["model.norm.weight"] = from_torch(norm);
  status = status_of([&] {
    train(ProgramModule(broken), token_data(), twenty_steps(), {}, false, nullptr);
  });
  EXPECT_EQ(status.code(), StatusCode::out_of_range);
  EXPECT_THAT(status.message(),
              HasSubstr("step 0 of 20: a finite loss was required; found nan"));
}

}  // namespace
}  // namespace nibble
