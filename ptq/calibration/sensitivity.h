// What rounding one layer costs the whole model, foretold without running it rounded.
//
//   KL(p || p_q) per token ~ 1/2 E_t (g_t . dW x_t)^2               Fisher's quadratic
//   form
//                          ~ 1/2 sum_o E[g_o^2] (dW E[x x^T] dW^T)_oo
//
//   x_t  the layer's input at token t       g_t  d log p(y_t) / d (its output at token
//   t), y_t  drawn from p itself                     y_t's of a sequence summed
//
// The second line takes gradients and inputs, and outputs among each other, as
// independent (as K-FAC does, Martens and Grosse, arXiv 1503.05671, sec. 3, with the
// diagonal of the output factor). E[g^2] needs one backward pass a sequence, E[x x^T] one
// forward pass; then every scheme's dW (round to nearest, scales weighted by the inputs)
// costs a product.
//
// linear, embedding and conv2d of groups 1. Throws nibble::Error: unsupported for others
// (names the layer). Deterministic at any thread count.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "ptq/calibrate.h"

namespace nibble {

// Nats per token (per image) by tensor, one for each scheme.
std::map<std::string, std::vector<double>> predicted_losses(
    const Artifact& model, const Plan& plan, const CalibrationData& data,
    const std::vector<std::string>& tensors, const std::vector<QuantScheme>& schemes,
    const Progress& progress);

}  // namespace nibble
