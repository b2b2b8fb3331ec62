#include "ptq/stream.h"

#include <algorithm>

#include "ptq/calibration/streaming_solver.h"
#include "ptq/error.h"
#include "ptq/methods/method.h"
#include "ptq/one_thread.h"

namespace nibble {
namespace {

// Steps of a plan that change the model or the schemes before layers are solved.
bool changes_the_model(const Plan& plan) {
  return !plan.transforms.empty() || !plan.mixed.schemes.empty();
}

}  // namespace

bool can_stream(const Plan& plan, const Program& program) {
  if (!program.is_language_model() || !plan.activations.empty()) return false;
  if (changes_the_model(plan) || plan.has_low_rank()) return false;
  return std::all_of(plan.layers.begin(), plan.layers.end(), [](const LayerPlan& layer) {
    if (layer.method == "float") return true;
    const Method* method = find_method(layer.method);
    if (method == nullptr || !method->rows_in_parallel) return false;
    // Rounded activations are seen by what is solved on data.
    const bool rounds = layer.scheme.input.has_value();
    return !rounds || (layer.scheme.input->dynamic && !method->needs_inputs);
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
  StreamingSolver solver(*result.model, result.plan, solved, options);
  solver.solve_without_inputs();
  solver.solve_with_inputs(data);
  return result;
}

}  // namespace nibble
