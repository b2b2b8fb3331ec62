#include "ptq/calibration/block_tuner.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <tuple>

#include "kernels/base/cancel.h"
#include "kernels/base/splitmix64.h"
#include "ptq/distributed/ranks.h"
#include "ptq/error.h"
#include "ptq/one_thread.h"

namespace nibble {
namespace {

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
                   const at::Tensor& values) {
  Tuned t;
  t.tensor = tensor;
  t.start = start;
  const float* const weight = values.const_data_ptr<float>();
  const auto count = static_cast<size_t>(values.numel());
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
      // Outside the range rounding changes nothing; dW~/dV = s inside.
      const float u = t.center[i] + t.rounding[i];
      if (u < t.lowest - 0.5f || u > t.highest + 0.5f) continue;
      const float turned = sign(t.start.scales[0].values[at]);
      t.rounding[i] =
          std::min(std::max(t.rounding[i] - rate * turned * sign(g[i]), -0.5f), 0.5f);
    }
  };
  if (t.scales_each_row > 0) {
    parallel_for(t.start.rows, row);
  } else {
    for (int64_t r = 0; r < t.start.rows; ++r) row(r);
  }
  for (size_t at = 0; at < scales; ++at) {
    const float turned = sign(t.start.scales[0].values[at]);
    t.ratio[at] = std::min(
        std::max(t.ratio[at] - rate * turned * sign(scale_gradient[at]), -0.5f), 0.5f);
  }
}

class Tuner {
 public:
  Tuner(const BlockProblem& problem, const std::map<std::string, CodedMatrix>& codes)
      : problem_(problem),
        ranks_(Ranks::instance()),
        device_(problem.device),
        rounding_(rounding_on(device_, problem.rounding)) {
    const Program& program = problem.model.program;
    for (const std::string& tensor : problem.tensors) {
      tuned_.push_back(begin_tuning(tensor, codes.at(tensor), problem.weight(tensor)));
      shapes_.push_back(problem.model.tensors.at(tensor).shape);
    }
    for (size_t n = problem.begin; n < problem.end; ++n) {
      for (const auto& [role, name] : program.nodes[n].parameters) {
        if (!fixed_.count(name) && !is_tuned(name))
          fixed_[name] = problem.parameter(name).to(device_);
      }
    }
    const std::vector<double> squares = of_each_sample([&](int64_t sample) {
      double square = 0, count = 0;
      for (const auto& [name, value] : problem.target(sample)) {
        square += value.square().sum(at::kDouble).item<double>();
        count += static_cast<double>(value.numel());
      }
      return std::pair(square, count);
    });
    mean_square_ = mean_of(squares);
    if (!(mean_square_ > 0)) mean_square_ = 1;
  }

  TunedBlock run() {
    const AutoRoundOptions& options = problem_.plan.autoround;
    const int64_t batch = std::min<int64_t>(options.batch, problem_.samples);
    TunedBlock result;
    result.loss_before = mean_loss();
    SplitMix64 random(static_cast<uint64_t>(problem_.begin) + 1);
    std::vector<std::vector<int64_t>> order(
        kShards);  // of each shard, what is left of it
    int turn = 0;
    const double rate =
        options.learning_rate > 0 ? options.learning_rate : 1.0 / options.iterations;
    for (int i = 0; i < options.iterations; ++i) {
      throw_if_error(check_cancelled("calibrate"));
      std::vector<std::vector<int64_t>> chosen(kShards);
      for (int64_t taken = 0; taken < batch; ++turn) {
        const int shard = turn % kShards;
        const auto at = static_cast<size_t>(shard);
        if (first_of(shard) == first_of(shard + 1)) continue;
        if (order[at].empty())
          order[at] = shuffled(first_of(shard), first_of(shard + 1), random);
        chosen[at].push_back(order[at].back());
        order[at].pop_back();
        ++taken;
      }
      const std::vector<at::Tensor> gradients = gradients_of(chosen);
      const double left = 1 - static_cast<double>(i) / options.iterations;
      for (size_t t = 0; t < tuned_.size(); ++t)
        step(tuned_[t], gradients[t], static_cast<float>(rate * left));
    }
    result.loss_after = mean_loss();
    if (!(result.loss_after < result.loss_before)) {
      for (Tuned& t : tuned_) {
        std::fill(t.rounding.begin(), t.rounding.end(), 0.0f);
        std::fill(t.ratio.begin(), t.ratio.end(), 0.0f);
      }
      result.loss_after = result.loss_before;
    }
    return result;
  }

  void write(std::map<std::string, CodedMatrix>& codes) const {
    for (const Tuned& t : tuned_) codes[t.tensor] = coded(t);
  }

 private:
  bool is_tuned(const std::string& name) const {
    return std::any_of(tuned_.begin(), tuned_.end(),
                       [&](const Tuned& t) { return t.tensor == name; });
  }

  int64_t first_of(int shard) const { return problem_.samples * shard / kShards; }
  bool is_mine(int shard) const { return ranks_.owner(shard) == ranks_.rank(); }

  static std::vector<int64_t> shuffled(int64_t first, int64_t last, SplitMix64& random) {
    std::vector<int64_t> order;
    for (int64_t i = first; i < last; ++i) order.push_back(i);
    for (size_t i = order.size(); i > 1; --i)
      std::swap(order[i - 1], order[static_cast<size_t>(random.next() % i)]);
    return order;
  }

  // body(sample)'s two numbers, of all samples, on every rank.
  std::vector<double> of_each_sample(
      const std::function<std::pair<double, double>(int64_t)>& body) const {
    at::Tensor both = at::zeros({problem_.samples, 2}, at::kDouble);
    double* values = both.mutable_data_ptr<double>();
    for (int shard = 0; shard < kShards; ++shard) {
      const int64_t first = first_of(shard), count = first_of(shard + 1) - first;
      if (count == 0) continue;
      if (is_mine(shard)) {
        in_parallel(count, [&](int64_t i) {
          std::tie(values[2 * (first + i)], values[2 * (first + i) + 1]) =
              body(first + i);
        });
      }
      at::Tensor part = both.narrow(0, first, count);
      ranks_.broadcast(part, ranks_.owner(shard));
    }
    return {values, values + both.numel()};
  }

  // The sum of the first numbers over that of the second.
  static double mean_of(const std::vector<double>& pairs) {
    double sum = 0, count = 0;
    for (size_t i = 0; i < pairs.size(); i += 2) {
      sum += pairs[i];
      count += pairs[i + 1];
    }
    return count > 0 ? sum / count : 0;
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
    ValueStream::Values values = problem_.input(sample);
    for (auto& [name, value] : values) value = value.to(device_);
    for (size_t n = problem_.begin; n < problem_.end; ++n) {
      const Node& node = problem_.model.program.nodes[n];
      values[node.outputs.at(0)] = run_node(node, values, parameters, rounding_);
    }
    at::Tensor loss;
    *count = 0;
    for (const auto& [name, target] : problem_.target(sample)) {
      const at::Tensor mine = (values.at(name) - target.to(device_)).square().sum();
      loss = loss.defined() ? loss + mine : mine;
      *count += target.numel();
    }
    return loss;
  }

  double mean_loss() const {
    const std::vector<at::Tensor> weights = weights_now();
    return mean_of(of_each_sample([&](int64_t sample) {
             int64_t count = 0;
             const double loss = loss_of(sample, weights, &count).item<double>();
             return std::pair(loss, static_cast<double>(count));
           })) /
           mean_square_;
  }

  // dL/dW~ of each tuned weight, summed over the samples that each shard gives.
  std::vector<at::Tensor> gradients_of(
      const std::vector<std::vector<int64_t>>& chosen) const {
    const std::vector<at::Tensor> weights = weights_now();
    std::vector<std::vector<at::Tensor>> shards(kShards);
    in_parallel(kShards, [&](int64_t shard) {
      if (!is_mine(static_cast<int>(shard))) return;
      const at::AutoGradMode with_gradients(true);
      std::vector<at::Tensor> leaves;
      for (const at::Tensor& weight : weights)
        leaves.push_back(weight.detach().requires_grad_(true));
      std::vector<at::Tensor>& sum = shards[static_cast<size_t>(shard)];
      for (const int64_t sample : chosen[static_cast<size_t>(shard)]) {
        int64_t count = 0;
        const at::Tensor loss = loss_of(sample, leaves, &count);
        const auto gradients = torch::autograd::grad(
            {loss}, leaves, {}, /*retain_graph=*/false, /*create_graph=*/false,
            /*allow_unused=*/true);
        const at::NoGradGuard no_gradients;
        for (size_t t = 0; t < leaves.size(); ++t) {
          const at::Tensor mine =
              gradients[t].defined() ? gradients[t] : at::zeros_like(leaves[t]);
          if (sum.size() <= t) {
            sum.push_back(mine.contiguous());
          } else {
            sum[t].add_(mine);
          }
        }
      }
      for (at::Tensor& gradient : sum) gradient = gradient.cpu().contiguous();
    });
    std::vector<at::Tensor> total(weights.size());
    for (int shard = 0; shard < kShards; ++shard) {
      if (chosen[static_cast<size_t>(shard)].empty()) continue;
      std::vector<at::Tensor>& sum = shards[static_cast<size_t>(shard)];
      sum.resize(weights.size());
      for (size_t t = 0; t < weights.size(); ++t) {
        if (!sum[t].defined()) sum[t] = at::empty(weights[t].sizes(), at::kFloat);
        ranks_.broadcast(sum[t], ranks_.owner(shard));
        if (total[t].defined()) {
          total[t].add_(sum[t]);
        } else {
          total[t] = sum[t].clone();
        }
      }
      sum.clear();
    }
    return total;
  }

  const BlockProblem& problem_;
  Ranks& ranks_;
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
                      std::map<std::string, CodedMatrix>& codes) {
  const OneThread one_thread;
  Tuner tuner(problem, codes);
  const TunedBlock result = tuner.run();
  tuner.write(codes);
  return result;
}

}  // namespace nibble
