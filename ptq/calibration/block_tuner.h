// Tunes the codes and scales of all layers of one block together, so that the block's
// outputs come near the float model's: the loop of AutoRound (Cheng et al., "Optimize
// Weight Rounding via Signed Gradient Descent for the Quantization of LLMs", arXiv
// 2309.05516).
//
//   W~ = s (clamp(round(u + V)) - z)        u: where the start's codes came from, in
//   codes s  = s0 (1 + A)                         rounded to its element, straight
//   through V, A <- V, A - lr sign(dL / d.)         eq. 5; V in [-1/2, 1/2], lr falls
//   linearly to 0 L  = mean (f(X; W~) - Y)^2              X: the quantized model's inputs
//   of the block,
//                                           Y: the float model's outputs
//
// The start is any solution (round to nearest as in the paper, or GPTQ's): u is W / s +
// z, moved into its code's cell where the start's code is another one than W's nearest.
// The better of start and end on all samples is kept. Integer codes with one scale level
// only.
//
// The samples are in kShards shards (ptq/distributed): a batch takes as many of each,
// shards run in parallel and on the ranks that own them, and their gradients are added in
// order: the same bytes at any number of threads and ranks. Throws nibble::Error.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "ptq/calibrate.h"
#include "ptq/calibration/value_stream.h"

namespace nibble {

struct BlockProblem {
  const Artifact& model;
  const Plan& plan;
  size_t begin, end;  // nodes
  int64_t samples;
  // Of a sample in this rank's shards: what is live at begin, and what the float model
  // has live at end of what the block makes. On any thread.
  std::function<StreamValues(int64_t sample)> input, target;
  std::vector<std::string> tensors;  // the weights to be tuned
  // f32: a float weight of the model, and a parameter of the block as it is solved so
  // far.
  std::function<at::Tensor(const std::string& tensor)> weight, parameter;
  InputRounding rounding;      // of quantized activations, straight through
  std::string device = "cpu";  // where the block runs; codes and scales step on the CPU
};

struct TunedBlock {
  double loss_before = 0, loss_after = 0;  // mean squared error over mean squared output
};

// Changes codes[t] for t in problem.tensors.
TunedBlock tune_block(const BlockProblem& problem,
                      std::map<std::string, CodedMatrix>& codes);

// nullptr, or why a scheme can not be tuned.
const char* cannot_tune(const QuantScheme& scheme);

}  // namespace nibble
