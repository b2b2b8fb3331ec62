// What a node brings to the executor: its parameters, and a linear layer ready to run.
//
// A linear layer's row of ops/linear follows from the weight's scheme and from what reads
// it: float activations, or int8 ones, which the artifact asks for (the layer's input
// scheme; it must be had: dynamic int8n/r@f32 or int8n/gN@f32, of a language model static
// int8/t@f32 as well) or the caller (compute; taken where it can be).
//
// not_found: a tensor that the artifact lacks. unsupported: a low-rank part, another input
// scheme, a scheme that no row runs; the message names the node or tensor. Allocates. Safe to call from any thread.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "kernels/artifact/artifact.h"
#include "kernels/ops/linear/linear.h"

namespace nibble {

// The tensor of role "weight", plain or packed.
Result<LinearWeight> node_weight(const Artifact& artifact, const Node& node);
// A float parameter; empty when the node has none of this role.
Result<std::vector<float>> node_floats(const Artifact& artifact, const Node& node,
                                       const std::string& role);
// What the artifact itself asks of a linear layer's input: the layer's own scheme, or the
// value's; null for float.
const ActivationScheme* asked_input(const Artifact& artifact, const Node& node);

// The row for a linear layer. wanted: the activations where the artifact leaves them
// open, as preferred_linear takes them. input: what asked_input says, or null where the
// caller rounds the input itself.
Result<const LinearKernel*> choose_linear_for(const Artifact& artifact, const Node& node,
                                              const LinearWeight& weight,
                                              const ActivationScheme* input,
                                              LinearActivation wanted);
// The weight as that row likes it. kernels receives the row's name under the tensor's.
Result<PreparedLinear> prepare_linear_for(const Artifact& artifact, const Node& node,
                                          const LinearWeight& weight,
                                          const ActivationScheme* input,
                                          LinearActivation wanted,
                                          std::map<std::string, std::string>* kernels);
// The same with what asked_input says.
Result<PreparedLinear> prepare_node_linear(const Artifact& artifact, const Node& node,
                                           const LinearWeight& weight,
                                           LinearActivation wanted,
                                           std::map<std::string, std::string>* kernels);

}  // namespace nibble
