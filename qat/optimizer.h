// The optimizer of a run and what surrounds its step: groups, clipping, scales kept
// positive.
//
//   matrices              weight_decay, learning_rate
//   norms, biases         no decay, learning_rate
//   learned scales, zeros no decay, scale_learning_rate (0: learning_rate)
#pragma once

#include <torch/optim/optimizer.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "ptq/module/program_module.h"
#include "qat/train_options.h"

namespace nibble {

struct Optimizer {
  std::unique_ptr<torch::optim::Optimizer> optimizer;
  std::vector<double> rates;  // of each group, as a multiple of the schedule's
  void set_rate(double rate);
  std::vector<torch::Tensor> parameters() const;
};

using NamedTensors = std::vector<std::pair<std::string, torch::Tensor>>;
// What requires a gradient, by the module's names.
NamedTensors trained_parameters(const ProgramModule& module);

Optimizer make_optimizer(const NamedTensors& parameters, const TrainOptions& options);

// The norm of all gradients together; scales them when it is above `limit` (> 0).
double clip_gradients(const std::vector<torch::Tensor>& parameters, double limit);

void keep_scales_positive(const ProgramModule& module);

}  // namespace nibble
