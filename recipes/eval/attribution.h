// What each quantized layer costs, one at a time.
//
//   restored  cost = KL(all quantized) - KL(all quantized but this layer): what giving
//   the
//             layer its float weights back would win
//   alone     cost = KL(only this layer quantized): what quantizing it does by itself
//
// KL as in evaluate.h, against the float model; intervals by bootstrap over sequences, of
// the paired differences. A pass begins at the block that holds the layer, with the
// inputs that one pass over the whole model left there. Held at a time: those inputs
// (tokens x width x blocks floats) and two sets of logits of one sequence, which is cut
// where they would pass 64 MiB each.
//
// invalid_argument: not a language model, nothing quantized, models of different
// programs, no sequences. Costs below the noise floor are noise.
#pragma once

#include "recipes/eval/evaluate.h"

namespace nibble {

struct LayerCost {
  std::string layer;  // the tensor's name
  std::string scheme;
  double cost = 0;  // nats a token
  Interval ci95;
};
struct Attribution {
  bool alone = false;
  double kl = 0;  // of the whole quantized model on the same tokens
  int64_t tokens = 0, sequences = 0;
  std::vector<LayerCost> layers;  // the costliest first
};

// quantized: the artifact; reference: the float model it was made from.
Result<Attribution> attribute_layers(Executor& quantized, Executor& reference,
                                     const std::vector<std::vector<int32_t>>& sequences,
                                     bool alone, const EvaluationProgress& progress);

}  // namespace nibble
