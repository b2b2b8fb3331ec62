#include "kernels/runtime/kernel_names.h"

#include "kernels/ops/embedding/embedding.h"
#include "kernels/program/layers.h"
#include "kernels/runtime/layer_weight.h"
#include "kernels/runtime/node_weights.h"
#include "kernels/runtime/rounded_inputs.h"

namespace nibble {

Result<std::map<std::string, std::string>> kernel_names(
    std::shared_ptr<const Artifact> artifact, const ExecutorOptions& options) {
  if (!artifact->program.is_language_model()) {
    NIBBLE_ASSIGN_OR_RETURN(const Executor executor, Executor::create(artifact, options));
    return executor.kernels();
  }
  const LinearActivation wanted = linear_activation(options.compute);
  std::map<std::string, std::string> names;
  for (const Node& node : artifact->program.nodes) {
    if (node.op == "embedding" || node.op == "position_embedding") {
      names.emplace(node.parameter("weight"), kEmbeddingKernel);
    } else if (node.op == "linear") {
      NIBBLE_ASSIGN_OR_RETURN(const LinearWeight weight, node_weight(*artifact, node));
      const ActivationScheme* input = asked_input(*artifact, node);
      // Rounded before the product, which then runs on floats (runtime/step.cpp).
      if (input != nullptr && is_rounded_input(*input)) input = nullptr;
      NIBBLE_ASSIGN_OR_RETURN(const LinearKernel* kernel,
                              choose_linear_for(*artifact, node, weight, input, wanted));
      names[node.parameter("weight")] = kernel->name;
      weight.packed.release_pages();
    } else if (node.op == "moe") {
      for (const Layer& layer : layers_of(node)) {
        NIBBLE_ASSIGN_OR_RETURN(const LinearWeight weight,
                                layer_weight(*artifact, layer.tensor));
        const LinearKernel* kernel = preferred_linear(weight, wanted);
        if (kernel == nullptr) {
          return error(StatusCode::unsupported, "[runtime] ", layer.name,
                       ": no kernel runs ", to_string(weight.scheme));
        }
        names[layer.tensor] = kernel->name;
      }
    }
  }
  return names;
}

}  // namespace nibble
