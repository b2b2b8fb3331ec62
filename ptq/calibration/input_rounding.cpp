#include "ptq/calibration/input_rounding.h"

#include <ATen/ATen.h>

#include "kernels/program/layers.h"
#include "ptq/module/fake_quantize.h"

namespace nibble {

InputRounding input_rounding(const Plan& plan, const Program& program) {
  std::map<std::string, ActivationScheme> schemes;
  for (const LayerPlan& layer : plan.layers) {
    if (layer.method != "float" && layer.scheme.input)
      schemes[owner_of(program, layer.node)->name] = *layer.scheme.input;
  }
  if (schemes.empty() && plan.activations.empty()) return {};
  return [schemes, values = plan.activations](const Node& node, size_t input,
                                              const at::Tensor& x) {
    const auto value = values.find(node.inputs.at(input));
    at::Tensor rounded =
        value == values.end() ? x : FakeQuantize(value->second)->forward(x);
    const auto scheme = input == 0 ? schemes.find(node.name) : schemes.end();
    return scheme == schemes.end() ? rounded
                                   : FakeQuantize(scheme->second)->forward(rounded);
  };
}

InputRounding rounding_on(at::Device device, InputRounding rounding) {
  if (!rounding || device.is_cpu()) return rounding;
  return [rounding = std::move(rounding)](const Node& node, size_t input,
                                          const at::Tensor& x) {
    return rounding(node, input, x.cpu()).to(x.device());
  };
}

}  // namespace nibble
