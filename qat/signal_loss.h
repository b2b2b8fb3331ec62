// The loss of a net over values: squared errors of its outputs, each in units of the
// output's own size, through one or more steps of a stream.
//
//   L = mean over steps t and outputs o of  mean (y_o[t] - r_o[t])^2 / s_o
//
//   y     the module's, whose state goes from step to step, gradients too
//         (backpropagation through time)
//   r, s  what outputs should be, and their mean square over all training data
//
// Throws nibble::Error: invalid_argument (a step without its targets, or a carry that
// names no output), and the module's.
#pragma once

#include <torch/types.h>

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "ptq/module/program_module.h"

namespace nibble {

struct SignalBatch {
  using Values = std::map<std::string, torch::Tensor>;
  std::vector<Values> inputs;   // of each step; what is carried in the first one alone
  std::vector<Values> targets;  // of each step, by output; others do not count
  std::vector<std::pair<std::string, std::string>> carries;  // output, input
  std::map<std::string, double> squares;                     // s_o
  int64_t samples = 0;  // steps times the batch, for counting
};

torch::Tensor signal_loss(ProgramModule module, const SignalBatch& batch);

}  // namespace nibble
