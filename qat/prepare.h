// Puts fake quantizers into a module as a Plan says, and takes the trained model out
// again.
//
//   Calibrated ready = calibrate(model, plan, data, progress);  // start from PTQ's codes
//   ProgramModule module = prepare(ready, QatOptions{});
//   train(module, ...);
//   Artifact artifact = freeze(finish(module, ready), provenance);
//
// Weights start as the model's floats, with the calibrated levels; where the nearest code
// is not the one that calibration chose (GPTQ, AutoRound), as that code's value: the run
// begins as the artifact that calibration would have given. Scales stay as they are or
// are learned (LSQ), zero points as well (LSQ+). Values and layer inputs start with their
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

#include <string>

#include "ptq/calibrate.h"
#include "ptq/module/program_module.h"

namespace nibble {

// Which parameters are trained.
enum class Trained : uint8_t {
  all,     // also norms, biases, embeddings
  layers,  // quantized weights and their scales
  scales,  // scales and zero points alone, codes stay (EfficientQAT's second phase,
           // arXiv 2407.11062, sec. 3.3)
};

struct QatOptions {
  bool learn_weight_scale = true;      // LSQ on weights
  bool learn_zero_point = true;        // LSQ+ on weights with zero points or minima
  bool learn_activation_scale = true;  // LSQ on static activations
  bool learn_activation_clip = false;  // PACT on them instead
  bool squash_weights = false;         // DoReFa's tanh before weights are quantized
  Trained trained = Trained::all;
  std::string kv = "f32";  // keys and values of attention as a cache of this scheme
                           // (kernels/scheme/kv_scheme.h) holds them; straight through
};

ProgramModule prepare(const Calibrated& calibrated, const QatOptions& options);
Calibrated finish(ProgramModule module, const Calibrated& before);

}  // namespace nibble
