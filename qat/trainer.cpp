#include "qat/trainer.h"

#include <ATen/ATen.h>
#include <torch/utils.h>

#include <chrono>
#include <cmath>
#include <limits>

#include "kernels/base/cancel.h"
#include "qat/checkpoint.h"
#include "qat/distillation.h"
#include "qat/optimizer.h"
#include "qat/oscillation.h"
#include "qat/schedule.h"
#include "qat/shared_step.h"

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
  require(options.accumulate > 0, "accumulate", options.accumulate, "1 or more");
  require(options.precision == "f32" || options.precision == "bf16", "precision",
          options.precision, "f32 or bf16");
  require(options.average >= 0 && options.average < 1, "average", options.average,
          "a number in [0, 1)");
  require(options.distill_weight >= 0 && options.distill_weight <= 1, "distill.weight",
          options.distill_weight, "a number in [0, 1]");
  require(options.distill_temperature > 0, "distill.temperature",
          options.distill_temperature, "a positive number");
  require(options.log_every > 0, "log_every", options.log_every, "1 or more");
  require(options.label_smoothing >= 0 && options.label_smoothing < 1, "label_smoothing",
          options.label_smoothing, "a number in [0, 1)");
  require(!options.recompute || options.distill_hidden == 0, "recompute",
          "distill.hidden above 0",
          "distill.hidden 0, since it needs the blocks' outputs,");
  require(data.batches_per_epoch > 0, "data", data.batches_per_epoch,
          "at least one batch an epoch");
}

ProgramModule moved(ProgramModule module, at::Device device) {
  if (module) module->to(device);
  return module;
}

TrainingBatch moved(TrainingBatch batch, at::Device device) {
  if (device.is_cpu()) return batch;
  if (batch.input.defined()) batch.input = batch.input.to(device);
  if (batch.target.defined()) batch.target = batch.target.to(device);
  if (!batch.signals) return batch;
  for (auto* steps : {&batch.signals->inputs, &batch.signals->targets}) {
    for (SignalBatch::Values& values : *steps) {
      for (auto& [name, value] : values) value = value.to(device);
    }
  }
  return batch;
}

// One run: what train() does, step by step.
class Run {
 public:
  Run(ProgramModule module, const TrainingData& data, const TrainOptions& options,
      const std::filesystem::path& checkpoint, const TrainHooks& hooks)
      : device_(options.device),
        module_(moved(module, device_)),
        data_(data),
        options_(options),
        folder_(checkpoint),
        hooks_(hooks),
        steps_(options.steps > 0
                   ? options.steps
                   : std::max<int64_t>(
                         1, std::llround(options.epochs *
                                         static_cast<double>(data.batches_per_epoch) /
                                         static_cast<double>(options.accumulate)))),
        optimizer_(make_optimizer(trained_parameters(module), options)),
        distillation_(module, moved(hooks.teacher, device_), options),
        oscillations_(module, options),
        trained_(optimizer_.parameters()),
        shared_(module, trained_, options.accumulate) {
    const bool bf16 = options.precision == "bf16";
    module_->set_bf16_products(bf16);
    module_->set_recompute(options.recompute);
    if (hooks.teacher) ProgramModule(hooks.teacher)->set_bf16_products(bf16);
    state_.module = module;
    state_.optimizer = optimizer_.optimizer.get();
    state_.settings = training_settings(options, steps_, data.batches_per_epoch);
    state_.oscillation = oscillations_.state();
    if (options.average > 0) state_.average = copies(trained_);
  }

  TrainResult run(bool resume, const Progress& progress) {
    if (resume && checkpoint_exists(folder_)) read_checkpoint(folder_, state_);
    begin_ = std::chrono::steady_clock::now();
    bool stop = out_of_patience();
    while (state_.step < steps_ && !stop) {
      stop_when_cancelled();
      step();
      const bool last = state_.step == steps_;
      if (progress) progress("train", status_line(), state_.step, steps_);
      const int64_t every = options_.evaluate_every;
      if (hooks_.evaluate && every > 0 && (state_.step % every == 0 || last)) {
        evaluate();
        stop = out_of_patience();
      }
      const bool due =
          options_.checkpoint_every > 0 && state_.step % options_.checkpoint_every == 0;
      if (!folder_.empty() && (due || last || stop)) save();
    }
    return finish();
  }

 private:
  void save() {
    if (ranks_.is_first()) write_checkpoint(folder_, state_);
    ranks_.barrier();
  }

  static std::vector<torch::Tensor> copies(const std::vector<torch::Tensor>& tensors) {
    std::vector<torch::Tensor> result;
    for (const torch::Tensor& tensor : tensors) result.push_back(tensor.detach().clone());
    return result;
  }

  std::vector<torch::Tensor> everything() const {
    std::vector<torch::Tensor> tensors = module_->parameters();
    for (const torch::Tensor& buffer : module_->buffers()) tensors.push_back(buffer);
    return tensors;
  }

  static void assign(const std::vector<torch::Tensor>& to,
                     const std::vector<torch::Tensor>& from) {
    torch::NoGradGuard no_grad;
    for (size_t i = 0; i < to.size(); ++i) to[i].copy_(from[i]);
  }

  void step() {
    const double rate = learning_rate_at(options_, state_.step, steps_);
    optimizer_.set_rate(rate);
    optimizer_.optimizer->zero_grad();
    module_->train();
    const double value = shared_.run(
        [&](int64_t pass) {
          const int64_t index = state_.step * options_.accumulate + pass;
          const TrainingBatch batch = moved(data_.batch(index / data_.batches_per_epoch,
                                                        index % data_.batches_per_epoch),
                                            device_);
          torch::Tensor loss = loss_of(batch);
          if (options_.accumulate > 1)
            loss = loss / static_cast<double>(options_.accumulate);
          const double part = loss.item<double>();
          if (!std::isfinite(part)) {
            fail(StatusCode::out_of_range,
                 cat("step ", state_.step, " of ", steps_,
                     ": a finite loss was required; found ", part, " at learning rate ",
                     rate, "; lower learning_rate, clip_norm or raise warmup_steps"));
          }
          loss.backward();
          return part;
        },
        interrupted_);
    oscillations_.add_damping();
    const double norm = clip_gradients(trained_, options_.clip_norm);
    optimizer_.optimizer->step();
    keep_scales_positive(module_);
    oscillations_.after_step();
    ++state_.step;
    move_average();

    state_.loss_sum += value;
    ++state_.loss_count;
    if (state_.step % options_.log_every == 0 || state_.step == steps_) {
      const double mean = state_.loss_sum / static_cast<double>(state_.loss_count);
      state_.history.push_back({state_.step, mean, rate, norm});
      state_.loss_sum = 0;
      state_.loss_count = 0;
      if (hooks_.log) hooks_.log(state_.history, state_.evaluations);
    }
    last_loss_ = value;
  }

  torch::Tensor loss_of(const TrainingBatch& batch) {
    if (batch.signals) {
      counted_ += batch.signals->samples;
      unit_ = "samples";
      return signal_loss(module_, *batch.signals);
    }
    const bool is_text = !batch.input.is_floating_point();
    counted_ += is_text ? batch.input.numel() : batch.input.size(0);
    unit_ = is_text ? "tokens" : "images";
    const torch::Tensor logits = module_->forward(batch.input);
    return distillation_.loss(logits, batch.input, batch.target, [&] {
      return training_loss(logits, batch.target, options_.label_smoothing);
    });
  }

  // Young averages would be mostly the start: the decay grows towards its value.
  void move_average() {
    if (state_.average.empty()) return;
    torch::NoGradGuard no_grad;
    const double step = static_cast<double>(state_.step);
    const double keep = std::min(options_.average, (1 + step) / (10 + step));
    for (size_t i = 0; i < trained_.size(); ++i)
      state_.average[i].mul_(keep).add_(trained_[i], 1 - keep);
  }

  void evaluate() {
    std::vector<torch::Tensor> own;
    if (!state_.average.empty()) {
      own = copies(trained_);
      assign(trained_, state_.average);
    }
    module_->eval();
    torch::Tensor measured = at::zeros({1}, at::kDouble);  // by the first process for all
    if (ranks_.is_first()) *measured.data_ptr<double>() = hooks_.evaluate();
    ranks_.broadcast(measured, 0);
    const double figure = *measured.data_ptr<double>();
    if (!std::isfinite(figure)) {
      fail(StatusCode::out_of_range, cat("step ", state_.step, " of ", steps_,
                                         ": a finite figure of the artifact was "
                                         "required; found ",
                                         figure, "; lower learning_rate"));
    }
    if (state_.evaluations.empty() || figure < state_.best_figure) {
      state_.best_figure = figure;
      state_.best_step = state_.step;
      state_.best = copies(everything());
    }
    state_.evaluations.push_back({state_.step, figure});
    if (hooks_.log) hooks_.log(state_.history, state_.evaluations);
    if (!own.empty()) assign(trained_, own);
  }

  bool out_of_patience() const {
    if (options_.patience == 0 || state_.evaluations.empty()) return false;
    int64_t since = 0;
    for (const TrainEvaluation& entry : state_.evaluations)
      since += entry.step > state_.best_step;
    return since >= options_.patience;
  }

  std::string status_line() const {
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count();
    std::string line =
        cat("loss ", state_.history.empty() ? last_loss_ : state_.history.back().loss);
    if (!state_.evaluations.empty())
      line += cat(", artifact ", state_.evaluations.back().figure);
    if (seconds > 0) {
      line += cat(", ", std::llround(static_cast<double>(counted_) / seconds), " ", unit_,
                  "/s");
    }
    return line;
  }

  void stop_when_cancelled() {
    // Several processes stop after the same step.
    if (!interrupted_ && (ranks_.count() > 1 || !cancel_requested())) return;
    const std::string place =
        cat("step ", state_.step, " of ", steps_, ": interrupted; ");
    if (folder_.empty()) {
      fail(StatusCode::cancelled,
           place + "nothing was written; give a checkpoint folder to resume");
    }
    save();
    fail(StatusCode::cancelled, cat(place, "a checkpoint was written to ",
                                    folder_.string(), "; continue with --resume"));
  }

  TrainResult finish() {
    int64_t best = state_.step;
    if (!state_.best.empty()) {
      assign(everything(), state_.best);
      best = state_.best_step;
    } else if (!state_.average.empty()) {
      assign(trained_, state_.average);
    }
    module_->set_bf16_products(false);
    module_->set_recompute(false);
    module_->eval();
    (void)moved(module_, at::kCPU);
    (void)moved(hooks_.teacher, at::kCPU);
    return {.history = state_.history,
            .evaluations = state_.evaluations,
            .steps = state_.step,
            .best_step = best,
            .seconds =
                std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_)
                    .count()};
  }

  const at::Device device_;
  ProgramModule module_;
  const TrainingData& data_;
  const TrainOptions& options_;
  const std::filesystem::path& folder_;
  const TrainHooks& hooks_;
  int64_t steps_;
  Optimizer optimizer_;
  Distillation distillation_;
  Oscillations oscillations_;
  std::vector<torch::Tensor> trained_;
  SharedStep shared_;
  Ranks& ranks_ = Ranks::instance();
  bool interrupted_ = false;
  TrainingState state_;
  std::chrono::steady_clock::time_point begin_;
  int64_t counted_ = 0;
  const char* unit_ = "";
  double last_loss_ = 0;
};

}  // namespace

torch::Tensor training_loss(const torch::Tensor& logits, const torch::Tensor& target,
                            double label_smoothing) {
  return at::cross_entropy_loss(
      logits.reshape({-1, logits.size(-1)}), target.reshape({-1}),
      /*weight=*/{}, at::Reduction::Mean, kIgnoredTarget, label_smoothing);
}

TrainResult train(ProgramModule module, const TrainingData& data,
                  const TrainOptions& options, const std::filesystem::path& checkpoint,
                  bool resume, const Progress& progress, const TrainHooks& hooks) {
  check(options, data);
  if ((options.distill_weight > 0 || options.distill_hidden > 0) && !hooks.teacher) {
    fail(StatusCode::invalid_argument,
         "distill: a teacher was required; found none; give hooks.teacher, or set "
         "distill_weight and distill_hidden to 0");
  }
  torch::manual_seed(options.seed);
  return Run(module, data, options, checkpoint, hooks).run(resume, progress);
}

}  // namespace nibble
