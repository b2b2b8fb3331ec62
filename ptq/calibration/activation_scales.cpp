#include "ptq/calibration/activation_scales.h"

#include <algorithm>

#include "kernels/program/layers.h"
#include "kernels/program/moves_codes.h"
#include "ptq/calibration/observed_values.h"
#include "ptq/error.h"

namespace nibble {
namespace {

constexpr const char* kStep = "activations";

bool is_static(const std::optional<ActivationScheme>& scheme) {
  return scheme.has_value() && !scheme->dynamic;
}

const std::string& input_of(const Program& program, const LayerPlan& layer) {
  return owner_of(program, layer.node)->inputs.at(0);
}

// What an observer makes of one value; a value may be wanted in several schemes.
class Scales {
 public:
  Scales(const Plan& plan, const Program& program,
         const std::function<ShardedStreams()>& open, FoundScales& found,
         const Progress& progress)
      : plan_(plan), found_(found) {
    std::set<std::string> values;
    const auto want = [&](const std::string& value, const QuantScheme& scheme) {
      if (known_everywhere(found, kStep, key(value, scheme)) == std::nullopt)
        values.insert(value);
    };
    for (const auto& [value, scheme] : plan.activations) want(value, scheme.scheme);
    for (const LayerPlan& layer : plan.layers) {
      if (is_static(layer.scheme.input))
        want(input_of(program, layer), layer.scheme.input->scheme);
    }
    if (values.empty()) return;
    ShardedStreams streams = open();
    seen_ = observe_values(streams, program, values, progress);
  }

  ActivationScheme scaled(const std::string& value, ActivationScheme scheme) {
    const std::string name = key(value, scheme.scheme);
    if (const auto known = known_everywhere(found_, kStep, name)) {
      scheme.scale = static_cast<float>(known->scale.at(0));
      return scheme;
    }
    const ValueStatistics& seen = seen_.at(value);
    if (!seen.finite()) {
      throw Error(error(StatusCode::out_of_range, "[calibrate] ", value,
                        ": activations must be finite on the calibration data; found NaN "
                        "or infinity; check the weights and the preprocessing"));
    }
    scheme.scale = find_observer(plan_.observer)->scale(seen, scheme.scheme);
    found_.put(kStep, name, {{scheme.scale}, {}});
    return scheme;
  }

 private:
  static std::string key(const std::string& value, const QuantScheme& scheme) {
    return cat(value, " ", to_string(scheme));
  }

  const Plan& plan_;
  FoundScales& found_;
  std::map<std::string, ValueStatistics> seen_;
};

}  // namespace

bool has_static_activations(const Plan& plan) {
  return !plan.activations.empty() ||
         std::any_of(plan.layers.begin(), plan.layers.end(), [](const LayerPlan& layer) {
           return is_static(layer.scheme.input);
         });
}

void calibrate_activations(Plan& plan, const Program& program,
                           const std::function<ShardedStreams()>& open,
                           FoundScales& found, const Progress& progress) {
  Scales scales(plan, program, open, found, progress);
  for (auto& [value, scheme] : plan.activations) scheme = scales.scaled(value, scheme);
  if (plan.byte_images) plan.activations.at(program.inputs.at(0).name).scale = 1.0f / 255;
  // These move codes and do not compute: what comes out has the scale of what went in.
  for (const Node& node : program.nodes) {
    if (!moves_codes(node)) continue;
    const auto from = plan.activations.find(node.inputs.at(0));
    const auto to = plan.activations.find(node.outputs.at(0));
    if (from != plan.activations.end() && to != plan.activations.end())
      to->second = from->second;
  }
  // What only a concat reads is rounded once, to the scale of the whole.
  for (auto node = program.nodes.rbegin(); node != program.nodes.rend(); ++node) {
    const auto whole = plan.activations.find(node->outputs.at(0));
    if (node->op != "concat" || whole == plan.activations.end()) continue;
    for (const std::string& input : node->inputs) {
      const auto part = plan.activations.find(input);
      const bool alone = program.consumers(input).size() == 1;
      if (part != plan.activations.end() && alone &&
          part->second.scheme == whole->second.scheme) {
        part->second = whole->second;
      }
    }
  }
  for (LayerPlan& layer : plan.layers) {
    if (is_static(layer.scheme.input))
      layer.scheme.input = scales.scaled(input_of(program, layer), *layer.scheme.input);
  }
  found.end_block();
}

}  // namespace nibble
