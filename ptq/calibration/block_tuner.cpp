#include "ptq/calibration/block_tuner.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>

#include "kernels/base/cancel.h"
#include "kernels/base/splitmix64.h"
#include "ptq/error.h"
#include "ptq/methods/low_rank.h"
#include "ptq/module/program_module.h"
#include "ptq/one_thread.h"

namespace nibble {
namespace {

constexpr int64_t kShards = 4;

// One weight on its way: float state in, codes and scales out.
struct Tuned {
  std::string tensor;
  CodedMatrix start;
  std::vector<float> center;    // u, [rows * cols]
  std::vector<float> rounding;  // V
  std::vector<float> ratio;     // A, [scales]
  std::vector<int32_t> group;   // of a column: offset in its row's scales
  int64_t scales_each_row = 0;  // 0: one for all
  float lowest = 0, highest = 0;
  bool minimum = false;
  std::vector<float> offsets;  // expanded, empty when there are none
};

// The code (as a number) of element i.
float code_of(const Tuned& t, size_t i) {
  const float q = std::nearbyint(t.center[i] + t.rounding[i]);
  return std::min(std::max(q, t.lowest), t.highest);
}

float scale_of(const Tuned& t, size_t at) {
  return round_to_element(t.start.scheme.scales[0].element,
                          t.start.scales[0].values[at] * (1 + t.ratio[at]));
}

size_t scale_index(const Tuned& t, int64_t r, int64_t c) {
  return static_cast<size_t>(r * t.scales_each_row + t.group[static_cast<size_t>(c)]);
}

Tuned begin_tuning(const std::string& tensor, const CodedMatrix& start,
                   const std::vector<float>& weight) {
  Tuned t;
  t.tensor = tensor;
  t.start = start;
  const size_t count = weight.size();
  t.rounding.assign(count, 0);
  t.ratio.assign(start.scales[0].values.size(), 0);
  t.lowest = static_cast<float>(code_lowest(start.scheme));
  t.highest = static_cast<float>(code_highest(start.scheme));
  t.minimum = start.scheme.offset == OffsetKind::minimum;
  if (start.scheme.offset != OffsetKind::none) t.offsets = expanded_offsets(start);
  const Block& block = start.scheme.scales[0].block;
  t.scales_each_row = start.scales[0].rows == start.rows ? start.scales[0].cols : 0;
  for (int64_t c = 0; c < start.cols; ++c) {
    t.group.push_back(
        block.kind == Block::Kind::group ? static_cast<int32_t>(c / block.cols) : 0);
  }
  const bool is_signed = t.lowest < 0;
  t.center.resize(count);
  parallel_for(start.rows, [&](int64_t r) {
    for (int64_t c = 0; c < start.cols; ++c) {
      const auto i = static_cast<size_t>(r * start.cols + c);
      const float s = start.scales[0].values[scale_index(t, r, c)];
      const float offset = t.offsets.empty() ? 0 : t.offsets[i];
      const float u = t.minimum ? (weight[i] - offset) / s : weight[i] / s + offset;
      const float q = is_signed ? static_cast<float>(static_cast<int8_t>(start.codes[i]))
                                : static_cast<float>(start.codes[i]);
      // Just inside the cell of q: a value on its edge would round to even.
      constexpr float kHalf = 0.4999f;
      t.center[i] = std::min(std::max(u, q - kHalf), q + kHalf);
    }
  });
  return t;
}

at::Tensor dequantized(const Tuned& t) {
  at::Tensor weight = at::empty({t.start.rows, t.start.cols}, at::kFloat);
  float* w = weight.data_ptr<float>();
  parallel_for(t.start.rows, [&](int64_t r) {
    for (int64_t c = 0; c < t.start.cols; ++c) {
      const auto i = static_cast<size_t>(r * t.start.cols + c);
      const float s = scale_of(t, scale_index(t, r, c));
      const float offset = t.offsets.empty() ? 0 : t.offsets[i];
      const float q = code_of(t, i);
      w[i] = t.minimum ? s * q + offset : s * (q - offset);
    }
  });
  return weight;
}

CodedMatrix coded(const Tuned& t) {
  CodedMatrix result = t.start;
  for (size_t at = 0; at < t.ratio.size(); ++at)
    result.scales[0].values[at] = scale_of(t, at);
  for (size_t i = 0; i < result.codes.size(); ++i)
    result.codes[i] = static_cast<uint8_t>(static_cast<int>(code_of(t, i)));
  return result;
}

float sign(float x) { return x > 0 ? 1.0f : x < 0 ? -1.0f : 0.0f; }

// One step of signed descent from dL/dW~.
void step(Tuned& t, const at::Tensor& gradient, float rate) {
  const float* g = gradient.data_ptr<float>();
  const size_t scales = t.ratio.size();
  std::vector<float> scale_gradient(scales, 0);
  const auto row = [&](int64_t r) {
    for (int64_t c = 0; c < t.start.cols; ++c) {
      const auto i = static_cast<size_t>(r * t.start.cols + c);
      const size_t at = scale_index(t, r, c);
      const float offset = t.offsets.empty() || t.minimum ? 0 : t.offsets[i];
      scale_gradient[at] += g[i] * (code_of(t, i) - offset);
      // Outside the range rounding changes nothing; dW~/dV = s > 0 inside.
      const float u = t.center[i] + t.rounding[i];
      if (u < t.lowest - 0.5f || u > t.highest + 0.5f) continue;
      t.rounding[i] = std::min(std::max(t.rounding[i] - rate * sign(g[i]), -0.5f), 0.5f);
    }
  };
  if (t.scales_each_row > 0) {
    parallel_for(t.start.rows, row);
  } else {
    for (int64_t r = 0; r < t.start.rows; ++r) row(r);
  }
  for (size_t at = 0; at < scales; ++at) {
    t.ratio[at] =
        std::min(std::max(t.ratio[at] - rate * sign(scale_gradient[at]), -0.5f), 0.5f);
  }
}

class Tuner {
 public:
  Tuner(const BlockProblem& problem, const std::map<std::string, CodedMatrix>& weights)
      : problem_(problem),
        device_(problem.device),
        rounding_(rounding_on(device_, problem.rounding)) {
    const Program& program = problem.model.program;
    for (const std::string& tensor : problem.tensors) {
      const Tensor& values = problem.model.tensors.at(tensor);
      tuned_.push_back(
          begin_tuning(tensor, weights.at(tensor), value_or_throw(to_float(values))));
      shapes_.push_back(values.shape);
    }
    for (size_t n = problem.begin; n < problem.end; ++n) {
      for (const auto& [role, name] : program.nodes[n].parameters) {
        if (fixed_.count(name) || is_tuned(name)) continue;
        const Tensor& values = problem.model.tensors.at(name);
        const auto solved = weights.find(name);
        if (solved == weights.end()) {
          fixed_[name] = to_torch(values).to(device_);
          continue;
        }
        at::Tensor weight = at::empty(values.shape, at::kFloat);
        throw_if_error(dequantize(
            solved->second,
            {weight.data_ptr<float>(), solved->second.rows, solved->second.cols}));
        if (const auto factors = problem.low_rank.find(name);
            factors != problem.low_rank.end()) {
          add_factors(factors->second, {weight.data_ptr<float>(), solved->second.rows,
                                        solved->second.cols});
        }
        fixed_[name] = weight.to(device_);
      }
    }
    double square = 0, count = 0;
    for (const ValueStream::Values& target : problem.targets) {
      for (const auto& [name, value] : target) {
        square += value.square().sum(at::kDouble).item<double>();
        count += static_cast<double>(value.numel());
      }
    }
    mean_square_ = count > 0 ? square / count : 1;
  }

  TunedBlock run() {
    const AutoRoundOptions& options = problem_.plan.autoround;
    const auto samples = static_cast<int64_t>(problem_.inputs.size());
    const int64_t batch = std::min<int64_t>(options.batch, samples);
    TunedBlock result;
    result.loss_before = mean_loss();
    const std::vector<Tuned> start = tuned_;
    SplitMix64 random(static_cast<uint64_t>(problem_.begin) + 1);
    std::vector<int64_t> order;
    const double rate =
        options.learning_rate > 0 ? options.learning_rate : 1.0 / options.iterations;
    for (int i = 0; i < options.iterations; ++i) {
      throw_if_error(check_cancelled("calibrate"));
      std::vector<int64_t> chosen;
      while (static_cast<int64_t>(chosen.size()) < batch) {
        if (order.empty()) order = shuffled(samples, random);
        chosen.push_back(order.back());
        order.pop_back();
      }
      const std::vector<at::Tensor> gradients = gradients_of(chosen);
      const double left = 1 - static_cast<double>(i) / options.iterations;
      for (size_t t = 0; t < tuned_.size(); ++t)
        step(tuned_[t], gradients[t], static_cast<float>(rate * left));
    }
    result.loss_after = mean_loss();
    if (!(result.loss_after < result.loss_before)) {
      tuned_ = start;
      result.loss_after = result.loss_before;
    }
    return result;
  }

  void write(std::map<std::string, CodedMatrix>& weights) const {
    for (const Tuned& t : tuned_) weights[t.tensor] = coded(t);
  }

 private:
  bool is_tuned(const std::string& name) const {
    return std::any_of(tuned_.begin(), tuned_.end(),
                       [&](const Tuned& t) { return t.tensor == name; });
  }

  static std::vector<int64_t> shuffled(int64_t count, SplitMix64& random) {
    std::vector<int64_t> order(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) order[static_cast<size_t>(i)] = i;
    for (int64_t i = count - 1; i > 0; --i) {
      const auto j = static_cast<int64_t>(random.next() % static_cast<uint64_t>(i + 1));
      std::swap(order[static_cast<size_t>(i)], order[static_cast<size_t>(j)]);
    }
    return order;
  }

  std::vector<at::Tensor> weights_now() const {
    std::vector<at::Tensor> weights;
    for (size_t i = 0; i < tuned_.size(); ++i)
      weights.push_back(dequantized(tuned_[i]).reshape(shapes_[i]).to(device_));
    return weights;
  }

  // Sum over the sample's outputs of squared differences, and how many there are.
  at::Tensor loss_of(int64_t sample, const std::vector<at::Tensor>& weights,
                     int64_t* count) const {
    ValueStream::Values parameters = fixed_;
    for (size_t i = 0; i < tuned_.size(); ++i) parameters[tuned_[i].tensor] = weights[i];
    ValueStream::Values values = problem_.inputs[static_cast<size_t>(sample)];
    for (auto& [name, value] : values) value = value.to(device_);
    for (size_t n = problem_.begin; n < problem_.end; ++n) {
      const Node& node = problem_.model.program.nodes[n];
      values[node.outputs.at(0)] = run_node(node, values, parameters, rounding_);
    }
    at::Tensor loss;
    *count = 0;
    for (const auto& [name, target] : problem_.targets[static_cast<size_t>(sample)]) {
      const at::Tensor mine = (values.at(name) - target.to(device_)).square().sum();
      loss = loss.defined() ? loss + mine : mine;
      *count += target.numel();
    }
    return loss;
  }

  double mean_loss() const {
    const std::vector<at::Tensor> weights = weights_now();
    const auto samples = static_cast<int64_t>(problem_.inputs.size());
    std::vector<double> losses(static_cast<size_t>(samples));
    std::vector<int64_t> counts(static_cast<size_t>(samples));
    in_parallel(samples, [&](int64_t i) {
      losses[static_cast<size_t>(i)] =
          loss_of(i, weights, &counts[static_cast<size_t>(i)]).item<double>();
    });
    double sum = 0, count = 0;
    for (int64_t i = 0; i < samples; ++i) {
      sum += losses[static_cast<size_t>(i)];
      count += static_cast<double>(counts[static_cast<size_t>(i)]);
    }
    return sum / count / (mean_square_ > 0 ? mean_square_ : 1);
  }

  // dL/dW~ of each tuned weight, its samples' sum.
  std::vector<at::Tensor> gradients_of(const std::vector<int64_t>& samples) const {
    const std::vector<at::Tensor> weights = weights_now();
    std::vector<std::vector<at::Tensor>> shards(kShards);
    in_parallel(kShards, [&](int64_t shard) {
      const at::AutoGradMode with_gradients(true);
      std::vector<at::Tensor> leaves;
      for (const at::Tensor& weight : weights)
        leaves.push_back(weight.detach().requires_grad_(true));
      std::vector<at::Tensor>& sum = shards[static_cast<size_t>(shard)];
      for (size_t i = static_cast<size_t>(shard); i < samples.size(); i += kShards) {
        int64_t count = 0;
        const at::Tensor loss = loss_of(samples[i], leaves, &count);
        const auto gradients = torch::autograd::grad(
            {loss}, leaves, {}, /*retain_graph=*/false, /*create_graph=*/false,
            /*allow_unused=*/true);
        const at::NoGradGuard no_gradients;
        for (size_t t = 0; t < leaves.size(); ++t) {
          const at::Tensor mine =
              gradients[t].defined() ? gradients[t] : at::zeros_like(leaves[t]);
          if (sum.size() <= t) {
            sum.push_back(mine.clone());
          } else {
            sum[t].add_(mine);
          }
        }
      }
    });
    std::vector<at::Tensor> total;
    for (const std::vector<at::Tensor>& shard : shards) {
      for (size_t t = 0; t < shard.size(); ++t) {
        if (total.size() <= t) {
          total.push_back(shard[t]);
        } else {
          total[t].add_(shard[t]);
        }
      }
    }
    for (at::Tensor& gradient : total) gradient = gradient.cpu().contiguous();
    return total;
  }

  const BlockProblem& problem_;
  at::Device device_;
  InputRounding rounding_;
  std::vector<Tuned> tuned_;
  std::vector<std::vector<int64_t>> shapes_;
  ValueStream::Values fixed_;
  double mean_square_ = 1;
};

}  // namespace

const char* cannot_tune(const QuantScheme& scheme) {
  if (element_info(scheme.code).kind != ElementKind::integer)
    return "its codes are not integers";
  if (scheme.scales.size() != 1) return "it has several scale levels";
  if (scheme.scales[0].shifted) return "its scales are shifted";
  const Block::Kind kind = scheme.scales[0].block.kind;
  if (kind != Block::Kind::group && kind != Block::Kind::row &&
      kind != Block::Kind::tensor)
    return "its scales belong to no row, group of a row or tensor";
  if (element_info(scheme.scales[0].element).kind != ElementKind::minifloat)
    return "its scales are not floats";
  return nullptr;
}

TunedBlock tune_block(const BlockProblem& problem,
                      std::map<std::string, CodedMatrix>& weights) {
  const OneThread one_thread;
  Tuner tuner(problem, weights);
  const TunedBlock result = tuner.run();
  tuner.write(weights);
  return result;
}

}  // namespace nibble
