// Weights for a program that has none, from a seed: the same bytes on every machine.
//
//   language models   linear and embedding weights ~ normal(0, initializer_range of
//   config.json) image models      weights ~ normal(0, sqrt(2 / fan_in))       (He et
//   al., arXiv 1502.01852) norm weights and running_var 1, every bias and running_mean 0
//
// Each tensor draws from its own stream (the seed and its name), so its values do not
// depend on which other tensors there are.
#pragma once

#include <map>
#include <string>

#include "kernels/base/tensor.h"
#include "kernels/program/program.h"

namespace nibble {

Result<std::map<std::string, Tensor>> initialise(const Program& program,
                                                 double initializer_range, uint64_t seed);

}  // namespace nibble
