#include "qat/blockwise.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "kernels/base/cancel.h"
#include "kernels/base/splitmix64.h"
#include "ptq/distributed/ranks.h"
#include "qat/checkpoint.h"
#include "qat/optimizer.h"
#include "qat/schedule.h"

namespace nibble {
namespace {

using Values = std::map<std::string, torch::Tensor>;

[[noreturn]] void fail(StatusCode code, const std::string& text) {
  throw Error(Status(code, "[train blocks] " + text));
}

Values chosen(const Values& from, const std::vector<std::string>& names) {
  Values result;
  for (const std::string& name : names) result[name] = from.at(name);
  return result;
}

torch::Tensor relative_loss(const Values& found, const Values& wanted) {
  torch::Tensor total;
  for (const auto& [name, target] : wanted) {
    const torch::Tensor part =
        (found.at(name) - target).square().sum() / target.square().sum().clamp_min(1e-12);
    total = total.defined() ? total + part : part;
  }
  return total / static_cast<double>(wanted.size());
}

// The parameters that block's nodes read, and those of their quantizers.
NamedTensors parameters_of(const ProgramModule& module, const BlockSlice& part) {
  std::set<const void*> mine;
  auto add = [&](const std::map<std::string, FakeQuantize>& table,
                 const std::string& name) {
    const auto found = table.find(name);
    if (found == table.end()) return;
    for (const torch::Tensor& p : found->second->parameters())
      mine.insert(p.unsafeGetTensorImpl());
  };
  for (const Node* node : part.nodes) {
    for (const auto& [role, name] : node->parameters) {
      mine.insert(module->parameter(name).unsafeGetTensorImpl());
      add(module->weight_quantizers(), name);
    }
    add(module->input_quantizers(), node->name);
    for (const std::string& value : node->outputs) add(module->value_quantizers(), value);
  }
  NamedTensors result;
  for (const auto& [name, value] : trained_parameters(module)) {
    if (mine.count(value.unsafeGetTensorImpl())) result.emplace_back(name, value);
  }
  return result;
}

// What lives at the border before the current block: one model's, a batch each.
class Stream {
 public:
  Stream(ProgramModule module, const std::vector<torch::Tensor>& inputs)
      : module_(std::move(module)) {
    const std::string& name = module_->program().inputs[0].name;
    const at::Device device = module_->parameters().at(0).device();
    for (const torch::Tensor& given : inputs) {
      const torch::Tensor input = given.to(device);
      Values values = {{name, input}};
      for (size_t i = 1; i < module_->program().inputs.size(); ++i)
        values[module_->program().inputs[i].name] = at::zeros_like(input);
      values_.push_back(std::move(values));
    }
  }

  size_t size() const { return values_.size(); }
  Values inputs(size_t batch, const BlockSlice& part) const {
    return chosen(values_[batch], part.inputs);
  }
  Values outputs(size_t batch, int block, const BlockSlice& part) const {
    torch::NoGradGuard no_grad;
    return ProgramModule(module_)->run_block(block, inputs(batch, part));
  }
  // Keeps what later blocks read.
  void pass(int block, const BlockSlice& part, const std::set<std::string>& later) {
    for (size_t i = 0; i < values_.size(); ++i) {
      for (auto& [name, value] : outputs(i, block, part)) values_[i][name] = value;
      std::erase_if(values_[i],
                    [&](const auto& item) { return later.count(item.first) == 0; });
    }
  }

 private:
  ProgramModule module_;
  std::vector<Values> values_;
};

std::vector<size_t> order_of(size_t count, uint64_t seed, int block, int64_t epoch) {
  std::vector<size_t> order(count);
  std::iota(order.begin(), order.end(), size_t{0});
  SplitMix64 random(mix64(seed) ^ mix64(static_cast<uint64_t>(block) + 1) ^
                    mix64(static_cast<uint64_t>(epoch) + 0x100000));
  for (size_t i = count; i > 1; --i) std::swap(order[i - 1], order[random.below(i)]);
  return order;
}

double mean_loss(const Stream& stream, const std::vector<Values>& targets, int block,
                 const BlockSlice& part) {
  double sum = 0;
  for (size_t i = 0; i < stream.size(); ++i)
    sum += relative_loss(stream.outputs(i, block, part), targets[i]).item<double>();
  return sum / static_cast<double>(stream.size());
}

}  // namespace

std::vector<BlockFit> train_blocks(ProgramModule module, ProgramModule teacher,
                                   const std::vector<torch::Tensor>& inputs,
                                   const TrainOptions& options,
                                   const std::filesystem::path& checkpoint, bool resume,
                                   const Progress& progress) {
  const Program& program = module->program();
  const int last = program.block_count() - 1;
  if (last < 0) {
    fail(StatusCode::invalid_argument,
         "a model of blocks was required; found none; train it as a whole");
  }
  if (inputs.empty()) {
    fail(StatusCode::invalid_argument,
         "at least one batch was required; found none; give more data");
  }
  for (ProgramModule one : {module, teacher}) {
    one->to(at::Device(options.device));
    one->eval();
    one->set_bf16_products(options.precision == "bf16");
  }
  const int64_t batches = static_cast<int64_t>(inputs.size());
  const int64_t steps = std::max<int64_t>(
      1, options.steps > 0 ? options.steps
                           : std::llround(options.epochs * static_cast<double>(batches)));
  TrainingState state;
  state.module = module;
  state.settings =
      cat("blocks ", last + 1, "\n", training_settings(options, steps, batches));
  if (resume && checkpoint_exists(checkpoint)) read_checkpoint(checkpoint, state);

  Stream stream(module, inputs), wanted(teacher, inputs);
  std::vector<BlockFit> fits;
  for (int block = kFirstBlock; block <= last; ++block) {
    const BlockSlice part = slice(program, block);
    std::set<std::string> later;
    for (int b = block + 1; b <= last; ++b) {
      for (const std::string& name : slice(program, b).inputs) later.insert(name);
    }
    // The embedding is part of no block; blocks that a resumed run has done are passed.
    if (block >= 0 && block >= state.step) {
      std::vector<Values> targets;
      for (size_t i = 0; i < wanted.size(); ++i)
        targets.push_back(wanted.outputs(i, block, part));
      BlockFit fit{.block = block, .before = mean_loss(stream, targets, block, part)};
      Optimizer optimizer = make_optimizer(parameters_of(module, part), options);
      const std::vector<torch::Tensor> trained = optimizer.parameters();
      std::vector<size_t> order;
      for (int64_t step = 0; step < steps; ++step) {
        if (cancel_requested()) {
          fail(StatusCode::cancelled,
               cat("block ", block, " of ", last + 1, ": interrupted; ",
                   checkpoint.empty() ? "nothing was written"
                                      : "blocks before it are kept; continue with "
                                        "--resume"));
        }
        if (step % batches == 0)
          order = order_of(inputs.size(), options.seed, block, step / batches);
        const size_t batch = order[static_cast<size_t>(step % batches)];
        optimizer.set_rate(learning_rate_at(options, step, steps));
        optimizer.optimizer->zero_grad();
        torch::Tensor loss = relative_loss(
            module->run_block(block, stream.inputs(batch, part)), targets[batch]);
        const double value = loss.item<double>();
        if (!std::isfinite(value)) {
          fail(StatusCode::out_of_range, cat("block ", block, ", step ", step,
                                             ": a finite loss was required; found ",
                                             value, "; lower qat.blocks.learning_rate"));
        }
        loss.backward();
        clip_gradients(trained, options.clip_norm);
        optimizer.optimizer->step();
        keep_scales_positive(module);
        if (progress) {
          progress("train blocks", cat("block ", block, ", error ", value),
                   block * steps + step + 1, (last + 1) * steps);
        }
      }
      optimizer.optimizer->zero_grad();
      fit.after = mean_loss(stream, targets, block, part);
      state.history.push_back({.step = block,
                               .loss = fit.after,
                               .learning_rate = fit.before,
                               .gradient_norm = 0});
      state.step = block + 1;
      if (!checkpoint.empty() && Ranks::instance().is_first())
        write_checkpoint(checkpoint, state);
    }
    if (block == last) break;
    stream.pass(block, part, later);
    wanted.pass(block, part, later);
  }
  for (const TrainStep& entry : state.history)
    fits.push_back({static_cast<int>(entry.step), entry.learning_rate, entry.loss});
  for (ProgramModule one : {module, teacher}) {
    one->to(at::kCPU);
    one->set_bf16_products(false);
  }
  return fits;
}

}  // namespace nibble
