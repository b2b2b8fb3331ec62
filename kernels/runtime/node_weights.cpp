#include "kernels/runtime/node_weights.h"

#include "kernels/runtime/layer_weight.h"

namespace nibble {
namespace {

template <class... Parts>
Status failure(StatusCode code, const std::string& where, const Parts&... parts) {
  return error(code, "[runtime] ", where, ": ", parts...);
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
  if (input != nullptr) {
    // A static input scheme belongs to the integer path of nets whose values are all
    // codes.
    if (artifact.program.is_language_model() && !input->dynamic) {
      return failure(StatusCode::unsupported, node.name,
                     "float or dynamic int8n/r@f32 inputs were required; found a static ",
                     to_string(input->scheme), "; change the recipe");
    }
    if (input->dynamic && to_string(input->scheme) != "int8n/r@f32") {
      return failure(StatusCode::unsupported, node.name,
                     "dynamic inputs must be int8n/r@f32, e4m3/r@f32 or int2n/r@f32 to "
                     "int7n/r@f32; found ",
                     to_string(input->scheme), "; change the recipe");
    }
  }
  const bool must = input != nullptr && input->dynamic;
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
  return prepare_linear(*kernel, weight);
}

Result<PreparedLinear> prepare_node_linear(const Artifact& artifact, const Node& node,
                                           const LinearWeight& weight,
                                           LinearActivation wanted,
                                           std::map<std::string, std::string>* kernels) {
  return prepare_linear_for(artifact, node, weight, asked_input(artifact, node), wanted,
                            kernels);
}

}  // namespace nibble
