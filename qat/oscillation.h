// Weights that jump between two codes step after step: damped, or frozen where they are
// most of the time (Nagel et al., "Overcoming Oscillations in Quantization-Aware
// Training", arXiv 2203.08086).
//
//   damping   L += lambda * |w^ - clip(w)|^2, w^ the fake-quantized weight (eq. 5); its
//             gradient 2 lambda (w - w^) reaches w alone, and only inside the code range
//   freezing  a code that changes against the direction of its last change oscillates;
//             f <- m o + (1 - m) f, o 1 or 0; f > threshold: the weight stays for good at
//             the code nearest to the running mean of its codes (algorithm 1, m = 0.02)
//
// Weights with integer codes; others are left alone. One object a run; its state is
// tensors for the checkpoint.
#pragma once

#include <torch/types.h>

#include <string>
#include <vector>

#include "ptq/module/program_module.h"
#include "qat/train_options.h"

namespace nibble {

class Oscillations {
 public:
  Oscillations(ProgramModule module, const TrainOptions& options);

  void add_damping();  // to the gradients, after backward
  void after_step();   // counts, freezes, and holds what is frozen

  // [frequency, mean code, last code, last direction, frozen] of each layer, in place.
  std::vector<torch::Tensor> state() const;
  // Weights frozen so far, and all that are watched.
  int64_t frozen() const;
  int64_t watched() const;

 private:
  struct Layer {
    std::string tensor;
    FakeQuantize quantizer{nullptr};
    torch::Tensor frequency, mean, last, direction, frozen;
  };
  ProgramModule module_;
  double dampen_, threshold_;
  std::vector<Layer> layers_;
};

}  // namespace nibble
