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
// costs a product. Of a block's linear layers at most some 1,024 rows, evenly apart, are
// rounded; lm_head's and an embedding's rows differ too much in weight for that.
//
// Streams as solving does: samples wait between blocks (on disk, with a spill folder),
// and a block's weights are in memory while it runs, on its way back too.
//
// linear, embedding and conv2d of groups 1. Throws nibble::Error: unsupported for others
// (names the layer); out_of_range: a loss that is not finite. Deterministic at any number
// of threads and ranks.
#pragma once

#include <string>
#include <vector>

#include "ptq/calibrate.h"
#include "ptq/calibration/model_weights.h"
#include "ptq/stream.h"

namespace nibble {

struct SensitivityProblem {
  const Artifact& model;
  const ModelWeights& weights;
  const Plan& plan;
  const CalibrationData& data;
  const StreamOptions& options;
  FoundScales& found;  // what an interrupted run knows is not found again
};

// Nats per token (per image) by tensor, one for each scheme.
MixedLosses predicted_losses(const SensitivityProblem& problem,
                             const std::vector<std::string>& tensors,
                             const std::vector<QuantScheme>& schemes);

}  // namespace nibble
