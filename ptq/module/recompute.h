// A part of a net whose inner values are made again in the backward pass instead of kept
// (Chen et al., arXiv 1604.06174).
//
// recomputed(run, inputs) = run(inputs), with the same gradients: memory for `inputs`
// alone between the passes, one more forward pass of the part.
//
//   run     gives the same outputs for the same inputs, floats; what else it reads that
//           learns are parameters (leaves), whose gradients are added to by the backward
//           pass itself
//   inputs  floats; they need no gradient for the parameters to get theirs
//
// Throws what run throws.
#pragma once

#include <torch/types.h>

#include <functional>
#include <vector>

namespace nibble {

using TensorsFunction =
    std::function<std::vector<torch::Tensor>(const std::vector<torch::Tensor>&)>;

std::vector<torch::Tensor> recomputed(TensorsFunction run,
                                      const std::vector<torch::Tensor>& inputs);

}  // namespace nibble
