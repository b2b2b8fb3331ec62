// A person's own torch::nn::Sequential as nibble sees models: a graph and its weights,
// ready to be calibrated, trained with quantization in the loop, frozen, exported and
// run.
//
//   Artifact model = artifact_of(net, {3, 32, 32});
//   Plan plan = make_plan(recipe, prepare_for_plan(model, true)->program);
//
// Modules: Linear, Conv2d (zero padding), BatchNorm2d (affine, with running statistics),
// ReLU, LeakyReLU, Flatten (from dimension 1), AdaptiveAvgPool2d to 1x1; Identity and
// Dropout pass values on. Tensors keep the names that the net's own state_dict gives them
// ("0.weight"). input is the shape of one sample, [channels, height, width]; the logits
// are the last module's output. The weights are copied: later changes of the net do not
// show.
//
// Throws nibble::Error. unsupported: a module or an option of it that has no op (names
// its place and type; a module of another kind brings its own Program, or saves packed
// weights only). invalid_argument: shapes do not fit (names the node).
#pragma once

#include <torch/nn/modules/container/sequential.h>

#include <cstdint>
#include <vector>

#include "kernels/artifact/artifact.h"

namespace nibble {

Artifact artifact_of(const torch::nn::Sequential& net, const std::vector<int64_t>& input);

}  // namespace nibble
