// Mixed precision: every quantized layer's scheme anew, as the plan's budget allows.
//
// Losses come from plan.mixed.losses where a run before has found them, else from
// predicted_losses (sensitivity.h). The first rank chooses, once: what an interrupted run
// chose stays. notes: what the ledger should say, by tensor. Throws nibble::Error.
#pragma once

#include <map>
#include <string>

#include "ptq/calibration/found_scales.h"
#include "ptq/calibration/sensitivity.h"

namespace nibble {

void choose_schemes(Plan& plan, const SensitivityProblem& problem,
                    std::map<std::string, std::string>& notes);

}  // namespace nibble
