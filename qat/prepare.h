// Puts fake quantizers into a module as a Plan says, and takes the trained model out
// again.
//
//   Calibrated ready = calibrate(model, plan, data, progress);   // start from PTQ's
//   scales ProgramModule module = prepare(ready, QatOptions{}); train(module, ...);
//   Artifact artifact = freeze(finish(module, ready), provenance);
//
// Weights start as the model's floats with the calibrated levels, which stay as they are
// or are learned (LSQ); zero points stay. Values and layer inputs start with their
// calibrated scales. A value that only moves codes (shortcut_pad, flatten) keeps the
// scale of its input.
//
// Where values have schemes (the integer path), biases round to s_x * s_w as the kernels
// do.
//
// finish() reads codes from the same FakeQuantize objects that training used, so the
// artifact is what was trained; parameters that stay float go back to the dtype they came
// in.
//
// Throws nibble::Error: failed_precondition (a planned layer has no codes), and what
// FakeQuantize throws. Allocates a copy of the parameters.
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
