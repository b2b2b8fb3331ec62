#include "qat/optimizer.h"

#include <ATen/ATen.h>
#include <torch/optim/adamw.h>
#include <torch/optim/sgd.h>

#include <cmath>

namespace nibble {
namespace {

// The groups of parameters, and each group's rate as a multiple of the schedule's.
struct Groups {
  std::vector<torch::optim::OptimizerParamGroup> groups;
  std::vector<double> rates;
};

template <class Options>
Groups grouped(const NamedTensors& parameters, const TrainOptions& options,
               const Options& base) {
  std::vector<torch::Tensor> matrices, others, scales, clips;
  for (const auto& [name, value] : parameters) {
    if (name.find("_quantizers.") != std::string::npos) {
      const bool clip = name.size() > 6 && name.substr(name.size() - 6) == ".alpha";
      (clip ? clips : scales).push_back(value);
    } else {
      (value.dim() >= 2 ? matrices : others).push_back(value);
    }
  }
  Groups result;
  auto add = [&](const std::vector<torch::Tensor>& members, double decay, double rate) {
    if (members.empty()) return;
    Options own = base;
    own.weight_decay(decay);
    result.groups.emplace_back(members, std::make_unique<Options>(own));
    result.rates.push_back(rate);
  };
  add(matrices, options.weight_decay, 1.0);
  add(others, 0.0, 1.0);
  const double own_rate = options.scale_learning_rate > 0
                              ? options.scale_learning_rate / options.learning_rate
                              : 1.0;
  add(scales, 0.0, own_rate);
  add(clips, options.weight_decay, own_rate);  // PACT, sec. 3: a has the weights' L2
  return result;
}

}  // namespace

void Optimizer::set_rate(double rate) {
  for (size_t i = 0; i < rates.size(); ++i)
    optimizer->param_groups()[i].options().set_lr(rate * rates[i]);
}

std::vector<torch::Tensor> Optimizer::parameters() const {
  std::vector<torch::Tensor> all;
  for (const auto& group : optimizer->param_groups())
    all.insert(all.end(), group.params().begin(), group.params().end());
  return all;
}

NamedTensors trained_parameters(const ProgramModule& module) {
  NamedTensors result;
  for (const auto& item : module->named_parameters()) {
    if (item.value().requires_grad()) result.emplace_back(item.key(), item.value());
  }
  return result;
}

Optimizer make_optimizer(const NamedTensors& parameters, const TrainOptions& options) {
  Optimizer result;
  if (options.optimizer == "sgd") {
    const auto base =
        torch::optim::SGDOptions(options.learning_rate).momentum(options.momentum);
    Groups groups = grouped(parameters, options, base);
    result.rates = groups.rates;
    result.optimizer =
        std::make_unique<torch::optim::SGD>(std::move(groups.groups), base);
  } else {
    const auto base = torch::optim::AdamWOptions(options.learning_rate)
                          .betas({options.beta1, options.beta2});
    Groups groups = grouped(parameters, options, base);
    result.rates = groups.rates;
    result.optimizer =
        std::make_unique<torch::optim::AdamW>(std::move(groups.groups), base);
  }
  return result;
}

double clip_gradients(const std::vector<torch::Tensor>& parameters, double limit) {
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

}  // namespace nibble
