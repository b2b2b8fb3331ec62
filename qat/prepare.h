// Puts fake quantizers into a module as a Plan says, and takes the trained model out
// again.
//
//   Calibrated ready = calibrate(model, plan, data, progress);   // start from PTQ's
//   scales ProgramModule module = prepare(ready, QatOptions{}); train(module, ...);
//   Artifact artifact = freeze(finish(module, ready), provenance);
//
// finish() reads codes from the same FakeQuantize objects that training used, so the
// artifact is what was trained. Throws nibble::Error.
#pragma once

#include "ptq/calibrate.h"
#include "ptq/module/program_module.h"

namespace nibble {

struct QatOptions {
  bool learn_weight_scale = true;      // LSQ on weights
  bool learn_activation_scale = true;  // LSQ on static activations
};

ProgramModule prepare(const Calibrated& calibrated, const QatOptions& options);
Calibrated finish(ProgramModule module, const Calibrated& before);

}  // namespace nibble
