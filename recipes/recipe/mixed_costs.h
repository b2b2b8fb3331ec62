// What each scheme of a mixed-precision recipe would cost each layer, in the unit of the
// recipe's budget, into the plan.
//
//   mixed.bits          stored bits, scales counted; the budget times all such weights
//   mixed.megabytes     10^6 bytes; the budget less what is not quantized
//   mixed.milliseconds  of one token on this machine, measured
//   (recipes/eval/layer_cost.h), of
//                       the linear layers; an embedding is gathered and costs none
//
// failed_precondition: what is not quantized is larger than the budget of megabytes
// alone.
#pragma once

#include "kernels/artifact/artifact.h"
#include "recipes/recipe/recipe.h"

namespace nibble {

// A recipe without a budget leaves the plan as it is.
Status set_mixed_costs(const Recipe& recipe, const Artifact& model, Plan& plan);

}  // namespace nibble
