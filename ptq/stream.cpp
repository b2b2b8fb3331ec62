#include "ptq/stream.h"

#include <algorithm>

#include "ptq/calibration/group_scales.h"
#include "ptq/calibration/samples.h"
#include "ptq/calibration/streaming_solver.h"
#include "ptq/error.h"
#include "ptq/methods/method.h"
#include "ptq/methods/transform.h"
#include "ptq/one_thread.h"

namespace nibble {
namespace {

bool scales_groups(const std::string& name) {
  const Transform* transform = find_transform(name);
  return transform != nullptr && transform->search != nullptr;
}

}  // namespace

bool can_stream(const Plan& plan, const Program& program) {
  if (!program.is_language_model() || !plan.activations.empty()) return false;
  if (!plan.mixed.schemes.empty() || plan.has_low_rank()) return false;
  if (!std::all_of(plan.transforms.begin(), plan.transforms.end(), scales_groups))
    return false;
  return std::all_of(plan.layers.begin(), plan.layers.end(), [](const LayerPlan& layer) {
    if (layer.method == "float") return true;
    const Method* method = find_method(layer.method);
    if (method == nullptr || !method->rows_in_parallel) return false;
    // A static input's scale is found by running the model.
    return !layer.scheme.input || layer.scheme.input->dynamic;
  });
}

Calibrated calibrate_into(SolvedLayers& solved, std::shared_ptr<const Artifact> model,
                          const Plan& plan, const CalibrationData& data,
                          const StreamOptions& options) {
  const OneThread one_thread;
  throw_if_error(check_plan(plan, model->program));
  if (!can_stream(plan, model->program)) {
    throw Error(error(StatusCode::internal,
                      "[calibrate] a plan that can stream is required; found another"));
  }
  Calibrated result;
  result.model = std::move(model);
  result.plan = plan;
  result.calibration = data.description;
  for (const LayerPlan& layer : plan.layers) {
    if (layer.scheme.input) result.layer_inputs[layer.node] = *layer.scheme.input;
  }
  ModelWeights weights(*result.model);
  std::map<std::string, std::string> notes;
  FoundScales none;
  if (!plan.transforms.empty())
    check_calibration_data(*result.model, plan, data, "transform " + plan.transforms[0]);
  for (const std::string& name : plan.transforms) {
    scale_groups(*find_transform(name),
                 {.model = *result.model,
                  .plan = plan,
                  .data = data,
                  .options = options,
                  .found = options.found != nullptr ? *options.found : none,
                  .weights = weights,
                  .notes = notes});
  }
  StreamingSolver solver(*result.model, weights, result.plan, solved, notes, options);
  solver.solve_without_inputs();
  solver.solve_with_inputs(data);
  const auto is_float = [&plan](const std::string& name) {
    const LayerPlan* layer = plan.find(name);
    return layer == nullptr || layer->method == "float";
  };
  std::map<std::string, Tensor> changed = weights.scaled(is_float);
  if (changed.empty()) return result;
  for (const auto& [tensor, values] : changed) {
    const auto note = notes.find(tensor);
    if (note != notes.end()) result.accounts[tensor].note = note->second;
  }
  auto edited = std::make_shared<Artifact>(*result.model);
  for (auto& [tensor, values] : changed) edited->tensors[tensor] = std::move(values);
  result.model = std::move(edited);
  return result;
}

}  // namespace nibble
