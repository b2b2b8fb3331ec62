// What the ledger will say of a solved layer: its errors, and those that rounding to
// nearest would have had (Method "rtn" under the same scheme and scale rule).
//
// Throws nibble::Error. Safe for different layers at once.
#pragma once

#include "kernels/program/edits/low_rank.h"
#include "ptq/calibrate.h"
#include "ptq/methods/method.h"

namespace nibble {

// method: the one that solved it. factors: what stands beside the codes, which the errors
// then count; may be null.
Calibrated::Account layer_account(const LayerProblem& problem, const std::string& method,
                                  const SolvedLayer& solved,
                                  const LowRankFactors* factors = nullptr);

}  // namespace nibble
