// Gives every layer a weight of its own: a tensor that several layers name (a tied
// embedding and lm_head) is copied under "<node>.weight" for each but the first. The
// copies share bytes until one is changed.
//
// not_found: the tied tensor is missing. invalid_argument: the new name is taken.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "kernels/base/tensor.h"
#include "kernels/program/program.h"

namespace nibble {

struct UntiedModel {
  Program program;
  std::map<std::string, Tensor> tensors;
  std::vector<std::string> added;  // names of the copies, in program order
};
Result<UntiedModel> untie(const Program& program,
                          const std::map<std::string, Tensor>& tensors);

}  // namespace nibble
