#include "kernels/runtime/node_weights.h"

#include <cmath>

#include "kernels/runtime/layer_weight.h"

namespace nibble {
namespace {

template <class... Parts>
Status failure(StatusCode code, const std::string& where, const Parts&... parts) {
  return error(code, "[runtime] ", where, ": ", parts...);
}

// Of a net over values a static scheme belongs to its integer path.
bool read_as_codes(const Artifact& artifact, const ActivationScheme& input) {
  return input.dynamic || artifact.program.is_language_model();
}

// How the int8 rows round what a layer reads.
Result<LinearInput> linear_input(const Node& node, const ActivationScheme& input) {
  const QuantScheme& scheme = input.scheme;
  const bool integer = !scheme.is_float() &&
                       element_info(scheme.code).kind == ElementKind::integer &&
                       code_highest(scheme) == 127 && scheme.offset == OffsetKind::none &&
                       scheme.scales.size() == 1 && !scheme.scales[0].shifted;
  if (integer && input.dynamic && code_lowest(scheme) == -127 &&
      scheme.scales[0].element == Element::f32) {
    if (scheme.scales[0].block.kind == Block::Kind::row) return LinearInput{};
    if (scheme.scales[0].block.kind == Block::Kind::group) {
      return LinearInput{.group = scheme.scales[0].block.cols};
    }
  }
  if (integer && !input.dynamic && input.zero_point == 0 && input.scale > 0 &&
      std::isfinite(input.scale) && code_lowest(scheme) < 0 &&
      scheme.scales[0].block.kind == Block::Kind::tensor) {
    return LinearInput{.scale = input.scale, .lowest = code_lowest(scheme)};
  }
  return failure(StatusCode::unsupported, node.name,
                 "inputs must be float, dynamic int8n/r@f32, int8n/gN@f32, e4m3/r@f32 or "
                 "int2n/r@f32 to int7n/r@f32, or static int8/t@f32 with a scale > 0 and zero "
                 "point 0; found a ",
                 input.dynamic ? "dynamic " : "static ", to_string(scheme),
                 input.dynamic ? "" : cat(" with scale ", input.scale, ", zero point ",
                                          input.zero_point),
                 "; change the recipe");
}

}  // namespace

Result<LinearWeight> node_weight(const Artifact& artifact, const Node& node) {
  const std::string& name = node.parameter("weight");
  if (!artifact.packed.count(name) && !artifact.tensors.count(name)) {
    return failure(StatusCode::not_found, node.name, "tensor ", name,
                   " was required; the artifact has none by this name");
  }
  return layer_weight(artifact, name);
}

Result<std::vector<float>> node_floats(const Artifact& artifact, const Node& node,
                                       const std::string& role) {
  const std::string& name = node.parameter(role);
  if (name.empty()) return std::vector<float>{};
  const auto tensor = artifact.tensors.find(name);
  if (tensor == artifact.tensors.end()) {
    return failure(StatusCode::not_found, node.name, "tensor ", name,
                   " was required; the artifact has none by this name");
  }
  return to_float(tensor->second);
}

const ActivationScheme* asked_input(const Artifact& artifact, const Node& node) {
  const auto layer = artifact.layers.find(node.parameter("weight"));
  if (layer != artifact.layers.end() && layer->second.input) return &*layer->second.input;
  const auto value = artifact.activations.find(node.inputs[0]);
  return value != artifact.activations.end() ? &value->second : nullptr;
}

Result<const LinearKernel*> choose_linear_for(const Artifact& artifact, const Node& node,
                                              const LinearWeight& weight,
                                              const ActivationScheme* input,
                                              LinearActivation wanted) {
  const bool must = input != nullptr && read_as_codes(artifact, *input);
  if (must) NIBBLE_RETURN_IF_ERROR(linear_input(node, *input).status());
  const LinearKernel* kernel =
      preferred_linear(weight, must ? LinearActivation::s8 : wanted);
  // The option takes int8 where it can be had; what the artifact asks for is its meaning.
  if (must && (kernel == nullptr || kernel->activation != LinearActivation::s8)) {
    return failure(StatusCode::unsupported, node.name,
                   "int8 inputs need integer weights with scales along rows; found ",
                   to_string(weight.scheme), "; change the recipe");
  }
  if (kernel == nullptr) {
    return failure(StatusCode::unsupported, node.name, "no kernel runs ",
                   to_string(weight.scheme));
  }
  return kernel;
}

Result<PreparedLinear> prepare_linear_for(const Artifact& artifact, const Node& node,
                                          const LinearWeight& weight,
                                          const ActivationScheme* input,
                                          LinearActivation wanted,
                                          std::map<std::string, std::string>* kernels) {
  NIBBLE_ASSIGN_OR_RETURN(const LinearKernel* kernel,
                          choose_linear_for(artifact, node, weight, input, wanted));
  if (kernels != nullptr) (*kernels)[node.parameter("weight")] = kernel->name;
  if (input == nullptr || !read_as_codes(artifact, *input)) {
    return prepare_linear(*kernel, weight);
  }
  NIBBLE_ASSIGN_OR_RETURN(const LinearInput rounding, linear_input(node, *input));
  return prepare_linear(*kernel, weight, rounding);
}

Result<PreparedLinear> prepare_node_linear(const Artifact& artifact, const Node& node,
                                           const LinearWeight& weight,
                                           LinearActivation wanted,
                                           std::map<std::string, std::string>* kernels) {
  return prepare_linear_for(artifact, node, weight, asked_input(artifact, node), wanted,
                            kernels);
}

}  // namespace nibble
