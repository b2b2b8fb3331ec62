#include "qat/trainer.h"

#include <ATen/ATen.h>
#include <torch/optim/adamw.h>
#include <torch/optim/sgd.h>
#include <torch/utils.h>

#include <chrono>
#include <cmath>
#include <limits>

#include "kernels/base/cancel.h"
#include "qat/checkpoint.h"
#include "qat/schedule.h"

namespace nibble {
namespace {

constexpr int64_t kIgnoredTarget = -100;  // as torch.nn.CrossEntropyLoss

[[noreturn]] void fail(StatusCode code, const std::string& text) {
  throw Error(Status(code, "[train] " + text));
}

void check(const TrainOptions& options, const TrainingData& data) {
  auto require = [](bool fits, const char* name, auto found, const char* required) {
    if (!fits) {
      fail(StatusCode::invalid_argument,
           cat(name, ": ", required, " was required; found ", found,
               "; change the recipe"));
    }
  };
  require(options.optimizer == "adamw" || options.optimizer == "sgd", "optimizer",
          options.optimizer, "adamw or sgd");
  require(std::isfinite(options.learning_rate) && options.learning_rate > 0,
          "learning_rate", options.learning_rate, "a positive number");
  require(std::isfinite(options.scale_learning_rate) && options.scale_learning_rate >= 0,
          "scale_learning_rate", options.scale_learning_rate, "a number from 0");
  require(options.steps > 0 || options.epochs > 0, "epochs", options.epochs,
          "a positive number");
  require(options.log_every > 0, "log_every", options.log_every, "1 or more");
  require(options.label_smoothing >= 0 && options.label_smoothing < 1, "label_smoothing",
          options.label_smoothing, "a number in [0, 1)");
  require(data.batches_per_epoch > 0, "data", data.batches_per_epoch,
          "at least one batch an epoch");
}

// The groups of parameters, and each group's rate as a multiple of the schedule's.
struct Groups {
  std::vector<torch::optim::OptimizerParamGroup> groups;
  std::vector<double> rates;
};

template <class Options>
Groups grouped(const ProgramModule& module, const TrainOptions& options,
               const Options& base) {
  std::vector<torch::Tensor> matrices, others, scales;
  for (const auto& item : module->named_parameters()) {
    if (!item.value().requires_grad()) continue;
    if (item.key().find("_quantizers.") != std::string::npos) {
      scales.push_back(item.value());
    } else {
      (item.value().dim() >= 2 ? matrices : others).push_back(item.value());
    }
  }
  Groups result;
  auto add = [&](const std::vector<torch::Tensor>& parameters, double decay,
                 double rate) {
    if (parameters.empty()) return;
    Options own = base;
    own.weight_decay(decay);
    result.groups.emplace_back(parameters, std::make_unique<Options>(own));
    result.rates.push_back(rate);
  };
  add(matrices, options.weight_decay, 1.0);
  add(others, 0.0, 1.0);
  add(scales, 0.0,
      options.scale_learning_rate > 0
          ? options.scale_learning_rate / options.learning_rate
          : 1.0);
  return result;
}

struct Optimizer {
  std::unique_ptr<torch::optim::Optimizer> optimizer;
  std::vector<double> rates;
  void set_rate(double rate) {
    for (size_t i = 0; i < rates.size(); ++i) {
      optimizer->param_groups()[i].options().set_lr(rate * rates[i]);
    }
  }
};

Optimizer make_optimizer(const ProgramModule& module, const TrainOptions& options) {
  Optimizer result;
  if (options.optimizer == "sgd") {
    const auto base =
        torch::optim::SGDOptions(options.learning_rate).momentum(options.momentum);
    Groups groups = grouped(module, options, base);
    result.rates = groups.rates;
    result.optimizer =
        std::make_unique<torch::optim::SGD>(std::move(groups.groups), base);
  } else {
    const auto base = torch::optim::AdamWOptions(options.learning_rate)
                          .betas({options.beta1, options.beta2});
    Groups groups = grouped(module, options, base);
    result.rates = groups.rates;
    result.optimizer =
        std::make_unique<torch::optim::AdamW>(std::move(groups.groups), base);
  }
  return result;
}

// The norm of all gradients together; scales them when it is above `limit` (> 0).
double clip(const std::vector<torch::Tensor>& parameters, double limit) {
  double squares = 0;
  for (const torch::Tensor& p : parameters) {
    if (!p.grad().defined()) continue;
    const double norm = p.grad().norm().item<double>();
    squares += norm * norm;
  }
  const double norm = std::sqrt(squares);
  if (limit > 0 && norm > limit) {
    for (const torch::Tensor& p : parameters) {
      if (p.grad().defined()) p.grad().mul_(limit / norm);
    }
  }
  return norm;
}

void keep_scales_positive(const ProgramModule& module) {
  for (const auto* table : {&module->weight_quantizers(), &module->value_quantizers(),
                            &module->input_quantizers()}) {
    for (const auto& [name, quantizer] : *table) {
      FakeQuantize(quantizer)->keep_positive();
    }
  }
}

}  // namespace

torch::Tensor training_loss(const torch::Tensor& logits, const torch::Tensor& target,
                            double label_smoothing) {
  return at::cross_entropy_loss(
      logits.reshape({-1, logits.size(-1)}), target.reshape({-1}),
      /*weight=*/{}, at::Reduction::Mean, kIgnoredTarget, label_smoothing);
}

TrainResult train(ProgramModule module, const TrainingData& data,
                  const TrainOptions& options, const std::filesystem::path& checkpoint,
                  bool resume, const Progress& progress) {
  check(options, data);
  const auto start = std::chrono::steady_clock::now();
  const int64_t steps =
      options.steps > 0
          ? options.steps
          : std::max<int64_t>(1,
                              std::llround(options.epochs *
                                           static_cast<double>(data.batches_per_epoch)));
  torch::manual_seed(options.seed);
  Optimizer optimizer = make_optimizer(module, options);

  TrainingState state;
  state.module = module;
  state.optimizer = optimizer.optimizer.get();
  state.settings = training_settings(options, steps, data.batches_per_epoch);
  if (resume && checkpoint_exists(checkpoint)) read_checkpoint(checkpoint, state);

  std::vector<torch::Tensor> trained;
  for (const auto& group : optimizer.optimizer->param_groups()) {
    trained.insert(trained.end(), group.params().begin(), group.params().end());
  }
  module->train();
  while (state.step < steps) {
    if (cancel_requested()) {
      const std::string place =
          cat("step ", state.step, " of ", steps, ": interrupted; ");
      if (checkpoint.empty()) {
        fail(StatusCode::cancelled,
             place + "nothing was written; give a checkpoint folder to resume");
      }
      write_checkpoint(checkpoint, state);
      fail(StatusCode::cancelled, cat(place, "a checkpoint was written to ",
                                      checkpoint.string(), "; continue with --resume"));
    }
    const TrainingBatch batch = data.batch(state.step / data.batches_per_epoch,
                                           state.step % data.batches_per_epoch);
    const double rate = learning_rate_at(options, state.step, steps);
    optimizer.set_rate(rate);
    optimizer.optimizer->zero_grad();
    torch::Tensor loss = training_loss(module->forward(batch.input), batch.target,
                                       options.label_smoothing);
    const double value = loss.item<double>();
    if (!std::isfinite(value)) {
      fail(StatusCode::out_of_range,
           cat("step ", state.step, " of ", steps, ": a finite loss was required; found ",
               value, " at learning rate ", rate,
               "; lower learning_rate, clip_norm or raise warmup_steps"));
    }
    loss.backward();
    const double norm = clip(trained, options.clip_norm);
    optimizer.optimizer->step();
    keep_scales_positive(module);

    ++state.step;
    state.loss_sum += value;
    ++state.loss_count;
    if (state.step % options.log_every == 0 || state.step == steps) {
      const double mean = state.loss_sum / static_cast<double>(state.loss_count);
      state.history.push_back({state.step, mean, rate, norm});
      state.loss_sum = 0;
      state.loss_count = 0;
    }
    if (progress) {
      progress("train",
               cat("loss ", state.history.empty() ? value : state.history.back().loss),
               state.step, steps);
    }
    const bool due =
        options.checkpoint_every > 0 && state.step % options.checkpoint_every == 0;
    if (!checkpoint.empty() && (due || state.step == steps))
      write_checkpoint(checkpoint, state);
  }
  module->eval();
  return {
      .history = state.history,
      .steps = state.step,
      .seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start)
                     .count()};
}

}  // namespace nibble
