#include "kernels/runtime/lstm_step.h"

#include <algorithm>

#include "kernels/base/parallel.h"
#include "kernels/ops/elementwise/elementwise.h"
#include "kernels/ops/lstm/lstm.h"
#include "kernels/program/layers.h"
#include "kernels/runtime/layer_weight.h"
#include "kernels/runtime/node_weights.h"

namespace nibble {
namespace {

// ignores_input: the layer's input scheme is known, and left alone.
Result<PreparedLinear> prepare(const Artifact& artifact, const Layer& layer,
                               bool ignores_input,
                               std::map<std::string, std::string>* kernels) {
  const auto scheme = artifact.layers.find(layer.tensor);
  if (!ignores_input && scheme != artifact.layers.end() && scheme->second.input) {
    return error(StatusCode::unsupported, "[runtime] ", layer.name,
                 ": an lstm reads floats, its first matrix static integers; found an "
                 "input scheme ",
                 to_string(scheme->second.input->scheme), "; leave it out");
  }
  NIBBLE_ASSIGN_OR_RETURN(const LinearWeight weight,
                          layer_weight(artifact, layer.tensor));
  const LinearKernel* kernel = preferred_linear(weight, LinearActivation::f32);
  if (kernel == nullptr) {
    return error(StatusCode::unsupported, "[runtime] ", layer.name, ": no kernel runs ",
                 to_string(weight.scheme));
  }
  if (kernels != nullptr) (*kernels)[layer.tensor] = kernel->name;
  return prepare_linear(*kernel, weight);
}

}  // namespace

Result<LstmStep> LstmStep::create(const Artifact& artifact, const Node& node,
                                  bool integer,
                                  std::map<std::string, std::string>* kernels) {
  LstmStep step;
  for (const Layer& layer : layers_of(node)) {
    const bool over_x = layer.role == "weight_ih";
    const ActivationScheme* input = static_input(artifact, layer.tensor);
    if (over_x && input != nullptr && integer) {
      const auto packed = artifact.packed.find(layer.tensor);
      Conv2dShape row{.height = 1, .width = 1};
      row.channels = packed == artifact.packed.end() ? 0 : packed->second.cols;
      NIBBLE_ASSIGN_OR_RETURN(IntegerLayer codes,
                              IntegerLayer::create(artifact, layer.name, layer.tensor, "",
                                                   row, *input, kernels));
      step.integer_x_ = std::make_unique<IntegerLayer>(std::move(codes));
      continue;
    }
    NIBBLE_ASSIGN_OR_RETURN(
        (over_x ? step.over_x_ : step.over_h_),
        prepare(artifact, layer, over_x && input != nullptr, kernels));
  }
  NIBBLE_ASSIGN_OR_RETURN(step.bias_, node_floats(artifact, node, "bias"));
  return step;
}

void LstmStep::run(int64_t n, int64_t steps, const float* x, const float* h,
                   const float* c, float* y) {
  const int64_t hidden = over_h_.cols, width = 4 * hidden;
  const auto begin = [&](std::vector<float>& state, const float* from) {
    state.assign(static_cast<size_t>(n * hidden), 0.0f);
    if (from != nullptr) std::copy_n(from, n * hidden, state.data());
  };
  begin(h_, h);
  begin(c_, c);
  gates_.resize(static_cast<size_t>(n * steps * width));
  sums_.resize(static_cast<size_t>(n * width));
  if (integer_x_) {
    parallel_for(n * steps, [&](int64_t row) {
      float* gates = gates_.data() + row * width;
      integer_x_->run(x + row * integer_x_->input_size(), gates);
      if (!bias_.empty()) add(gates, bias_.data(), width, gates);
    });
  } else {
    run_linear(over_x_, MatrixView<const float>(x, n * steps, over_x_.cols),
               bias_.empty() ? nullptr : bias_.data(),
               MatrixView<float>(gates_.data(), n * steps, width));
  }
  for (int64_t t = 0; t < steps; ++t) {
    run_linear(over_h_, MatrixView<const float>(h_.data(), n, hidden), nullptr,
               MatrixView<float>(sums_.data(), n, width));
    for (int64_t b = 0; b < n; ++b) {
      float* gates = sums_.data() + b * width;
      add(gates_.data() + (b * steps + t) * width, gates, width, gates);
      lstm_step(gates, hidden, c_.data() + b * hidden, h_.data() + b * hidden);
      std::copy_n(h_.data() + b * hidden, hidden, y + (b * (steps + 1) + t) * hidden);
    }
  }
  for (int64_t b = 0; b < n; ++b) {
    std::copy_n(c_.data() + b * hidden, hidden, y + (b * (steps + 1) + steps) * hidden);
  }
}

}  // namespace nibble
