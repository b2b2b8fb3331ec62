#include "ptq/calibration/mixed_choice.h"

#include "ptq/allocate.h"
#include "ptq/error.h"

namespace nibble {
namespace {

constexpr const char* kStep = "mixed";

// Of every tensor, or none.
std::optional<MixedLosses> known_losses(const FoundScales& found,
                                        const std::vector<std::string>& tensors) {
  MixedLosses losses;
  for (const std::string& tensor : tensors) {
    const auto known = known_everywhere(found, kStep, tensor);
    if (!known) return std::nullopt;
    losses[tensor] = known->scale;
  }
  return losses;
}

MixedLosses losses_of(const MixedOptions& mixed, const SensitivityProblem& problem,
                      const std::vector<std::string>& tensors, FoundScales& found) {
  if (mixed.losses != nullptr && !mixed.losses->empty()) return *mixed.losses;
  std::optional<MixedLosses> losses = known_losses(found, tensors);
  if (!losses) {
    losses = predicted_losses(problem, tensors, mixed.schemes);
    for (const auto& [tensor, loss] : *losses) found.put(kStep, tensor, {loss, {}});
    found.end_block();
  }
  if (mixed.losses != nullptr) *mixed.losses = *losses;
  return std::move(*losses);
}

}  // namespace

void choose_schemes(Plan& plan, const SensitivityProblem& problem, FoundScales& found,
                    std::map<std::string, std::string>& notes) {
  const MixedOptions& mixed = plan.mixed;
  std::vector<std::string> tensors;
  for (const LayerPlan& layer : plan.layers) {
    if (layer.method != "float") tensors.push_back(layer.tensor);
  }
  const MixedLosses losses = losses_of(mixed, problem, tensors, found);
  std::vector<std::vector<LayerChoice>> layers;
  for (const std::string& tensor : tensors) {
    const std::vector<double>& loss = losses.at(tensor);
    const auto costs = mixed.costs.find(tensor);
    if (costs == mixed.costs.end() || costs->second.size() != loss.size()) {
      throw Error(error(StatusCode::internal, "[calibrate] ", tensor,
                        ": a cost a scheme is required; found ",
                        costs == mixed.costs.end() ? 0 : costs->second.size()));
    }
    layers.emplace_back();
    for (size_t i = 0; i < loss.size(); ++i)
      layers.back().push_back({costs->second[i], loss[i]});
  }
  Result<std::vector<size_t>> chosen = allocate(layers, mixed.budget);
  if (!chosen.ok()) {
    throw Error(error(chosen.status().code(), chosen.status().message(), " (in ",
                      mixed.unit, ")"));
  }
  for (size_t l = 0; l < tensors.size(); ++l) {
    for (LayerPlan& layer : plan.layers) {
      if (layer.tensor == tensors[l]) layer.scheme.weight = mixed.schemes[(*chosen)[l]];
    }
    std::string& note = notes[tensors[l]];
    note += cat(note.empty() ? "" : "; ", "mixed: KL foretold ",
                layers[l][(*chosen)[l]].loss);
  }
  throw_if_error(check_plan(plan, problem.model.program));
}

}  // namespace nibble
