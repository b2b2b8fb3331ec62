#include "qat/signal_loss.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace nibble {

torch::Tensor signal_loss(ProgramModule module, const SignalBatch& batch) {
  if (batch.inputs.empty() || batch.inputs.size() != batch.targets.size()) {
    throw Error(
        error(StatusCode::invalid_argument,
              "[train] signals: a step with targets or more were required; found ",
              batch.inputs.size(), " steps and targets of ", batch.targets.size()));
  }
  torch::Tensor sum;
  int64_t terms = 0;
  SignalBatch::Values carried;
  for (size_t step = 0; step < batch.inputs.size(); ++step) {
    SignalBatch::Values inputs = batch.inputs[step];
    inputs.insert(carried.begin(), carried.end());  // in the first step nothing
    const SignalBatch::Values outputs = module->forward_values(inputs);
    for (const auto& [output, input] : batch.carries) {
      const auto found = outputs.find(output);
      if (found == outputs.end()) {
        throw Error(error(StatusCode::invalid_argument, "[train] ", output, "=", input,
                          ": an output to carry was required; found none of this name"));
      }
      carried[input] = found->second;
    }
    for (const auto& [name, target] : batch.targets[step]) {
      const double size = std::max(batch.squares.at(name), 1e-12);
      const torch::Tensor part = (outputs.at(name) - target).square().mean() / size;
      sum = sum.defined() ? sum + part : part;
      ++terms;
    }
  }
  return sum / static_cast<double>(terms);
}

}  // namespace nibble
