// Plans, data and a distance for the small models, for the tests of what calibrates.
#pragma once

#include <vector>

#include "ptq/calibrate.h"
#include "ptq/error.h"
#include "ptq/methods/low_rank.h"
#include "tests/ptq/small_models.h"

namespace nibble::testing {

inline Plan decoder_plan(const Program& program, const char* scheme, const char* method) {
  Plan plan;
  plan.calibration_sequences = 40;
  plan.calibration_length = 24;
  for (const Node& node : program.nodes) {
    if (!find_op(node.op)->is_layer || plan.find(node.parameter("weight"))) continue;
    LayerPlan layer;
    layer.node = node.name;
    layer.tensor = node.parameter("weight");
    layer.method = "float";
    layer.reason = "embedding kept float by the recipe";
    if (node.op == "linear") {
      layer.scheme.weight = parse_scheme(scheme).value();
      layer.method = method;
      layer.reason = "";
    }
    plan.layers.push_back(layer);
  }
  return plan;
}

inline CalibrationData sequences(int64_t count, int64_t length, uint64_t seed) {
  at::Generator generator = at::detail::createCPUGenerator(seed);
  CalibrationData data;
  for (int64_t i = 0; i < count; ++i) {
    const at::Tensor ids = at::randint(0, 23, {length - i % 3}, generator, at::kInt);
    data.sequences.emplace_back(ids.data_ptr<int32_t>(),
                                ids.data_ptr<int32_t>() + ids.numel());
  }
  data.description = "random ids";
  return data;
}

// Mean squared distance of the logits from the float model's.
inline double distance(const Artifact& model, const Calibrated& calibrated,
                       const CalibrationData& data) {
  const at::NoGradGuard no_gradients;
  ProgramModule before(model), after(*calibrated.model);
  before->eval();
  after->eval();
  for (const auto& [tensor, coded] : calibrated.weights) {
    at::Tensor values = at::empty({coded.rows, coded.cols});
    const MatrixView<float> view(values.data_ptr<float>(), coded.rows, coded.cols);
    throw_if_error(dequantize(coded, view));
    const auto factors = calibrated.low_rank.find(tensor);
    if (factors != calibrated.low_rank.end()) add_factors(factors->second, view);
    after->set_parameter(tensor, values);
  }
  double sum = 0;
  for (const std::vector<int32_t>& ids : data.sequences) {
    const at::Tensor input = at::tensor(ids).to(at::kLong).unsqueeze(0);
    sum +=
        (before->forward(input) - after->forward(input)).square().mean().item<double>();
  }
  return sum / static_cast<double>(data.sequences.size());
}

}  // namespace nibble::testing
