#include "recipes/recipe/mixed_costs.h"

#include <map>
#include <set>

#include "kernels/program/layers.h"
#include "kernels/runtime/compute.h"
#include "recipes/eval/layer_cost.h"

namespace nibble {
namespace {

constexpr double kBytesPerMegabyte = 1e6;
// Of different weights to go through: beyond any cache.
constexpr int64_t kCold = int64_t{256} << 20;

// Milliseconds of a token by shape, each shape timed once.
class Clock {
 public:
  Clock(const Recipe& recipe, const std::vector<QuantScheme>& schemes)
      : activation_(linear_activation(*parse_compute(recipe.compute))),
        schemes_(schemes) {}

  Result<std::vector<double>> costs(const Tensor& tensor) {
    const std::pair<int64_t, int64_t> shape = {tensor.rows(), tensor.cols()};
    if (const auto known = known_.find(shape); known != known_.end())
      return known->second;
    std::vector<CostCase> cases;
    for (const QuantScheme& scheme : schemes_) {
      cases.push_back(
          {.scheme = to_string(scheme), .activation = activation_, .spread = kCold});
    }
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<LayerCost> timed,
                            time_layer(tensor, cases, {}));
    std::vector<double> costs;
    for (const LayerCost& cost : timed) costs.push_back(cost.decode * 1e3);
    known_[shape] = costs;
    return costs;
  }

 private:
  LinearActivation activation_;
  const std::vector<QuantScheme>& schemes_;
  std::map<std::pair<int64_t, int64_t>, std::vector<double>> known_;
};

// Bytes of the parameters that stay as they are.
double float_bytes(const Artifact& model, const Plan& plan) {
  std::set<std::string> seen;
  double bytes = 0;
  for (const Node& node : model.program.nodes) {
    for (const auto& [role, name] : node.parameters) {
      const auto tensor = model.tensors.find(name);
      if (tensor == model.tensors.end() || !seen.insert(name).second) continue;
      const LayerPlan* layer = plan.find(name);
      if (layer == nullptr || layer->method == "float")
        bytes += static_cast<double>(tensor->second.bytes.size());
    }
  }
  return bytes;
}

}  // namespace

Status set_mixed_costs(const Recipe& recipe, const Artifact& model, Plan& plan) {
  if (!recipe.is_mixed()) return ok_status();
  MixedOptions& mixed = plan.mixed;
  std::set<std::string> linear;
  for (const Layer& layer : layers_of(model.program)) {
    if (layer.node->op == "linear") linear.insert(layer.tensor);
  }
  Clock clock(recipe, mixed.schemes);
  double weights = 0;
  for (const LayerPlan& layer : plan.layers) {
    if (layer.method == "float") continue;
    const auto found = model.tensors.find(layer.tensor);
    if (found == model.tensors.end()) continue;  // calibrate names it
    const Tensor& tensor = found->second;
    const auto count = static_cast<double>(tensor.numel());
    weights += count;
    std::vector<double>& costs = mixed.costs[layer.tensor];
    if (recipe.mixed_milliseconds > 0) {
      costs.assign(mixed.schemes.size(), 0);
      if (linear.count(layer.tensor)) {
        NIBBLE_ASSIGN_OR_RETURN(costs, clock.costs(tensor));
      }
      continue;
    }
    for (const QuantScheme& scheme : mixed.schemes) {
      const double bits = bits_per_value(scheme, tensor.rows(), tensor.cols()) * count;
      costs.push_back(recipe.mixed_bits > 0 ? bits : bits / 8 / kBytesPerMegabyte);
    }
  }
  if (recipe.mixed_bits > 0) {
    mixed.unit = "bits";
    mixed.budget = recipe.mixed_bits * weights;
  } else if (recipe.mixed_milliseconds > 0) {
    mixed.unit = "ms";
    mixed.budget = recipe.mixed_milliseconds;
  } else {
    mixed.unit = "MB";
    const double kept = float_bytes(model, plan) / kBytesPerMegabyte;
    mixed.budget = recipe.mixed_megabytes - kept;
    if (!(mixed.budget > 0)) {
      return error(StatusCode::failed_precondition,
                   "[mixed] mixed.megabytes: more than the ", kept,
                   " MB that stay float is required; found ", recipe.mixed_megabytes,
                   "; raise it, or quantize more layers");
    }
  }
  return ok_status();
}

}  // namespace nibble
