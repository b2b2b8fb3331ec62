// What one linear layer costs on this machine under one scheme: seconds, measured on the
// kernel that would serve it, bytes and rounding error.
//
// Every case is timed in turn, round after round, so that a slow minute of the machine
// hits all of them; over as many different weights as `spread` bytes hold (64 at most),
// because a model's layer finds its weights where they were left: in memory, not in a
// cache.
//
// A scheme that does not parse, or a tensor that is no float: the message names it.
#pragma once

#include <string>
#include <vector>

#include "kernels/ops/linear/linear.h"
#include "recipes/eval/timing_cache.h"

namespace nibble {

struct CostCase {
  std::string scheme;  // "" for the tensor as it is
  LinearActivation activation = LinearActivation::f32;  // where a row has it
  int64_t spread = 0;  // bytes of different weights to go through in turn
};
struct CostOptions {
  int64_t tokens = 1;  // of a decode step
  int64_t prompt = 0;  // tokens of a prefill; 0: not timed
  int64_t repeats = 3;
  TimingCache* timings = nullptr;  // what it knows is not timed again; may be null
};
struct LayerCost {
  std::string kernel;
  double decode = 0, prefill = 0;  // seconds, medians
  int64_t bytes = 0;
  double error = 0;         // rounding's squared error over the weight's energy
  bool falls_back = false;  // to a row that decodes weights to float first
};

// tensor [rows, cols]. One a case; equal cases are timed once.
Result<std::vector<LayerCost>> time_layer(const Tensor& tensor,
                                          const std::vector<CostCase>& cases,
                                          const CostOptions& options);

// The tensor rounded to nearest; as it is where scheme is "".
Result<LinearWeight> rounded_weight(const Tensor& tensor, const std::string& scheme);

}  // namespace nibble
