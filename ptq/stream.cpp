#include "ptq/stream.h"

#include <algorithm>

#include "ptq/calibration/activation_scales.h"
#include "ptq/calibration/artifact_sink.h"
#include "ptq/calibration/bias_correction.h"
#include "ptq/calibration/group_scales.h"
#include "ptq/calibration/mixed_choice.h"
#include "ptq/calibration/samples.h"
#include "ptq/calibration/streaming_solver.h"
#include "ptq/error.h"
#include "ptq/methods/method.h"
#include "ptq/methods/transform.h"
#include "ptq/one_thread.h"

namespace nibble {
namespace {

// Who needs data, for the message when there is none; "": nobody.
std::string data_user(const Plan& plan) {
  if (!plan.transforms.empty()) return "transform " + plan.transforms[0];
  if (!plan.mixed.schemes.empty()) return "mixed precision";
  for (const LayerPlan& layer : plan.layers) {
    if (!plan.needs_inputs(layer)) continue;
    return cat(layer.node, method_needs_inputs(layer.method)
                               ? ": method " + layer.method
                               : ": low-rank compensation of outputs");
  }
  return has_static_activations(plan) ? "activations: static scales" : "";
}

// A rank is at most that of the weight.
void check_ranks(const Artifact& model, const Plan& plan) {
  for (const LayerPlan& layer : plan.layers) {
    const auto tensor = model.tensors.find(layer.tensor);
    if (layer.rank == 0 || tensor == model.tensors.end()) continue;
    const int64_t most = std::min(tensor->second.rows(), tensor->second.cols());
    if (layer.rank <= most) continue;
    throw Error(error(StatusCode::invalid_argument, "[calibrate] ", layer.node,
                      ": low-rank compensation of a rank of at most ", most,
                      " is required, its weight's; found ", layer.rank));
  }
}

}  // namespace

StreamedCalibration::StreamedCalibration(std::shared_ptr<const Artifact> model,
                                         const Plan& plan, const CalibrationData& data,
                                         const StreamOptions& options)
    : data_(data), options_(options) {
  const OneThread one_thread;
  throw_if_error(check_plan(plan, model->program));
  check_ranks(*model, plan);
  const std::string user = data_user(plan);
  if (!user.empty()) check_calibration_data(*model, plan, data, user);
  if (options_.found == nullptr) options_.found = &none_;
  result_.model = std::move(model);
  result_.plan = plan;
  result_.calibration = data.description;
  weights_.emplace(*result_.model);
  transform();
  const Program& program = result_.model->program;
  if (!plan.mixed.schemes.empty()) {
    choose_schemes(
        result_.plan,
        {*result_.model, *weights_, result_.plan, data_, options_, *options_.found},
        notes_);
  }
  if (has_static_activations(plan)) {
    const auto open = [this] {
      ShardedStreams streams(*result_.model, result_.plan, data_, options_.spill,
                             options_.device);
      streams.add([this](const std::string& name) { return weights_->value(name); },
                  [this](const std::string& name, const at::Tensor& ids) {
                    return weights_->rows(name, ids);
                  });
      return streams;
    };
    calibrate_activations(result_.plan, program, open, *options_.found,
                          options_.progress);
    result_.activations = result_.plan.activations;
  }
  for (const LayerPlan& layer : result_.plan.layers) {
    if (layer.scheme.input) result_.layer_inputs[layer.node] = *layer.scheme.input;
  }
}

void StreamedCalibration::transform() {
  for (const std::string& name : result_.plan.transforms) {
    const Transform& transform = *find_transform(name);
    if (transform.search != nullptr) {
      scale_groups(transform, {.model = *result_.model,
                               .plan = result_.plan,
                               .data = data_,
                               .options = options_,
                               .found = *options_.found,
                               .weights = *weights_,
                               .notes = notes_});
      continue;
    }
    take_scaled([](const std::string&) { return true; });
    auto edited = std::make_shared<Artifact>(*result_.model);
    std::map<std::string, std::string> mine;
    transform.edit({result_.plan, data_, options_.progress, *edited, mine});
    for (const auto& [tensor, note] : mine) {
      std::string& text = notes_[tensor];
      text += cat(text.empty() ? "" : "; ", note);
    }
    result_.model = std::move(edited);
    weights_.emplace(*result_.model);
  }
}

// The model with what factors have changed, of the tensors that are wanted.
void StreamedCalibration::take_scaled(
    const std::function<bool(const std::string&)>& wanted) {
  std::map<std::string, Tensor> changed = weights_->scaled(wanted);
  if (changed.empty()) return;
  auto edited = std::make_shared<Artifact>(*result_.model);
  for (auto& [tensor, values] : changed) edited->tensors[tensor] = std::move(values);
  result_.model = std::move(edited);
}

void StreamedCalibration::solve_layers(SolvedLayers& solved) {
  const OneThread one_thread;
  StreamingSolver solver(*result_.model, *weights_, result_.plan, solved, notes_,
                         options_);
  solver.solve_without_inputs();
  solver.solve_with_inputs(data_);
  const auto is_float = [this](const std::string& name) {
    const LayerPlan* layer = result_.plan.find(name);
    return layer == nullptr || layer->method == "float";
  };
  for (const auto& [tensor, note] : notes_) {
    if (is_float(tensor)) result_.accounts[tensor].note = note;
  }
}

Calibrated StreamedCalibration::solve(SolvedLayers& solved) {
  solve_layers(solved);
  const bool corrected =
      has_corrections(result_.plan);  // against the float net, run whole
  take_scaled([this, corrected](const std::string& name) {
    const LayerPlan* layer = result_.plan.find(name);
    return corrected || layer == nullptr || layer->method == "float";
  });
  return std::move(result_);
}

Calibrated StreamedCalibration::solve_in_memory() {
  KeptLayers kept(result_);
  solve_layers(kept);
  take_scaled([](const std::string&) { return true; });
  return std::move(result_);
}

}  // namespace nibble
