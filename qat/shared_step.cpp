#include "qat/shared_step.h"

#include <ATen/ATen.h>

#include "kernels/base/cancel.h"
#include "ptq/error.h"
#include "ptq/module/torch_ops.h"

namespace nibble {
namespace {

std::vector<torch::Tensor> running_statistics(const ProgramModule& module) {
  std::vector<torch::Tensor> result;
  for (const Node& node : module->program().nodes) {
    if (node.op != "batch_norm") continue;
    for (const char* role : {"running_mean", "running_var"})
      result.push_back(module->parameter(node.parameter(role)));
  }
  return result;
}

}  // namespace

SharedStep::SharedStep(ProgramModule module, std::vector<torch::Tensor> trained,
                       int64_t passes)
    : ranks_(Ranks::instance()), trained_(std::move(trained)), passes_(passes) {
  if (ranks_.count() > passes) {
    throw Error(error(
        StatusCode::invalid_argument, "[train] mpirun: processes share the passes of a step, "
        "so train.accumulate of at least ", ranks_.count(), " is required; found ", passes,
        "; --set train.accumulate=", ranks_.count(), " with train.batch divided by it trains "
        "on as many samples a step"));
  }
  if (ranks_.count() > 1 && !trained_.empty())
    link_ = DeviceLink::create(ranks_, trained_[0].device());
  // One pass moves them as it always did.
  if (passes > 1) statistics_ = running_statistics(module);
}

double SharedStep::run(const std::function<double(int64_t pass)>& backward,
                       bool& interrupted) {
  double loss = 0;
  for (int64_t pass = 0; pass < passes_; ++pass) {
    if (!is_mine(pass)) continue;
    if (!ranks_.is_first()) {
      for (torch::Tensor& parameter : trained_) parameter.mutable_grad().reset();
    }
    const double part = tracked(backward, pass);
    if (ranks_.is_first()) {
      loss += part;
      move_statistics(seen_);
    } else {
      send(part);
    }
  }
  if (ranks_.count() == 1) {
    interrupted = cancel_requested();
    return loss;
  }
  if (ranks_.is_first()) {
    for (int64_t pass = 0; pass < passes_; ++pass) {
      if (!is_mine(pass)) loss += add_next(owner(pass));
    }
  }
  spread(loss, interrupted);
  return loss;
}

// A pass that starts with statistics of 0 leaves m times those of its batch, which any rank can
// move the real ones by.
double SharedStep::tracked(const std::function<double(int64_t)>& backward, int64_t pass) {
  std::vector<torch::Tensor> before;
  for (torch::Tensor& statistic : statistics_) {
    before.push_back(statistic.clone());
    statistic.zero_();
  }
  const double loss = backward(pass);
  seen_.clear();
  for (size_t i = 0; i < statistics_.size(); ++i) {
    seen_.push_back(statistics_[i].clone());
    statistics_[i].copy_(before[i]);
  }
  return loss;
}

void SharedStep::move_statistics(const std::vector<torch::Tensor>& seen) {
  for (size_t i = 0; i < statistics_.size(); ++i)
    statistics_[i].mul_(1 - kBatchNormMomentum).add_(seen[i]);
}

void SharedStep::send_to_first(const torch::Tensor& x) {
  if (link_ && x.is_cuda()) return link_->send(x.contiguous(), 0);
  ranks_.send(x.cpu().contiguous(), 0);  // MPI moves memory of the CPU
}

torch::Tensor SharedStep::received(const torch::Tensor& like, int from) {
  if (link_ && like.is_cuda()) {
    torch::Tensor x = at::empty(like.sizes(), like.options());
    link_->receive(x, from);
    return x;
  }
  torch::Tensor x = at::empty(like.sizes(), like.scalar_type());
  ranks_.receive(x, from);
  return x.to(like.device());
}

void SharedStep::broadcast(torch::Tensor& x) {
  if (link_ && x.is_cuda()) return link_->broadcast(x, 0);
  if (x.is_cpu()) return ranks_.broadcast(x, 0);
  torch::Tensor held = x.cpu();
  ranks_.broadcast(held, 0);
  x.copy_(held);
}

// A message: the loss, then of each parameter whether it has a gradient; then those gradients,
// then the statistics seen.
void SharedStep::send(double loss) {
  torch::Tensor facts =
      at::zeros({1 + static_cast<int64_t>(trained_.size())}, at::kDouble);
  double* fact = facts.data_ptr<double>();
  fact[0] = loss;
  for (size_t i = 0; i < trained_.size(); ++i) fact[1 + i] = trained_[i].grad().defined();
  ranks_.send(facts, 0);
  for (const torch::Tensor& parameter : trained_) {
    if (parameter.grad().defined()) send_to_first(parameter.grad());
  }
  for (const torch::Tensor& statistic : seen_) send_to_first(statistic);
}

double SharedStep::add_next(int from) {
  const torch::NoGradGuard no_grad;
  torch::Tensor facts =
      at::empty({1 + static_cast<int64_t>(trained_.size())}, at::kDouble);
  ranks_.receive(facts, from);
  const double* fact = facts.data_ptr<double>();
  for (size_t i = 0; i < trained_.size(); ++i) {
    if (fact[1 + i] == 0) continue;
    const torch::Tensor part = received(trained_[i], from);
    torch::Tensor& sum = trained_[i].mutable_grad();
    if (sum.defined()) {
      sum.add_(part);
    } else {
      sum = part;
    }
  }
  std::vector<torch::Tensor> seen;
  for (const torch::Tensor& statistic : statistics_)
    seen.push_back(received(statistic, from));
  move_statistics(seen);
  return fact[0];
}

void SharedStep::spread(double& loss, bool& interrupted) {
  const torch::NoGradGuard no_grad;
  interrupted = ranks_.sum({cancel_requested() ? 1 : 0}).at(0) > 0;
  torch::Tensor facts =
      at::zeros({1 + static_cast<int64_t>(trained_.size())}, at::kDouble);
  double* fact = facts.data_ptr<double>();
  fact[0] = loss;
  for (size_t i = 0; i < trained_.size(); ++i) fact[1 + i] = trained_[i].grad().defined();
  ranks_.broadcast(facts, 0);
  loss = fact[0];
  for (size_t i = 0; i < trained_.size(); ++i) {
    torch::Tensor& sum = trained_[i].mutable_grad();
    if (fact[1 + i] == 0) {
      sum.reset();
      continue;
    }
    sum = sum.defined() ? sum.contiguous() : at::empty(trained_[i].sizes(), trained_[i].options());
    broadcast(sum);
  }
  for (torch::Tensor& statistic : statistics_) broadcast(statistic);
}

}  // namespace nibble
