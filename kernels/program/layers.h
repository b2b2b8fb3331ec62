// The layers of a program: the unit of plan, ledger and calibration.
//
// A layer is the weight of a linear, conv2d or embedding node, named as the node; a moe
// node owns many: gate, up and down of each expert, named as the checkpoint's modules; an
// lstm node two, <node>.weight_ih and <node>.weight_hh.
//
// None for a norm or a rope. Allocates. Safe to call from any thread.
#pragma once

#include <string>
#include <vector>

#include "kernels/program/program.h"

namespace nibble {

struct Layer {
  const Node* node = nullptr;
  std::string role;    // of the parameter: "weight", "3.gate_proj"
  std::string name;    // "lm_head", "model.layers.0.mlp.experts.3.gate_proj"
  std::string tensor;  // the parameter's
};
// Of a moe node: gate, up and down of expert 0, of expert 1 ...
std::vector<Layer> layers_of(const Node& node);
std::vector<Layer> layers_of(const Program& program);  // in execution order
// The node that owns the layer of this name, or nullptr.
const Node* owner_of(const Program& program, const std::string& layer);
// The layer that reads the node's first input and may have an input scheme: a linear's or
// convolution's own, an lstm's weight_ih (its other matrix reads h, which it makes
// itself). "" of other ops.
std::string reader_layer(const Node& node);

}  // namespace nibble
