#include "ptq/calibration/mixed_choice.h"

#include "ptq/allocate.h"
#include "ptq/distributed/ranks.h"
#include "ptq/error.h"

namespace nibble {
namespace {

constexpr const char* kStep = "scheme";

MixedLosses losses_of(const MixedOptions& mixed, const SensitivityProblem& problem,
                      const std::vector<std::string>& tensors) {
  if (mixed.losses != nullptr && !mixed.losses->empty()) return *mixed.losses;
  MixedLosses losses = predicted_losses(problem, tensors, mixed.schemes);
  if (mixed.losses != nullptr) *mixed.losses = losses;
  return losses;
}

// The first rank's choice, on every rank: costs that are times differ from one to the
// next. Kept, because they differ from run to run as well.
std::vector<size_t> chosen_everywhere(const MixedOptions& mixed,
                                      const std::vector<std::string>& tensors,
                                      const std::vector<std::vector<LayerChoice>>& layers,
                                      FoundScales& found) {
  std::vector<size_t> chosen;
  for (const std::string& tensor : tensors) {
    const auto known = known_everywhere(found, kStep, tensor);
    if (!known) break;
    chosen.push_back(static_cast<size_t>(known->scale.at(0)));
  }
  if (chosen.size() == tensors.size()) return chosen;
  Ranks& ranks = Ranks::instance();
  if (ranks.is_first()) {
    Result<std::vector<size_t>> best = allocate(layers, mixed.budget);
    if (!best.ok()) {
      throw Error(
          error(best.status().code(), best.status().message(), " (in ", mixed.unit, ")"));
    }
    for (size_t l = 0; l < tensors.size(); ++l)
      found.put(kStep, tensors[l], {{static_cast<double>((*best)[l])}, {}});
    found.end_block();
  }
  chosen.clear();
  for (const std::string& tensor : tensors)
    chosen.push_back(
        static_cast<size_t>(known_everywhere(found, kStep, tensor)->scale.at(0)));
  return chosen;
}

}  // namespace

void choose_schemes(Plan& plan, const SensitivityProblem& problem,
                    std::map<std::string, std::string>& notes) {
  const MixedOptions& mixed = plan.mixed;
  std::vector<std::string> tensors;
  for (const LayerPlan& layer : plan.layers) {
    if (layer.method != "float") tensors.push_back(layer.tensor);
  }
  const MixedLosses losses = losses_of(mixed, problem, tensors);
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
  const std::vector<size_t> chosen =
      chosen_everywhere(mixed, tensors, layers, problem.found);
  for (size_t l = 0; l < tensors.size(); ++l) {
    for (LayerPlan& layer : plan.layers) {
      if (layer.tensor == tensors[l]) layer.scheme.weight = mixed.schemes[chosen[l]];
    }
    std::string& note = notes[tensors[l]];
    note +=
        cat(note.empty() ? "" : "; ", "mixed: KL foretold ", layers[l][chosen[l]].loss);
  }
  throw_if_error(check_plan(plan, problem.model.program));
}

}  // namespace nibble
