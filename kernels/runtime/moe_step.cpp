#include "kernels/runtime/moe_step.h"

#include <algorithm>
#include <memory>

#include "kernels/ops/moe/moe.h"
#include "kernels/ops/silu_mul/silu_mul.h"
#include "kernels/program/layers.h"
#include "kernels/runtime/layer_weight.h"

namespace nibble {
namespace {

Result<PreparedLinear> prepare(const Artifact& artifact, const Layer& layer,
                               const ExecutorOptions& options,
                               std::map<std::string, std::string>* kernels) {
  const auto scheme = artifact.layers.find(layer.tensor);
  if (scheme != artifact.layers.end() && scheme->second.input) {
    return error(StatusCode::unsupported, "[runtime] ", layer.name,
                 ": experts read floats; found an input scheme ",
                 to_string(scheme->second.input->scheme),
                 "; leave it out, and run with --compute int8 where int8 is wanted");
  }
  NIBBLE_ASSIGN_OR_RETURN(const LinearWeight weight,
                          layer_weight(artifact, layer.tensor));
  const LinearKernel* kernel =
      preferred_linear(weight, linear_activation(options.compute));
  if (kernel == nullptr) {
    return error(StatusCode::unsupported, "[runtime] ", layer.name, ": no kernel runs ",
                 to_string(weight.scheme));
  }
  if (kernels != nullptr) (*kernels)[layer.tensor] = kernel->name;
  return prepare_linear(*kernel, weight);
}

}  // namespace

Result<MoeStep> MoeStep::create(const Artifact& artifact, const Node& node,
                                const ExecutorOptions& options,
                                std::map<std::string, std::string>* kernels) {
  MoeStep step;
  step.top_k_ = node.integer("experts_per_token", 1);
  step.normalize_ = node.integer("normalize", 0) != 0;
  step.experts_.resize(static_cast<size_t>(node.integer("experts", 0)));
  const std::vector<Layer> layers = layers_of(node);  // gate, up, down of each expert
  for (size_t e = 0; e < step.experts_.size(); ++e) {
    Expert& expert = step.experts_[e];
    NIBBLE_ASSIGN_OR_RETURN(expert.gate,
                            prepare(artifact, layers[3 * e], options, kernels));
    NIBBLE_ASSIGN_OR_RETURN(expert.up,
                            prepare(artifact, layers[3 * e + 1], options, kernels));
    NIBBLE_ASSIGN_OR_RETURN(expert.down,
                            prepare(artifact, layers[3 * e + 2], options, kernels));
  }
  return step;
}

Result<std::function<void()>> MoeStep::exchange(const Artifact& other, const Node& node,
                                                const std::string& role,
                                                const ExecutorOptions& options) {
  const std::vector<Layer> layers = layers_of(node);
  for (size_t i = 0; i < layers.size(); ++i) {
    if (layers[i].role != role) continue;
    NIBBLE_ASSIGN_OR_RETURN(PreparedLinear changed,
                            prepare(other, layers[i], options, nullptr));
    Expert& expert = experts_[i / 3];
    PreparedLinear& own = i % 3 == 0 ? expert.gate : i % 3 == 1 ? expert.up : expert.down;
    std::swap(own, changed);
    auto kept = std::make_shared<PreparedLinear>(std::move(changed));
    return std::function<void()>([&own, kept] { std::swap(own, *kept); });
  }
  return error(StatusCode::not_found, "[runtime] ", node.name, ": an expert's layer '", role,
               "' was required; the node has none by this name");
}

void MoeStep::run(MatrixView<const float> x, MatrixView<const float> logits,
                  MatrixView<float> y) {
  const size_t slots = static_cast<size_t>(x.rows * top_k_);
  chosen_.resize(slots);
  weights_.resize(slots);
  const MatrixView<int32_t> chosen(chosen_.data(), x.rows, top_k_);
  const MatrixView<float> weights(weights_.data(), x.rows, top_k_);
  route_tokens(logits, normalize_, chosen, weights);
  for (int64_t t = 0; t < y.rows; ++t) std::fill_n(y.row(t), y.cols, 0.0f);
  const SiluMulFunction silu_mul = select_silu_mul().run;
  for (size_t e = 0; e < experts_.size(); ++e) {
    const Expert& expert = experts_[e];
    tokens_.clear();
    for (int64_t t = 0; t < x.rows; ++t) {
      for (int64_t j = 0; j < top_k_; ++j) {
        if (chosen(t, j) == static_cast<int32_t>(e)) {
          tokens_.emplace_back(t, weights(t, j));
        }
      }
    }
    if (tokens_.empty()) continue;
    const int64_t n = static_cast<int64_t>(tokens_.size());
    const int64_t hidden = expert.gate.cols, width = expert.gate.rows;
    rows_.resize(static_cast<size_t>(n * hidden));
    gate_.resize(static_cast<size_t>(n * width));
    up_.resize(static_cast<size_t>(n * width));
    out_.resize(static_cast<size_t>(n * hidden));
    for (int64_t i = 0; i < n; ++i) {
      std::copy_n(x.row(tokens_[static_cast<size_t>(i)].first), hidden,
                  rows_.data() + i * hidden);
    }
    const MatrixView<const float> mine(rows_.data(), n, hidden);
    run_linear(expert.gate, mine, nullptr, MatrixView<float>(gate_.data(), n, width));
    run_linear(expert.up, mine, nullptr, MatrixView<float>(up_.data(), n, width));
    silu_mul(gate_.data(), up_.data(), n * width, gate_.data());
    run_linear(expert.down, MatrixView<const float>(gate_.data(), n, width), nullptr,
               MatrixView<float>(out_.data(), n, hidden));
    for (int64_t i = 0; i < n; ++i) {
      const auto [t, weight] = tokens_[static_cast<size_t>(i)];
      const float* from = out_.data() + i * hidden;
      float* to = y.row(t);
      for (int64_t c = 0; c < hidden; ++c) to[c] += weight * from[c];
    }
  }
}

}  // namespace nibble
