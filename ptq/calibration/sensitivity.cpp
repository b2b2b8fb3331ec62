#include "ptq/calibration/sensitivity.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <set>

#include "kernels/base/cancel.h"
#include "kernels/base/splitmix64.h"
#include "kernels/program/layers.h"
#include "ptq/calibration/layer_rows.h"
#include "ptq/calibration/samples.h"
#include "ptq/calibration/sharded_hessian.h"
#include "ptq/calibration/sharded_streams.h"
#include "ptq/error.h"
#include "ptq/methods/round_trip.h"
#include "ptq/one_thread.h"

namespace nibble {
namespace {

template <class... Parts>
Error failure(StatusCode code, const Parts&... parts) {
  return Error(error(code, "[mixed] ", parts...));
}

// The nodes that name each tensor of interest, by index.
std::map<size_t, std::string> wanted_nodes(const Program& program,
                                           const std::vector<std::string>& tensors) {
  const std::set<std::string> names(tensors.begin(), tensors.end());
  std::map<size_t, std::string> wanted;
  for (size_t i = 0; i < program.nodes.size(); ++i) {
    const Node& node = program.nodes[i];
    for (const Layer& layer : layers_of(node)) {
      if (!names.count(layer.tensor)) continue;
      const bool takes = node.op == "linear" || node.op == "embedding" ||
                         (node.op == "conv2d" && node.integer("groups", 1) == 1);
      if (!takes) {
        throw failure(StatusCode::unsupported, layer.name,
                      ": a choice among schemes is foretold for linear, embedding and "
                      "conv2d layers without groups; found ",
                      node.op, "; give this layer a scheme of its own in the recipe");
      }
      wanted[i] = layer.tensor;
    }
  }
  return wanted;
}

// -log p(y) summed over the rows of logits, y drawn from p.
at::Tensor drawn_loss(const at::Tensor& logits, SplitMix64& random) {
  const at::Tensor rows = logits.reshape({-1, logits.size(-1)});
  const at::Tensor logs = at::log_softmax(rows, -1);
  const at::Tensor own = logs.detach().cpu().contiguous();
  const int64_t count = rows.size(0), size = rows.size(1);
  at::Tensor drawn = at::empty({count, 1}, at::kLong);
  std::vector<double> sums(static_cast<size_t>(size));  // of a row's probabilities
  for (int64_t t = 0; t < count; ++t) {
    const float* log = own.const_data_ptr<float>() + t * size;
    double sum = 0;
    for (int64_t i = 0; i < size; ++i)
      sums[static_cast<size_t>(i)] = sum += std::exp(static_cast<double>(log[i]));
    const double u = random.uniform() * sum;
    drawn.data_ptr<int64_t>()[t] = std::min<int64_t>(
        std::upper_bound(sums.begin(), sums.end(), u) - sums.begin(), size - 1);
  }
  return -logs.gather(1, drawn.to(logs.device())).sum();
}

// What a node's outputs say of the loss: sums of squared gradients, over rows.
struct Squares {
  at::Tensor sum;  // f64 [out]
  int64_t rows = 0;

  void add(const at::Tensor& squares, int64_t count) {
    sum = sum.defined() ? sum + squares : squares;
    rows += count;
  }
};

void open_float_stream(const SensitivityProblem& problem, ShardedStreams& streams) {
  const ModelWeights& weights = problem.weights;
  streams.add([&weights](const std::string& name) { return weights.value(name); },
              [&weights](const std::string& name, const at::Tensor& ids) {
                return weights.rows(name, ids);
              });
}

// E[g_o^2] of each wanted node's outputs, by going forward block by block and back again,
// each block once more with what it needs for its gradients.
class OutputMoments {
 public:
  OutputMoments(const SensitivityProblem& problem,
                const std::map<size_t, std::string>& wanted)
      : problem_(problem),
        program_(problem.model.program),
        wanted_(wanted),
        few_(problem.plan),
        ranks_(Ranks::instance()) {
    const int64_t each =
        problem.plan.calibration_sequences / sample_count(problem.model, problem.plan);
    few_.calibration_sequences =
        std::min(few_.calibration_sequences,
                 MixedOptions::kGradientSamples * std::max<int64_t>(each, 1));
    for (size_t i = 0; i < program_.nodes.size(); ++i) {
      if (i == 0 || program_.nodes[i].block != program_.nodes[i - 1].block)
        begins_.push_back(i);
    }
  }

  std::map<size_t, at::Tensor> find() {
    ShardedStreams streams(problem_.model, few_, problem_.data, problem_.options.spill,
                           problem_.options.device);
    open_float_stream(problem_, streams);
    std::vector<std::unique_ptr<SampleStream>> before;  // by part
    for (const size_t begin : begins_) {
      streams.advance(begin);
      before.push_back(streams.fork(0));
      say(before.size());
    }
    gradients_.resize(static_cast<size_t>(sample_count(problem_.model, few_)));
    std::vector<std::map<size_t, Squares>> squares(kShards);
    for (size_t part = begins_.size(); part-- > 0;) {
      load(part, streams.device());
      for (const ShardedStreams::Shard& shard : streams.shards()) {
        for (int64_t first = shard.first; first < shard.last; first += kRound) {
          throw_if_error(check_cancelled("mixed"));
          const int64_t last = std::min(shard.last, first + kRound);
          std::vector<std::map<size_t, Squares>> made(static_cast<size_t>(last - first));
          in_parallel(last - first, [&](int64_t i) {
            made[static_cast<size_t>(i)] = back(part, *before[part], first + i);
          });
          for (const auto& of_sample : made) {
            for (const auto& [node, square] : of_sample)
              squares[static_cast<size_t>(shard.index)][node].add(square.sum,
                                                                  square.rows);
          }
        }
      }
      parameters_.clear();
      before[part]->drop();
      say(2 * begins_.size() - part);
      if (problem_.options.block_done) {
        problem_.options.block_done(
            {.step = "gradients",
             .block = program_.nodes[begins_[part]].block,
             .blocks = program_.block_count(),
             .layers = std::count_if(wanted_.begin(), wanted_.end(),
                                     [&](const auto& entry) {
                                       return entry.first >= begins_[part] &&
                                              entry.first < end_of(part);
                                     }),
             .kept = false,
             .done = static_cast<int64_t>(begins_.size() - part),
             .total = static_cast<int64_t>(begins_.size())});
      }
    }
    return means(squares);
  }

 private:
  void say(size_t done) const {
    if (problem_.options.progress) {
      problem_.options.progress("mixed", "gradients", static_cast<int64_t>(done),
                                static_cast<int64_t>(2 * begins_.size()));
    }
  }

  size_t end_of(size_t part) const {
    return part + 1 < begins_.size() ? begins_[part + 1] : program_.nodes.size();
  }

  void load(size_t part, at::Device device) {
    for (size_t n = begins_[part]; n < end_of(part); ++n) {
      const Node& node = program_.nodes[n];
      if (node.op == "embedding") continue;
      for (const auto& [role, name] : node.parameters) {
        if (!parameters_.count(name))
          parameters_[name] = problem_.weights.value(name).to(device);
      }
    }
  }

  // One sample's way through a part, and back: gradients_ then is at what it read.
  std::map<size_t, Squares> back(size_t part, const SampleStream& before,
                                 int64_t sample) {
    const at::AutoGradMode with_gradients(true);
    const size_t begin = begins_[part], end = end_of(part);
    StreamValues& gradients = gradients_[static_cast<size_t>(sample)];
    StreamValues values = before.values(sample);
    std::vector<at::Tensor> points;  // where gradients are taken
    std::vector<std::string> leaves;
    for (auto& [name, value] : values) {
      if (begin == 0 || !value.is_floating_point()) continue;
      value = value.detach().requires_grad_(true);
      points.push_back(value);
      leaves.push_back(name);
    }
    std::vector<size_t> nodes;
    for (size_t n = begin; n < end; ++n) {
      const Node& node = program_.nodes[n];
      at::Tensor y =
          node.op == "embedding"
              ? problem_.weights
                    .rows(node.parameter("weight"), values.at(node.inputs.at(0)).cpu())
                    .to(values.at(node.inputs.at(0)).device())
              : run_node(node, values, parameters_);
      if (wanted_.count(n)) {
        // A point of its own in the graph, at which the gradient is taken.
        y = y.requires_grad() ? y : y.detach().requires_grad_(true);
        points.push_back(y);
        nodes.push_back(n);
      }
      values[node.outputs.at(0)] = y;
    }
    std::vector<at::Tensor> ends, of_ends;
    if (part + 1 == begins_.size()) {
      SplitMix64 random(static_cast<uint64_t>(sample) + 1);
      ends.push_back(drawn_loss(values.at(program_.outputs.at(0).name), random));
      of_ends.emplace_back();
    } else {
      for (auto& [name, gradient] : gradients) {
        if (!values.at(name).requires_grad()) continue;
        ends.push_back(values.at(name));
        of_ends.push_back(gradient);
      }
    }
    gradients.clear();
    std::map<size_t, Squares> squares;
    if (ends.empty() || points.empty()) return squares;
    const auto found = torch::autograd::grad(ends, points, of_ends, false, false, true);
    const at::NoGradGuard no_gradients;
    for (size_t i = 0; i < leaves.size(); ++i) {
      if (found[i].defined()) gradients[leaves[i]] = found[i];
    }
    for (size_t i = 0; i < nodes.size(); ++i) {
      at::Tensor g = found[leaves.size() + i];
      if (!g.defined()) continue;
      if (program_.nodes[nodes[i]].op == "conv2d") g = g.movedim(1, -1);
      g = g.reshape({-1, g.size(-1)});
      squares[nodes[i]].add(g.to(at::kDouble).square().sum(0).cpu(), g.size(0));
    }
    return squares;
  }

  // The shards' sums in their order, on every rank.
  std::map<size_t, at::Tensor> means(std::vector<std::map<size_t, Squares>>& squares) {
    std::map<size_t, at::Tensor> moments;
    for (const auto& [node, tensor] : wanted_) {
      std::vector<int64_t> rows;
      for (auto& shard : squares) rows.push_back(shard[node].rows);
      rows = ranks_.sum(std::move(rows));
      const int64_t out = problem_.model.tensors.at(tensor).shape.at(
          program_.nodes[node].op == "embedding" ? 1 : 0);
      at::Tensor sum = at::zeros({out}, at::kDouble);
      for (int shard = 0; shard < kShards; ++shard) {
        if (rows[static_cast<size_t>(shard)] == 0) continue;
        at::Tensor& part = squares[static_cast<size_t>(shard)][node].sum;
        if (!part.defined()) part = at::zeros({out}, at::kDouble);
        ranks_.broadcast(part, ranks_.owner(shard));
        sum += part;
      }
      const int64_t total = std::accumulate(rows.begin(), rows.end(), int64_t{0});
      if (total > 0) moments[node] = sum / static_cast<double>(total);
    }
    return moments;
  }

  const SensitivityProblem& problem_;
  const Program& program_;
  const std::map<size_t, std::string>& wanted_;
  Plan few_;  // of as many samples as gradients are taken of
  Ranks& ranks_;
  std::vector<size_t> begins_;  // of the parts: blocks, and what is before and behind
  StreamValues parameters_;     // of the part
  std::vector<StreamValues> gradients_;  // by sample: at what the part behind has read
};

// What the nodes of one value have read: E[x x^T], of an embedding how often each row.
struct InputMoments {
  std::optional<Hessian> products;
  at::Tensor counts;        // f64 [rows of the table]
  int64_t rows = 0;         // that were added up
  double rows_a_token = 1;  // of an image a convolution has a row for every place
};

class InputMomentsFinder {
 public:
  explicit InputMomentsFinder(const SensitivityProblem& problem)
      : problem_(problem),
        ranks_(Ranks::instance()),
        streams_(problem.model, problem.plan, problem.data, problem.options.spill,
                 problem.options.device) {
    open_float_stream(problem, streams_);
  }

  InputMoments at_node(size_t n, const std::string& tensor) {
    const Node& node = problem_.model.program.nodes[n];
    const Tensor& weight = problem_.model.tensors.at(tensor);
    const std::string& value = node.inputs.at(0);
    InputMoments moments;
    if (node.op == "embedding") {
      std::vector<int64_t> counts(static_cast<size_t>(weight.rows()), 0);
      streams_.advance(
          n,
          [&](const ShardedStreams::Shard&, int64_t first, int64_t last) {
            for (int64_t sample = first; sample < last; ++sample) {
              const at::Tensor ids =
                  streams_[0].value(sample, value).cpu().to(at::kLong).contiguous();
              const int64_t* id = ids.const_data_ptr<int64_t>();
              for (int64_t i = 0; i < ids.numel(); ++i)
                ++counts[static_cast<size_t>(id[i])];
            }
          },
          [](const ShardedStreams::Shard&) {});
      counts = ranks_.sum(std::move(counts));
      moments.counts = at::tensor(at::ArrayRef<int64_t>(counts)).to(at::kDouble);
      moments.rows = std::accumulate(counts.begin(), counts.end(), int64_t{0});
      return moments;
    }
    ShardedHessian sum(ranks_, weight.cols(), streams_.device());
    streams_.advance(
        n,
        [&](const ShardedStreams::Shard&, int64_t first, int64_t last) {
          for (int64_t sample = first; sample < last; ++sample) {
            const at::Tensor rows =
                layer_rows(node, problem_.model, streams_[0].value(sample, value));
            sum.shard().accumulate(rows.contiguous());
          }
        },
        [&](const ShardedStreams::Shard&) { sum.end_shard(); });
    moments.products.emplace(sum.finish());
    moments.rows = moments.products->tokens();
    const int64_t tokens = problem_.model.program.is_language_model()
                               ? moments.rows
                               : problem_.plan.calibration_sequences;
    moments.rows_a_token = static_cast<double>(moments.rows) /
                           static_cast<double>(std::max<int64_t>(tokens, 1));
    return moments;
  }

 private:
  const SensitivityProblem& problem_;
  Ranks& ranks_;
  ShardedStreams streams_;
};

// One layer's nats under each scheme, from what one of its nodes reads and gives; from
// rows evenly apart where `judged` says so and there are many.
std::vector<double> losses_of(const at::Tensor& whole, const InputMoments& inputs,
                              const at::Tensor& all_outputs,
                              const std::vector<QuantScheme>& schemes, bool full_range,
                              bool judged) {
  const auto total = static_cast<double>(std::max<int64_t>(inputs.rows, 1));
  const bool gathers = inputs.counts.defined();
  std::vector<float> importance;
  at::Tensor products;
  if (!gathers) {
    products = inputs.products->matrix();
    const at::Tensor diagonal = (products.diagonal() / total).to(at::kFloat).contiguous();
    const float most = diagonal.max().item<float>();
    for (int64_t c = 0; c < diagonal.size(0); ++c)
      importance.push_back(std::max(diagonal.const_data_ptr<float>()[c], 1e-6f * most));
    if (!(most > 0)) importance.clear();
  }
  ScaleRule rule{.kind = ScaleRule::Kind::mse, .mse_steps = 20};
  rule.full_range = full_range;
  std::vector<double> losses(schemes.size());
  in_parallel(static_cast<int64_t>(schemes.size()), [&](int64_t i) {
    const QuantScheme& scheme = schemes[static_cast<size_t>(i)];
    const at::Tensor weight = judged ? judged_rows(whole, scheme) : whole;
    const int64_t stride = (whole.size(0) + weight.size(0) - 1) / weight.size(0);
    const at::Tensor outputs =
        gathers ? all_outputs : all_outputs.slice(0, 0, whole.size(0), stride);
    const double share =
        static_cast<double>(whole.size(0)) / static_cast<double>(weight.size(0));
    double sum = 0;
    over_rows(weight.size(0), scheme, [&](int64_t first, int64_t count) {
      const at::Tensor rows = weight.narrow(0, first, count).contiguous();
      const at::Tensor difference =
          (round_trip(rows, scheme, rule, importance) - rows).to(at::kDouble);
      if (gathers) {
        const at::Tensor each =
            difference.square_().mul_(inputs.counts.narrow(0, first, count).unsqueeze(1));
        sum += (each.sum(0) * outputs).sum().item<double>();
      } else {
        const at::Tensor each = (at::mm(difference, products) * difference).sum(1);
        sum += (each * outputs.narrow(0, first, count)).sum().item<double>();
      }
    });
    losses[static_cast<size_t>(i)] = 0.5 * inputs.rows_a_token * share * sum / total;
  });
  return losses;
}

constexpr const char* kGradients = "gradients";
constexpr const char* kLosses = "mixed";

// As output_moments, by node; of an interrupted run where that had all of them.
std::map<size_t, at::Tensor> known_or_found(const SensitivityProblem& problem,
                                            const std::map<size_t, std::string>& wanted) {
  const Program& program = problem.model.program;
  std::map<size_t, at::Tensor> moments;
  for (const auto& [node, tensor] : wanted) {
    const auto known =
        known_everywhere(problem.found, kGradients, program.nodes[node].name);
    if (!known) break;
    moments[node] = at::tensor(at::ArrayRef<double>(known->scale), at::kDouble);
  }
  if (moments.size() == wanted.size()) return moments;
  moments = OutputMoments(problem, wanted).find();
  for (const auto& [node, moment] : moments) {
    if (!at::isfinite(moment).all().item<bool>()) {
      throw failure(
          StatusCode::out_of_range, program.nodes[node].name,
          ": gradients of its outputs must be finite on the calibration data; "
          "found NaN or infinity; check the weights, or calibrate on other data");
    }
    const double* values = moment.const_data_ptr<double>();
    problem.found.put(kGradients, program.nodes[node].name,
                      {{values, values + moment.numel()}, {}});
  }
  problem.found.end_block();
  return moments;
}

}  // namespace

MixedLosses predicted_losses(const SensitivityProblem& problem,
                             const std::vector<std::string>& tensors,
                             const std::vector<QuantScheme>& schemes) {
  const OneThread one_thread;
  const Program& program = problem.model.program;
  MixedLosses losses;
  std::vector<std::string> unknown;
  for (const std::string& tensor : tensors) {
    if (const auto known = known_everywhere(problem.found, kLosses, tensor)) {
      losses[tensor] = known->scale;
    } else {
      losses[tensor].assign(schemes.size(), 0);
      unknown.push_back(tensor);
    }
  }
  const std::map<size_t, std::string> wanted = wanted_nodes(program, unknown);
  if (wanted.empty()) return losses;
  const std::map<size_t, at::Tensor> outputs =
      known_or_found(problem, wanted_nodes(program, tensors));
  std::map<std::string, size_t> last_node;  // of a tensor that several nodes read
  for (const auto& [n, tensor] : wanted) last_node[tensor] = n;
  InputMomentsFinder finder(problem);
  std::string last_value;
  InputMoments moments;  // of that value; shared by its readers
  const StreamOptions& options = problem.options;
  BlockDone done{.step = kLosses,
                 .blocks = program.block_count(),
                 .total = static_cast<int64_t>(wanted.size())};
  for (auto at = wanted.begin(); at != wanted.end(); ++at) {
    const auto& [n, tensor] = *at;
    const Node& node = program.nodes[n];
    // Two convolutions of one value may unfold it differently.
    const std::string value =
        cat(node.op, " ", node.inputs.at(0), node.op == "conv2d" ? node.name : "");
    if (value != last_value) {
      moments = {};
      moments = finder.at_node(n, tensor);
      last_value = value;
    }
    const auto given = outputs.find(n);
    if (given != outputs.end()) {
      const std::vector<double> mine =
          losses_of(problem.weights.matrix(tensor), moments, given->second, schemes,
                    problem.plan.find(tensor)->rule.full_range,
                    node.op == "linear" && node.block >= 0 && node.block != kLastBlock);
      for (size_t i = 0; i < schemes.size(); ++i) {
        losses[tensor][i] += mine[i];
        if (std::isfinite(losses[tensor][i])) continue;
        throw failure(StatusCode::out_of_range, node.name,
                      ": its inputs must be finite on the calibration data; found NaN or "
                      "infinity; check the weights, or calibrate on other data");
      }
    }
    if (last_node.at(tensor) == n)
      problem.found.put(kLosses, tensor, {losses[tensor], {}});
    ++done.done;
    ++done.layers;
    done.block = node.block;
    if (options.progress) options.progress("mixed", node.name, done.done, done.total);
    const auto next = std::next(at);
    if (next != wanted.end() && program.nodes[next->first].block == node.block) continue;
    problem.found.end_block();
    if (options.block_done) options.block_done(done);
    done.layers = 0;
  }
  return losses;
}

}  // namespace nibble
