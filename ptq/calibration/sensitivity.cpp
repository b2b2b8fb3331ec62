#include "ptq/calibration/sensitivity.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <optional>
#include <set>

#include "kernels/base/cancel.h"
#include "kernels/base/splitmix64.h"
#include "kernels/program/layers.h"
#include "ptq/calibration/samples.h"
#include "ptq/error.h"
#include "ptq/methods/hessian.h"
#include "ptq/methods/round_trip.h"
#include "ptq/module/program_module.h"
#include "ptq/one_thread.h"

namespace nibble {
namespace {

// Sequences (samples of images) that are enough for a mean of squares.
constexpr int64_t kBackward = 32;

template <class... Parts>
Error failure(StatusCode code, const Parts&... parts) {
  return Error(error(code, "[mixed] ", parts...));
}

at::Tensor parameter(const Artifact& model, const std::string& name) {
  const auto found = model.tensors.find(name);
  if (found != model.tensors.end()) return to_torch(found->second);
  throw failure(StatusCode::not_found, name,
                ": the program names it; the model has it not");
}

// x as the rows that the layer's weight [out, in] multiplies.
at::Tensor input_rows(const Node& node, const std::vector<int64_t>& weight,
                      const at::Tensor& x) {
  if (node.op != "conv2d") return x.reshape({-1, x.size(-1)});
  const at::Tensor columns = at::im2col(
      x, {weight.at(2), weight.at(3)}, {1, 1}, node.integers("padding", {0, 0}),
      node.integers("stride", {1, 1}));  // [n, in, places]
  return columns.transpose(1, 2).reshape({-1, columns.size(1)});
}

// The layers of interest: which nodes name each tensor.
struct Wanted {
  std::map<std::string, std::vector<size_t>> nodes;  // tensor -> indices of its nodes
};

Wanted wanted_layers(const Program& program, const std::vector<std::string>& tensors) {
  const std::set<std::string> names(tensors.begin(), tensors.end());
  Wanted wanted;
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
      wanted.nodes[layer.tensor].push_back(i);
    }
  }
  return wanted;
}

// -log p(y) summed over the rows of logits, y drawn from p.
at::Tensor drawn_loss(const at::Tensor& logits, SplitMix64& random) {
  const at::Tensor rows = logits.reshape({-1, logits.size(-1)});
  const at::Tensor logs = at::log_softmax(rows, -1);
  const at::Tensor sums =
      logs.detach().cpu().to(at::kDouble).exp().cumsum(-1).contiguous();
  const int64_t count = rows.size(0), size = rows.size(1);
  at::Tensor drawn = at::empty({count, 1}, at::kLong);
  const double* sum = sums.data_ptr<double>();
  for (int64_t t = 0; t < count; ++t) {
    const double* row = sum + t * size;
    const double u = random.uniform() * row[size - 1];
    drawn.data_ptr<int64_t>()[t] =
        std::min<int64_t>(std::upper_bound(row, row + size, u) - row, size - 1);
  }
  return -logs.gather(1, drawn.to(logs.device())).sum();
}

// E[g_o^2] of each wanted node's outputs, f64 [out], over rows.
std::map<size_t, at::Tensor> output_moments(const Artifact& model, const Plan& plan,
                                            const CalibrationData& data,
                                            const Wanted& wanted,
                                            const Progress& progress) {
  const Program& program = model.program;
  std::set<size_t> watched;
  for (const auto& [tensor, nodes] : wanted.nodes)
    watched.insert(nodes.begin(), nodes.end());
  const at::Device device(data.device);
  StreamValues parameters;
  for (const Node& node : program.nodes) {
    for (const auto& [role, name] : node.parameters) {
      if (!parameters.count(name)) parameters[name] = parameter(model, name).to(device);
    }
  }
  std::vector<StreamValues> samples = make_samples(model, plan, data);
  const int64_t count =
      std::min<int64_t>(kBackward, static_cast<int64_t>(samples.size()));
  std::vector<std::map<size_t, at::Tensor>> squares(static_cast<size_t>(count));
  std::vector<std::map<size_t, int64_t>> rows(static_cast<size_t>(count));
  for (int64_t first = 0; first < count; first += kRound) {
    throw_if_error(check_cancelled("mixed"));
    const int64_t last = std::min(count, first + kRound);
    in_parallel(last - first, [&](int64_t i) {
      const auto at = static_cast<size_t>(first + i);
      const at::AutoGradMode with_gradients(true);
      StreamValues values = samples[at];
      for (auto& [name, value] : values) value = value.to(device);
      std::vector<at::Tensor> outputs;
      for (size_t n = 0; n < program.nodes.size(); ++n) {
        const Node& node = program.nodes[n];
        at::Tensor y = run_node(node, values, parameters);
        if (watched.count(n)) {
          // A point of its own in the graph, at which the gradient is taken.
          y = y.requires_grad() ? y : y.detach().requires_grad_(true);
          outputs.push_back(y);
        }
        values[node.outputs.at(0)] = y;
      }
      SplitMix64 random(at + 1);
      const at::Tensor loss = drawn_loss(values.at(program.outputs.at(0).name), random);
      const auto gradients =
          torch::autograd::grad({loss}, outputs, {}, false, false, true);
      const at::NoGradGuard no_gradients;
      size_t k = 0;
      for (const size_t n : watched) {
        at::Tensor g = gradients[k++];
        if (!g.defined()) continue;
        if (program.nodes[n].op == "conv2d") g = g.movedim(1, -1);
        g = g.reshape({-1, g.size(-1)});
        squares[at][n] = g.to(at::kDouble).square().sum(0).cpu();
        rows[at][n] = g.size(0);
      }
    });
    for (int64_t i = first; i < last; ++i) samples[static_cast<size_t>(i)].clear();
    if (progress) progress("mixed", "gradients", last, count);
  }
  std::map<size_t, at::Tensor> moments;
  for (const size_t n : watched) {
    at::Tensor sum;
    int64_t total = 0;
    for (int64_t i = 0; i < count; ++i) {
      const auto found = squares[static_cast<size_t>(i)].find(n);
      if (found == squares[static_cast<size_t>(i)].end()) continue;
      sum = sum.defined() ? sum + found->second : found->second;
      total += rows[static_cast<size_t>(i)][n];
    }
    if (sum.defined())
      moments[n] = sum / static_cast<double>(std::max<int64_t>(total, 1));
  }
  return moments;
}

// One layer's nats under each scheme, from what one of its nodes reads and gives.
std::vector<double> losses_of(const at::Tensor& weight, const at::Tensor& inputs,
                              const at::Tensor& outputs, double rows_a_token,
                              const std::vector<QuantScheme>& schemes) {
  const bool gathers = inputs.dim() == 1;  // an embedding: how often each row is read
  std::vector<float> importance;
  if (!gathers) {
    const at::Tensor diagonal = inputs.diagonal().to(at::kFloat).contiguous();
    const float most = diagonal.max().item<float>();
    for (int64_t c = 0; c < diagonal.size(0); ++c)
      importance.push_back(std::max(diagonal.data_ptr<float>()[c], 1e-6f * most));
    if (!(most > 0)) importance.clear();
  }
  const ScaleRule rule{.kind = ScaleRule::Kind::mse, .mse_steps = 20};
  std::vector<double> losses(schemes.size());
  in_parallel(static_cast<int64_t>(schemes.size()), [&](int64_t i) {
    const at::Tensor difference =
        (round_trip(weight, schemes[static_cast<size_t>(i)], rule, importance) - weight)
            .to(at::kDouble);
    const at::Tensor each = gathers ? (difference.square() * inputs.unsqueeze(1)).sum(0)
                                    : (at::mm(difference, inputs) * difference).sum(1);
    losses[static_cast<size_t>(i)] =
        0.5 * rows_a_token * (each * outputs).sum().item<double>();
  });
  return losses;
}

}  // namespace

std::map<std::string, std::vector<double>> predicted_losses(
    const Artifact& model, const Plan& plan, const CalibrationData& data,
    const std::vector<std::string>& tensors, const std::vector<QuantScheme>& schemes,
    const Progress& progress) {
  const OneThread one_thread;
  const Program& program = model.program;
  const Wanted wanted = wanted_layers(program, tensors);
  const std::map<size_t, at::Tensor> outputs =
      output_moments(model, plan, data, wanted, progress);

  std::map<size_t, std::string> at_node;
  for (const auto& [tensor, nodes] : wanted.nodes) {
    for (const size_t node : nodes) at_node[node] = tensor;
  }
  std::map<std::string, std::vector<double>> losses;
  for (const std::string& tensor : tensors) losses[tensor].assign(schemes.size(), 0);

  ValueStream stream(
      program, make_samples(model, plan, data),
      [&](const std::string& name) { return parameter(model, name); }, data.device);
  size_t done = 0;
  int64_t visited = 0;
  std::map<std::string, at::Tensor> moments;  // of a value; shared by its readers
  std::map<std::string, double> rows_a_token;
  for (const auto& [n, tensor] : at_node) {
    const Node& node = program.nodes[n];
    const at::Tensor weight = to_matrix(model.tensors.at(tensor));
    const bool gathers = node.op == "embedding";
    // Two convolutions of one value may unfold it differently.
    const std::string key =
        cat(node.inputs.at(0), node.op == "conv2d" ? " of " + node.name : "",
            gathers ? " ids" : "");
    if (!moments.count(key)) {
      moments.clear();
      rows_a_token.clear();
      std::optional<Hessian> hessian;
      at::Tensor counts = at::zeros({gathers ? weight.size(0) : 0}, at::kDouble);
      int64_t rows = 0;
      for (int64_t first = 0; first < stream.size(); first += kRound) {
        throw_if_error(check_cancelled("mixed"));
        const int64_t last = std::min(stream.size(), first + kRound);
        stream.run(done, n, first, last);
        for (int64_t sample = first; sample < last; ++sample) {
          const at::Tensor& x = stream.value(sample, node.inputs.at(0));
          if (gathers) {
            counts += at::bincount(x.flatten(), {}, weight.size(0)).to(at::kDouble);
            rows += x.numel();
            continue;
          }
          const at::Tensor mine =
              input_rows(node, model.tensors.at(tensor).shape, x).contiguous();
          if (!hessian) hessian.emplace(mine.size(1), data.device);
          hessian->accumulate(mine);
          rows += mine.size(0);
        }
      }
      done = n;
      if (hessian) hessian->to_cpu();
      const auto total = static_cast<double>(std::max<int64_t>(rows, 1));
      moments[key] = (gathers ? counts : hessian->matrix()) / total;
      // Of an image a convolution has a row for every place.
      const int64_t images =
          program.is_language_model() ? rows : plan.calibration_sequences;
      rows_a_token[key] = total / static_cast<double>(std::max<int64_t>(images, 1));
    }
    const auto given = outputs.find(n);
    if (given != outputs.end()) {
      const std::vector<double> mine = losses_of(weight, moments.at(key), given->second,
                                                 rows_a_token.at(key), schemes);
      for (size_t i = 0; i < schemes.size(); ++i) losses[tensor][i] += mine[i];
    }
    if (progress)
      progress("mixed", node.name, ++visited, static_cast<int64_t>(at_node.size()));
  }
  return losses;
}

}  // namespace nibble
